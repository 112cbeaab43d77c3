//! How much memory a program takes.

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// Runs a program; what it prints, and its largest resident size in bytes (0 where there is no
/// `/proc`).
pub(crate) fn run(command: &mut Command) -> Result<(Vec<u8>, u64)> {
    let name = format!("{command:?}");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    let mut stdout = child.stdout.take().context("the program has no output")?;
    let reader = thread::spawn(move || {
        let mut output = Vec::new();
        stdout.read_to_end(&mut output).map(|_| output)
    });
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let status = loop {
        let status = fs::read_to_string(&status_file).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(1024 * kilobytes.unwrap_or(0_u64));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(2));
    };
    ensure!(status.success(), "{name} failed ({status})");
    let output = reader.join().ok().context("the output could not be read")??;
    Ok((output, peak))
}
