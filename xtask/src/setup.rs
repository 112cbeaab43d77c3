//! What the project needs besides cargo: the ONNX Runtime library, and for the tests with other
//! programs a few Python packages.

use std::{
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::root;

/// The pinned release; the `ort` crate needs 1.31 or newer.
const ONNXRUNTIME: &str = "1.32.0";

/// What the Python tests and the peers import.
const PYTHON_PACKAGES: [&str; 6] = [
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.32.0",
    "onnxruntime-genai==0.18.0",
    "numpy==2.4.6",
    "safetensors==0.8.0",
];

/// Clients of the server, and what checks it.
const CLIENT_PACKAGES: [&str; 6] = [
    "openai==3.57.0",
    "llm==0.36",
    "jsonschema[format]==4.26.0",
    "prometheus-client==0.26.0",
    "openapi-spec-validator==0.9.0",
    "kubernetes-validate==1.37.0",
];
const KSERVE: &str = "kserve==0.21.0";
const RAY_PACKAGES: [&str; 4] =
    ["ray[data]==2.60.0", "pyarrow==26.0.1", "pandas==3.1.1", "numpy==2.4.6"];

/// The Python library whose cache of downloads the exporter shares.
const HUGGINGFACE_HUB: &str = "huggingface-hub==2.4.0";

/// The execution providers in libraries of their own that `cargo xtask setup --provider` installs: name
/// and Python package.
const PLUGINS: [(&str, &str); 4] = [
    ("ggml", "onnxruntime-ggml==0.2.0"),
    ("openvino", "onnxruntime-ep-openvino==1.8.1"),
    ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"),
    ("webgpu", "onnxruntime-ep-webgpu==0.4.0"),
];

/// Where a thing that is set up lies: in the project's root, or in the folder that the variable
/// `LFM2VL_SETUP` names.
pub(crate) fn folder(name: &str) -> PathBuf {
    std::env::var_os("LFM2VL_SETUP").map_or_else(|| root().to_owned(), PathBuf::from).join(name)
}

/// Runs a command to its end, with its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(status.success(), "{} failed ({status})", command.get_program().display());
    Ok(())
}

/// Runs a command whose output is of interest only if it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<()> {
    let name = PathBuf::from(command.get_program());
    let output = command.output().with_context(|| format!("cannot start {}", name.display()))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {message}", name.display());
    Ok(())
}

/// Builds for release.
pub(crate) fn build_release(what: &[&str]) -> Result<()> {
    let mut build = Command::new(env!("CARGO"));
    run(build.args(["build", "--release"]).args(what).current_dir(root()))
}

/// The programs, built for release, and the ONNX Runtime library that they load.
#[derive(Clone)]
pub(crate) struct Programs {
    library: PathBuf,
}

impl Programs {
    pub(crate) fn build() -> Result<Self> {
        let library = onnxruntime()?;
        build_release(&[
            "--package",
            "lfm2vl-exporter",
            "--package",
            "lfm2vl-cli",
            "--package",
            "lfm2vl-provider",
        ])?;
        Ok(Programs { library })
    }

    pub(crate) fn command(&self, name: &str) -> Result<Command> {
        let mut command = self.beside(Command::new(self.path(name)?));
        command.current_dir(root());
        Ok(command)
    }

    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        release_program(name)
    }

    /// A command that starts the programs itself.
    pub(crate) fn beside(&self, mut command: Command) -> Command {
        command.env("ORT_DYLIB_PATH", &self.library);
        command
    }
}

