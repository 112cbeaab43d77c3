//! Completions and manual pages of both programs, in bash and in groff.

use std::{fs, path::Path, process::Command};

use lfm2vl_tests::{fail, program, succeed};

fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

fn completions(name: &str, shell: &str) -> String {
    let mut command = program(name);
    match name {
        "lfm2vl" => command.args(["completions", shell]),
        _ => command.args(["--completions", shell]),
    };
    stdout(&mut command)
}

/// What bash offers for the last of these words.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let (name, [.., before, word]) = (words[0], words) else { panic!("too few words") };
    // The function that is to be called for the program, and called as bash calls it.
    let text = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; set -- $(complete -p '{name}'); \
         while [ \"$1\" != -F ]; do shift; done; \
         \"$2\" '{name}' '{word}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words.len() - 1
    );
    stdout(Command::new("bash").args(["-c", &text])).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_what_the_programs_take() {
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, completions(name, "bash")).unwrap();
        succeed(Command::new("bash").arg("-n").arg(&path));
        path
    };
    let run = script("lfm2vl");
    assert_eq!(offered(&run, &["lfm2vl", "prep"]), ["preprocess"]);
    assert_eq!(offered(&run, &["lfm2vl", "chat", "m", "--max-n"]), ["--max-new-tokens"]);
    assert_eq!(offered(&run, &["lfm2vl", "serve", "m", "--log-format", "j"]), ["json"]);
    let export = script("lfm2vl-export");
    assert_eq!(offered(&export, &["lfm2vl-export", "--list"]), ["--list-recipes"]);
    let parts = offered(&export, &["lfm2vl-export", "m", "--graphs", ""]);
    assert_eq!(parts, ["vision", "projector", "embedding", "decoder", "image-processor"]);
    assert_eq!(offered(&export, &["lfm2vl-export", "--weights", "r"]), ["reference"]);
    assert_eq!(offered(&export, &["lfm2vl-export", "--precision", "q4f"]), ["q4f16"]);
}

#[test]
fn other_shells_have_the_flags_too() {
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        assert!(completions("lfm2vl", shell).contains("max-new-tokens"), "{shell}");
        assert!(completions("lfm2vl-export", shell).contains("list-recipes"), "{shell}");
    }
}

/// The long options in the help of a command.
fn options(command: &mut Command) -> Vec<String> {
    let help = stdout(command.arg("--help"));
    let words = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let words = words.flat_map(|line| line.split([' ', ',']));
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

/// What groff makes of a page, which it must not complain about; the page itself where there is no groff.
fn rendered(page: &Path) -> String {
    let mut groff = Command::new("groff");
    groff.args(["-man", "-ww", "-Tutf8", "-P-cbou"]).arg(page);
    let Ok(output) = groff.output() else {
        return fs::read_to_string(page).unwrap().replace("\\-", "-");
    };
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaints.is_empty(), "{page:?}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_page_has_every_option() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    succeed(program("lfm2vl").arg("man").arg(&pages));
    succeed(program("lfm2vl-export").arg("--man").arg(&pages));
    let mut checked = 0;
    for entry in fs::read_dir(&pages).unwrap() {
        let page = entry.unwrap().path();
        let name = page.file_name().unwrap().to_str().unwrap().strip_suffix(".1").unwrap();
        assert!(fs::read_to_string(&page).unwrap().contains(&format!("\n.TH {name} 1")), "{name}");
        let mut command = match name.strip_prefix("lfm2vl-") {
            Some("export") => program(name),
            Some(subcommand) => {
                let mut command = program("lfm2vl");
                command.arg(subcommand);
                command
            }
            None => program(name),
        };
        // Words that groff breaks at the end of a line are put together again.
        let text: String = rendered(&page).split_whitespace().collect();
        for option in options(&mut command) {
            assert!(text.contains(&option), "{name} has no {option}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(fail(program("lfm2vl").arg("man").arg(&file)).contains("cannot write pages to"));
    assert!(fail(program("lfm2vl-export").arg("--man").arg(&file)).contains("cannot write"));
}
