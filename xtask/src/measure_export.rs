//! `cargo xtask measure-export`: time and memory of an export beside a plain copy of the bytes it
//! writes, and the hashes of the copy, in turns.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{peak, root, setup};

pub(crate) fn run(checkpoint: &Path, precision: &str, repeat: usize) -> Result<()> {
    setup::build_release(&["--package", "lfm2vl-exporter"])?;
    let program = setup::release_program("lfm2vl-export")?;
    let folder = root().join("demo");
    fs::create_dir_all(&folder)?;
    let (exported, copied) = (folder.join("measured"), folder.join("measured-copy"));
    let (mut exports, mut copies, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    let mut peak = 0;
    peak = peak.max(export(&program, checkpoint, &exported, &["--precision", precision])?);
    for round in 0..repeat.max(1) {
        // Whoever comes first may have to wait for memory, so that changes from round to round.
        for turn in 0..2 {
            let start = Instant::now();
            if (round + turn) % 2 == 0 {
                peak =
                    peak.max(export(&program, checkpoint, &exported, &["--precision", precision])?);
                exports.push(start.elapsed());
            } else {
                setup::run(Command::new("cp").arg("-r").arg(&exported).arg(&copied))?;
                copies.push(start.elapsed());
                let start = Instant::now();
                hash(&copied.join("onnx"))?;
                hashes.push(start.elapsed());
                fs::remove_dir_all(&copied)?;
            }
        }
    }
    let bytes: u64 = fs::read_dir(exported.join("onnx"))?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum::<Result<u64>>()?;
    fs::remove_dir_all(&exported)?;
    let (export, copy, hash) = (median(exports), median(copies), median(hashes));
    println!("written          {:>8.1} MB", bytes as f64 / 1e6);
    println!("export           {:>8.2} s", export.as_secs_f64());
    println!("copy             {:>8.2} s", copy.as_secs_f64());
    println!("sha256sum        {:>8.2} s", hash.as_secs_f64());
    println!("export / copy    {:>8.2}", export.as_secs_f64() / copy.as_secs_f64());
    let both = (copy + hash).as_secs_f64();
    println!("... and hash     {:>8.2}", export.as_secs_f64() / both);
    println!("peak resident    {:>8.1} MB", peak as f64 / 1e6);
    println!("medians of {} runs each", repeat.max(1));
    Ok(())
}

/// The sha256 of every file of a folder, which an export finds out as well.
fn hash(folder: &Path) -> Result<()> {
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    setup::run(Command::new("sha256sum").args(files).stdout(Stdio::null()))
}

/// Exports once; the largest resident size in bytes, mapped pages included.
pub(crate) fn export(
    program: &Path,
    checkpoint: &Path,
    out: &Path,
    arguments: &[&str],
) -> Result<u64> {
    let mut command = Command::new(program);
    command.arg(checkpoint).arg("-o").arg(out).args(["--force", "--json"]).args(arguments);
    let (_, peak) = peak::run(&mut command)?;
    ensure!(peak > 0, "this system does not tell how much memory a program takes");
    Ok(peak)
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