/// A program of this workspace, built for release.
pub(crate) fn release_program(name: &str) -> Result<PathBuf> {
    release_file(&format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A file that a build for release has made.
pub(crate) fn release_file(name: &str) -> Result<PathBuf> {
    // This program is in the `debug` folder of the target directory; its neighbour is `release`.
    let this = std::env::current_exe()?;
    let target = this.ancestors().nth(2).context("xtask runs outside a target folder")?;
    Ok(target.join("release").join(name))
}

/// The library in `.onnxruntime`, taken out of the `onnxruntime` wheel on the first call.
pub(crate) fn onnxruntime() -> Result<PathBuf> {
    let folder = folder(".onnxruntime");
    let stamp = folder.join(format!("version-{ONNXRUNTIME}"));
    if !stamp.is_file() {
        eprintln!("fetching ONNX Runtime {ONNXRUNTIME}");
        let wheels = folder.join("wheel");
        fs::create_dir_all(&wheels)?;
        run(Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
            .arg("--dest")
            .arg(&wheels)
            .arg(format!("onnxruntime=={ONNXRUNTIME}")))
        .context("cannot download the onnxruntime wheel; python3 with pip is needed")?;
        for wheel in fs::read_dir(&wheels)? {
            extract_library(&wheel?.path(), &folder)?;
        }
        fs::remove_dir_all(&wheels)?;
        File::create(stamp)?;
    }
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_library(&name) {
            return Ok(path);
        }
    }
    bail!("no ONNX Runtime library in {}; remove that folder and try again", folder.display())
}

/// The library of the project's own kernels, built and put beside ONNX Runtime's, where programs find it.
pub(crate) fn kernels() -> Result<PathBuf> {
    onnxruntime()?;
    kernels_into(&folder(".onnxruntime"))
}

/// The same library, put into a folder.
pub(crate) fn kernels_into(folder: &Path) -> Result<PathBuf> {
    build_release(&["--package", "lfm2vl-provider"])?;
    let name = format!("{DLL_PREFIX}onnxruntime_providers_lfm2vl{DLL_SUFFIX}");
    let library = folder.join(&name);
    // Under another name first: a program may have the old one loaded.
    let new = library.with_extension("new");
    fs::copy(release_file(&name)?, &new)?;
    // Programs refuse what others than the user may write.
    #[cfg(unix)]
    for path in [new.as_path(), folder] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path)?.permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o022))?;
    }
    fs::rename(new, &library)?;
    Ok(library)
}

fn is_library(name: &str) -> bool {
    name.starts_with("libonnxruntime.") || name == "onnxruntime.dll"
}

fn extract_library(wheel: &Path, folder: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = entry.name().rsplit('/').next().unwrap_or_default().to_owned();
        if is_library(&name) {
            io::copy(&mut entry, &mut File::create(folder.join(name))?)?;
        }
    }
    Ok(())
}

/// The folder `.python` with what the Python tests import, filled on the first call.
pub(crate) fn python_packages() -> Result<PathBuf> {
    install(".python", &PYTHON_PACKAGES.map(str::to_owned))
}

/// The folder `.clients` with what the tests of the server import, filled on the first call.
pub(crate) fn client_packages() -> Result<PathBuf> {
    let packages = install(".clients", &CLIENT_PACKAGES.map(str::to_owned))?;
    // Only read as a file, so without the dozens of packages that it imports.
    let kserve = self::packages(".clients-kserve", KSERVE)?;
    Ok(std::env::join_paths([packages, kserve])?.into())
}

/// The folder `.ray` with what the example of Ray imports, filled on the first call.
pub(crate) fn ray_packages() -> Result<PathBuf> {
    install(".ray", &RAY_PACKAGES.map(str::to_owned))
}

/// The folder `.huggingface_hub` with what the exporter's cache is compared with, filled on the first
/// call.
pub(crate) fn huggingface_hub() -> Result<PathBuf> {
    install(".huggingface_hub", &[HUGGINGFACE_HUB.to_owned()])
}

/// The folder `.javascript` with what the tests in Node import, filled on the first call; nothing
/// where there is no npm.
pub(crate) fn node_packages() -> Result<Option<PathBuf>> {
    if Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("Transformers.js will not be tested: there is no npm");
        return Ok(None);
    }
    let (source, packages) = (root().join("tests/javascript"), folder(".javascript"));
    let lock = fs::read(source.join("package-lock.json"))?;
    let stamp = packages.join("installed-lock.json");
    if fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(Some(packages));
    }
    eprintln!("installing Transformers.js");
    fs::create_dir_all(&packages)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), packages.join(file))?;
    }
    // Its ONNX Runtime needs nothing but what is in the package.
    let mut npm = Command::new("npm");
    npm.args(["ci", "--silent"]).current_dir(&packages).env("ONNXRUNTIME_NODE_INSTALL", "skip");
    run(&mut npm)?;
    fs::write(stamp, lock)?;
    Ok(Some(packages))
}

