//! The programs in an exported folder's README.md, taken from there, give the tokens that ours gives.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use lfm2vl_graphs::Precision;
use lfm2vl_tests::{node, program, root, set_up, succeed, testdata, tiny_shapes_in_all_precisions};
use serde_json::Value;

/// A question about images.
struct Question {
    prompt: String,
    images: &'static [&'static str],
}

/// Without an image; in one view, in tiles, and in grey; about two images; and one so long that our decoder
/// takes it in pieces, in buffers that grow, and theirs at once.
fn questions() -> Vec<Question> {
    let question = |prompt: &str, images| Question { prompt: prompt.to_owned(), images };
    vec![
        question("Tell me a story.", &[]),
        question("What shapes are in this image?", &["tall.png"]),
        question("Describe this image.", &["number-tiled.png"]),
        question("Which colour does \"größte\" 😀 have? $& {content} %s", &["gray.png"]),
        question("What is different?", &["number-tiled.png", "rgba.png"]),
        question("Describe this image.", &["tiled.jpg"]),
        question(&"Is there a red square, or a blue circle? ".repeat(120), &[]),
    ]
}

impl Question {
    fn images(&self) -> impl Iterator<Item = PathBuf> {
        self.images.iter().map(|image| testdata("tiny-shapes/samples").join(image))
    }

    /// The ids and the text of our program.
    fn ours(&self, folder: &Path, precision: Precision) -> (Vec<u32>, String) {
        let mut run = program("lfm2vl");
        run.arg("run").arg(folder).args(["--json", "--temperature", "0", "--prompt", &self.prompt]);
        run.args(["--repetition-penalty", "1", "--max-new-tokens", "64"]);
        run.args(["--precision", &precision.to_string()]);
        self.images().for_each(|image| {
            run.arg("--image").arg(image);
        });
        let answer: Value = serde_json::from_slice(&succeed(&mut run).stdout).unwrap();
        let ids = serde_json::from_value(answer["token_ids"].clone()).unwrap();
        (ids, answer["text"].as_str().unwrap().to_owned())
    }
}

/// The code under a title of the folder's README.md, for a precision.
fn code(folder: &Path, title: &str, precision: Precision) -> String {
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    let (_, rest) = card.split_once(&format!("## {title}\n\n```")).unwrap();
    let (_, rest) = rest.split_once('\n').unwrap();
    let code = rest.split_once("\n```").unwrap().0;
    assert!(code.lines().count() < 150, "{title}");
    let quote = if title == "JavaScript" { "'" } else { "\"" };
    let constant = if title == "C#" { "Suffix" } else { "SUFFIX" };
    let set = |suffix: &str| format!("{constant} = {quote}{suffix}{quote}");
    assert!(code.contains(&set("")), "{title}");
    code.replace(&set(""), &set(precision.suffix()))
}

/// Asks all questions; `build` makes a program of the code under `title`, in a folder of its own.
fn check<C: Fn() -> Command>(
    title: &str,
    precisions: &[Precision],
    build: impl Fn(&str, &Path) -> Option<C>,
) {
    let folder = tiny_shapes_in_all_precisions();
    for &precision in precisions {
        let work = tempfile::tempdir().unwrap();
        let Some(program) = build(&code(&folder, title, precision), work.path()) else { return };
        for question in questions() {
            let mut command = program();
            command.arg(&folder).arg(&question.prompt).args(question.images());
            let printed = String::from_utf8(succeed(&mut command).stdout).unwrap();
            let (ids, text) = printed.split_once('\n').unwrap();
            let ids: Vec<u32> = serde_json::from_str(ids).unwrap();
            let ours = question.ours(&folder, precision);
            assert_eq!((ids, text.trim_end().to_owned()), ours, "{precision} {}", question.prompt);
        }
    }
}

const TWO: [Precision; 2] = [Precision::Fp32, Precision::Q4];

/// What `tests/programs/setup.sh` has put there.
fn packages() -> Option<PathBuf> {
    set_up("LFM2VL_PROGRAMS").map(PathBuf::from)
}

#[test]
fn python() {
    check("Python", &Precision::ALL, |code, work| {
        let own = env::var_os("PYTHONPATH").unwrap_or_default();
        let path = env::join_paths([packages()?.join("python"), own.into()]).unwrap();
        let script = work.join("generate.py");
        fs::write(&script, code).unwrap();
        Some(move || {
            let mut command = Command::new("python3");
            command.arg(&script).env("PYTHONPATH", &path);
            command
        })
    });
}

#[test]
fn javascript() {
    check("JavaScript", &TWO, |code, work| {
        let script = work.join("generate.mjs");
        fs::write(&script, code).unwrap();
        node(&script)?;
        Some(move || node(&script).unwrap())
    });
}

#[test]
fn javascript_on_webassembly() {
    check("JavaScript", &TWO, |code, work| {
        let script = work.join("generate_web.mjs");
        let code = code.replace("from 'onnxruntime-node'", "from 'onnxruntime-web'");
        fs::write(&script, code).unwrap();
        node(&script)?;
        Some(move || node(&script).unwrap())
    });
}

#[test]
fn java() {
    check("Java", &TWO, |code, work| {
        let classes = packages()?.join("java");
        let source = work.join("Generate.java");
        fs::write(&source, code).unwrap();
        Some(move || {
            let mut command = Command::new("java");
            command.arg(format!("-Donnxruntime.native.path={}", classes.join("jni").display()));
            command.arg("-cp").arg(&classes).arg(&source);
            // Java reads its arguments in the encoding of the locale.
            command.env("LC_ALL", "C.UTF-8");
            command
        })
    });
}

#[test]
fn c_plus_plus() {
    check("C++", &TWO, |code, work| {
        let packages = packages()?;
        let (libraries, program) = (packages.join("lib"), work.join("generate"));
        fs::write(work.join("generate.cpp"), code).unwrap();
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-I/usr/include/stb"]);
        compiler.arg("-I").arg(packages.join("cpp/include"));
        compiler.arg("-I").arg(root().join("tests/programs/cpp"));
        compiler.arg(work.join("generate.cpp")).arg("-o").arg(&program);
        compiler.arg("-L").arg(&libraries).args(["-lonnxruntime", "-lonnxruntime-genai"]);
        succeed(&mut compiler);
        Some(move || {
            let mut command = Command::new(&program);
            command.env("LD_LIBRARY_PATH", &libraries);
            command
        })
    });
}

#[test]
fn c_sharp() {
    check("C#", &TWO, |code, work| {
        let packages = packages()?;
        let (libraries, program) = (packages.join("lib"), work.join("generate.exe"));
        fs::write(work.join("Generate.cs"), code).unwrap();
        let library = "Microsoft.ML.OnnxRuntime.dll";
        fs::copy(packages.join("csharp").join(library), work.join(library)).unwrap();
        let mut compiler = Command::new("mcs");
        compiler.args(["-langversion:latest", &format!("-r:{library}"), "-out:generate.exe"]);
        compiler.arg("Generate.cs").arg(root().join("tests/programs/csharp/StbImageSharp.cs"));
        succeed(compiler.current_dir(work));
        Some(move || {
            let mut command = Command::new("mono");
            command.arg(&program).env("LD_LIBRARY_PATH", &libraries);
            command
        })
    });
}
