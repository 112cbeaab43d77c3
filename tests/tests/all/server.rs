//! `lfm2vl serve` and `lfm2vl batch`, by the clients that people use.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lfm2vl_tests::{node, program, root, set_up, succeed, testdata, tiny_shapes};
use serde_json::Value;

/// A server of the sample model on a port of its own, until this is dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = program("lfm2vl");
        command.arg("serve").arg(tiny_shapes("default")).args(["--listen", "127.0.0.1:0"]);
        command.args(["--model-name", "tiny"]).args(arguments).env("RUST_LOG", "warn");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let url =
            lines.by_ref().find_map(|line| Some(line.split_once("listens on ")?.1.to_owned()));
        let server = Server { child, url: url.expect("the server starts") };
        // The rest of what it says is shown, and never fills the pipe.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        server
    }

    fn base_url(&self) -> String {
        format!("{}/v1", self.url)
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script of `tests/python` with the packages of the variable, which `cargo xtask test` sets.
fn python(script: &str, packages: &str) -> Option<Command> {
    let packages = set_up(packages)?;
    let mut command = Command::new("python3");
    command.arg(root().join("tests/python").join(script)).env("PYTHONPATH", packages);
    Some(command)
}

/// Runs a script, which prints what it saw as the last line, in JSON.
fn saw(command: &mut Command) -> Value {
    let output = succeed(command);
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    eprintln!("{last}");
    serde_json::from_str(last).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

fn samples() -> PathBuf {
    testdata("tiny-shapes/samples")
}

const CLIENTS: &str = "LFM2VL_CLIENTS";

#[test]
fn openai_in_python() {
    let Some(mut script) = python("openai_client.py", CLIENTS) else { return };
    let server = Server::start(&[]);
    saw(script.arg(server.base_url()).arg(samples()));
}

#[test]
fn openai_in_node() {
    let Some(mut script) = node(Path::new("tests/javascript/openai_client.mjs")) else { return };
    let server = Server::start(&[]);
    saw(script.arg(server.base_url()).arg(samples()));
}

#[test]
fn llm_program() {
    let Some(mut script) = python("llm_client.py", CLIENTS) else { return };
    let server = Server::start(&[]);
    saw(script.arg(server.base_url()).arg(samples()));
}

#[test]
fn keys_and_origins() {
    let Some(mut script) = python("server_keys.py", CLIENTS) else { return };
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "first\n\nsecond\n").unwrap();
    let origin = "https://example.com";
    let keys = keys.to_str().unwrap();
    let server = Server::start(&["--api-key-file", keys, "--cors-origin", origin]);
    saw(script.arg(server.base_url()).args(["second", origin]));
}

/// A short form of `random_schemas.py URL`, which asks for 200.
#[test]
fn random_schemas() {
    let Some(mut script) = python("random_schemas.py", CLIENTS) else { return };
    let server = Server::start(&["--max-tokens", "4000"]);
    let seen = saw(script.arg(&server.url).args(["--count", "60"]));
    assert_eq!(seen["valid"], seen["asked"]);
}

/// A short form of `hostile_requests.py URL PID SAMPLES`, which sends 5,000.
#[test]
fn hostile_requests() {
    let Some(mut script) = python("hostile_requests.py", CLIENTS) else { return };
    let server = Server::start(&["--timeout", "20", "--max-tokens", "64"]);
    let script = script.arg(&server.url).arg(server.pid()).arg(samples());
    saw(script.args(["--count", "600"]));
}

/// A short form of `leaving_clients.py URL SAMPLES`, of which 200 leave.
#[test]
fn leaving_clients() {
    let Some(mut script) = python("leaving_clients.py", CLIENTS) else { return };
    let server = Server::start(&[]);
    let script = script.arg(&server.url).arg(samples());
    saw(script.args(["--count", "60", "--pid", &server.pid()]));
}

#[test]
fn what_it_says_of_itself_is_true() {
    let Some(mut script) = python("server_contract.py", CLIENTS) else { return };
    let server = Server::start(&["--max-body-bytes", "20971520"]);
    saw(script.arg(&server.url));
}

/// With a photo and a question in a real browser.
#[test]
fn the_page() {
    let Some(mut script) = node(Path::new("tests/javascript/page.mjs")) else { return };
    let server = Server::start(&[]);
    // Browsers take no path with dots.
    let photo = samples().join("number-tiled.png").canonicalize().unwrap();
    saw(script.arg(&server.url).arg(photo));
}

#[test]
fn batches_go_on_where_they_were_stopped() {
    let Some(mut script) = python("batch_file.py", CLIENTS) else { return };
    saw(script.arg(program("lfm2vl").get_program()).arg(tiny_shapes("default")));
}

#[test]
fn deployments_keep_their_schemas() {
    let Some(mut script) = python("check_deploy.py", CLIENTS) else { return };
    succeed(&mut script);
}

/// Ray Data with replicas of the server, of which one dies, as does a worker.
#[test]
fn ray() {
    let Some(mut script) = python("ray_captions.py", "LFM2VL_RAY") else { return };
    saw(script.arg(program("lfm2vl").get_program()).arg(tiny_shapes("default")));
}

/// SIGTERM lets answers end; in the meantime others are told to go elsewhere.
#[cfg(unix)]
#[test]
fn answers_end_before_the_server_does() {
    use std::io::{Read, Write};
    let mut server = Server::start(&["--linger", "1"]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let send = |request: String| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let ask = |tokens: usize| {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"Hi"}}],"max_tokens":{tokens},"ignore_eos":true,"stream":true}}"#
        );
        let length = body.len();
        send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    };
    let all = |mut stream: std::net::TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let mut running = ask(2_000);
    let mut begin = [0; 512];
    running.read_exact(&mut begin).unwrap();
    succeed(Command::new("kill").args(["-TERM", &server.pid()]));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(all(ask(1)).starts_with("HTTP/1.1 503"));
    let ready = all(send("GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into()));
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let rest = all(running);
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn mistakes_of_the_operator_are_told() {
    let folder = tiny_shapes("default");
    let told = |arguments: &[&str]| {
        let mut command = program("lfm2vl");
        command.arg("serve").arg(&folder).args(arguments).env("RUST_LOG", "off");
        lfm2vl_tests::fail(&mut command)
    };
    assert!(told(&["--api-key-file", "/nowhere"]).contains("/nowhere"));
    let origin = ["--listen", "127.0.0.1:0", "--cors-origin", "example.com"];
    assert!(told(&origin).contains("is no origin"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(told(&["--listen", &address]).contains("cannot listen on"));
    let empty = tempfile::NamedTempFile::new().unwrap();
    let path: &Path = empty.path();
    assert!(told(&["--api-key-file", path.to_str().unwrap()]).contains("has no key"));
}
