//! `lfm2vl chat` on a terminal, and elsewhere.

#[cfg(unix)]
use std::fs;
use std::{
    io::Write,
    process::{Command, Stdio},
};

#[cfg(unix)]
use lfm2vl_tests::{copy_folder, python, succeed};
use lfm2vl_tests::{program, testdata, tiny_shapes};

fn chat() -> Command {
    let mut command = program("lfm2vl");
    command.arg("chat").arg(tiny_shapes("default"));
    command
}

#[test]
fn chat_keeps_the_conversation() {
    let state = tempfile::tempdir().unwrap();
    let mut command = chat();
    command.env("XDG_STATE_HOME", state.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = format!(
        "/image {}\nDescribe this image.\n/image nowhere.png\n/unknown\n/reset\nHello\n/quit\nnever\n",
        testdata("tiny-shapes/samples/plain.png").display()
    );
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "This image shows a green square and a blue triangle.\n\
         Hello! I can tell you about the shapes, colours and numbers in your images.\n"
    );
    let messages = String::from_utf8(output.stderr).unwrap();
    let [missing, unknown] = messages.lines().collect::<Vec<_>>()[..] else { panic!("{messages}") };
    assert!(missing.contains("nowhere.png") && unknown.contains("/unknown"), "{messages}");
    // What is no terminal has no history.
    assert!(state.path().read_dir().unwrap().next().is_none());
}

#[cfg(unix)]
#[test]
fn a_terminal_has_editing_history_and_completion() {
    let folder = tempfile::tempdir().unwrap();
    let endless = folder.path().join("endless");
    copy_folder(&tiny_shapes("default"), &endless);
    let settings = endless.join("generation_config.json");
    let text = fs::read(&settings).unwrap();
    let mut generation: serde_json::Value = serde_json::from_slice(&text).unwrap();
    generation["min_new_tokens"] = 3500.into();
    generation["max_new_tokens"] = 3500.into();
    fs::write(&settings, generation.to_string()).unwrap();
    let mut test = python("chat_terminal.py");
    test.arg(program("lfm2vl").get_program()).arg(tiny_shapes("default")).arg(endless);
    test.arg(testdata("tiny-shapes/samples/plain.png").canonicalize().unwrap());
    succeed(test.current_dir(folder.path()));
}