/// A script of `benches/peers`, with transformers and what it needs in the folder `.reference`,
/// which is filled on the first call, and the packages of the tests.
pub(crate) fn peer(script: &str) -> Result<Command> {
    let requirements = fs::read_to_string(root().join("testdata/make/requirements.txt"))?;
    let requirements: Vec<String> = requirements.lines().map(str::to_owned).collect();
    let packages = [install(".reference", &requirements)?, python_packages()?];
    let mut command = Command::new("python3");
    command.arg(root().join("benches/peers").join(script));
    command.env("PYTHONPATH", std::env::join_paths(packages)?);
    Ok(command)
}

/// The folder with the photos that are measured with, made on the first call.
pub(crate) fn photos() -> Result<PathBuf> {
    let photos = root().join("demo/photos");
    // The one that is written last.
    if !photos.join("2048x1024.png").is_file() {
        run(peer("make_photos.py")?.arg(&photos))?;
    }
    Ok(photos)
}

/// The folder `.programs` with what the programs of the exported card need in the tests, filled on the first
/// call; nothing where this system lacks a tool for that.
pub(crate) fn program_packages() -> Result<Option<PathBuf>> {
    const TOOLS: [&str; 8] = ["gcc", "g++", "java", "mcs", "mono", "npm", "tar", "unzip"];
    let find = |tool: &str| format!("command -v {tool}");
    let lacks = |tool: &&str| quietly(Command::new("sh").args(["-c", &find(tool)])).is_err();
    let mut missing: Vec<&str> = TOOLS.into_iter().filter(lacks).collect();
    if !Path::new("/usr/include/stb/stb_image.h").is_file() {
        missing.push("stb_image.h");
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        eprintln!("the programs in Java, C++ and C# are not tested: this system lacks {missing}");
        return Ok(None);
    }
    let (folder, tests) = (folder(".programs"), root().join("tests/programs"));
    let script = fs::read_to_string(tests.join("setup.sh"))?;
    let stamp = folder.join("setup.txt");
    if fs::read_to_string(&stamp).is_ok_and(|done| done == script) {
        return Ok(Some(folder));
    }
    eprintln!("fetching what programs in Java, C++ and C# need");
    let mut setup = Command::new("bash");
    setup.arg(tests.join("setup.sh")).arg(&folder).args([onnxruntime()?, python_packages()?]);
    run(&mut setup).context("cannot set up the programs in Java, C++ and C#")?;
    fs::write(stamp, script)?;
    Ok(Some(folder))
}

/// The folder `.providers/NAME` with an execution provider's library, filled on the first call.
pub(crate) fn plugin(name: &str) -> Result<PathBuf> {
    let known = PLUGINS.map(|(name, _)| name).join(", ");
    let found = PLUGINS.iter().find(|(plugin, _)| *plugin == name);
    let (_, package) =
        found.with_context(|| format!("there is no plugin '{name}'; use {known}"))?;
    packages(&format!(".providers/{name}"), package)
}

/// A folder with an ONNX Runtime: `.onnxruntime-oldest` with the first that takes the project's kernels,
/// `.onnxruntime-older` with one that does not, `.onnxruntime-portable` with the first that standard
/// operators need.
pub(crate) fn old_onnxruntime(name: &str) -> Result<PathBuf> {
    let version = match name {
        "oldest" => "1.24.4",
        "older" => "1.23.2",
        _ => "1.20.1",
    };
    packages(&format!(".onnxruntime-{name}"), &format!("onnxruntime=={version}"))
}

/// A folder with this Python package, without what it depends on.
pub(crate) fn packages(name: &str, package: &str) -> Result<PathBuf> {
    install_with(name, &[package.to_owned()], &["--no-deps"])
}

/// A folder with these Python packages.
fn install(name: &str, wanted_packages: &[String]) -> Result<PathBuf> {
    install_with(name, wanted_packages, &[])
}

fn install_with(name: &str, wanted_packages: &[String], options: &[&str]) -> Result<PathBuf> {
    let packages = folder(name);
    let wanted = wanted_packages.join("\n");
    let stamp = packages.join("packages.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(packages);
    }
    eprintln!("installing {}", wanted_packages.join(", "));
    run(Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
        .arg(&packages)
        .args(options)
        .args(wanted_packages))
    .context("cannot install Python packages; python3 with pip is needed")?;
    fs::write(stamp, wanted)?;
    Ok(packages)
}
