//! How far a long task is, on the standard error.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// How far a task is, in bytes: a bar on a terminal, and elsewhere lines that a log can live with.
pub struct ProgressDisplay(Form);

enum Form {
    Hidden,
    Bar(ProgressBar),
    Lines { lines: ProgressLines, start: Instant },
}

impl ProgressDisplay {
    /// The display of a task such as "downloading config.json".
    pub fn new(task: &str, is_shown: bool) -> Self {
        ProgressDisplay(if !is_shown {
            Form::Hidden
        } else if io::stderr().is_terminal() {
            Form::Bar(bar(task))
        } else {
            Form::Lines { lines: ProgressLines::new(task), start: Instant::now() }
        })
    }

    /// So many bytes are done, of so many where that is known.
    pub fn set(&mut self, done: u64, total: Option<u64>) {
        match &mut self.0 {
            Form::Hidden => {}
            Form::Bar(bar) => {
                if let Some(total) = total {
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            Form::Lines { lines, start } => {
                if let Some(line) = lines.set(done, total, start.elapsed()) {
                    eprintln!("{line}");
                }
            }
        }
    }

    /// The task is done. One that is dropped before leaves no bar behind.
    pub fn finish(self) {
        if let Form::Lines { lines, start } = self.0
            && let Some(line) = lines.end(start.elapsed())
        {
            eprintln!("{line}");
        }
    }
}

fn bar(task: &str) -> ProgressBar {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {elapsed} eta {eta}";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_style(style)
        .with_message(task.to_owned())
        .with_finish(ProgressFinish::AndClear)
}

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// The lines of a log: one at the start, one at the end, and between them one for each tenth, but none sooner than
/// [`PAUSE`] after the last.
struct ProgressLines {
    task: String,
    /// When the last line was, and how many tenths were done; none before the first.
    last: Option<(Duration, u64)>,
    done: u64,
}

impl ProgressLines {
    fn new(task: &str) -> Self {
        ProgressLines { task: task.to_owned(), last: None, done: 0 }
    }

    /// The next line, if there is one `at` this time since the start.
    fn set(&mut self, done: u64, total: Option<u64>, at: Duration) -> Option<String> {
        self.done = done;
        let total = total.filter(|&total| total > 0);
        let tenths = total.map_or(0, |total| (10.0 * done as f64 / total as f64) as u64);
        let Some((before, tenths_before)) = self.last else {
            self.last = Some((at, tenths));
            return Some(match total {
                Some(total) => format!("{}: {}", self.task, DecimalBytes(total)),
                None => self.task.clone(),
            });
        };
        // Where the end is not known, there are no tenths to wait for.
        let is_further = total.is_none_or(|total| tenths > tenths_before && done < total);
        if !is_further || at < before + PAUSE {
            return None;
        }
        self.last = Some((at, tenths));
        let done = DecimalBytes(done);
        Some(match total {
            Some(total) => {
                format!("{}: {} % ({done} of {})", self.task, 10 * tenths, DecimalBytes(total))
            }
            None => format!("{}: {done}", self.task),
        })
    }

    /// The last line, if there was a first one.
    fn end(&self, at: Duration) -> Option<String> {
        let (done, seconds) = (DecimalBytes(self.done), at.as_secs_f64());
        self.last.map(|_| format!("{}: done, {done} in {seconds:.1} s", self.task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// What a task prints that does a megabyte of `total` every so often.
    fn lines(total: Option<u64>, count: u64, every: Duration) -> Vec<String> {
        let mut lines = ProgressLines::new("writing");
        let at = |i: u64| every * i as u32;
        let set = (0..=count).filter_map(|i| lines.set(i * MB, total, at(i)));
        let mut all: Vec<String> = set.collect();
        all.extend(lines.end(at(count)));
        all
    }

    #[test]
    fn a_slow_task_has_a_line_for_each_tenth() {
        let all = lines(Some(100 * MB), 100, Duration::from_secs(2));
        assert_eq!(all.len(), 11, "{all:?}");
        assert_eq!(all[0], "writing: 100.00 MB");
        assert_eq!(all[1], "writing: 10 % (10.00 MB of 100.00 MB)");
        assert_eq!(all[9], "writing: 90 % (90.00 MB of 100.00 MB)");
        assert_eq!(all[10], "writing: done, 100.00 MB in 200.0 s");
    }

    #[test]
    fn a_fast_task_has_a_line_every_ten_seconds_at_most() {
        let all = lines(Some(100 * MB), 100, Duration::from_millis(250));
        assert_eq!(all.len(), 4, "{all:?}");
        assert!(all[1].starts_with("writing: 40 %") && all[2].starts_with("writing: 80 %"));
        assert_eq!(lines(Some(MB), 1, Duration::from_millis(1)).len(), 2);
    }

    #[test]
    fn a_task_whose_end_is_not_known_has_a_line_every_ten_seconds() {
        let all = lines(None, 30, Duration::from_secs(1));
        let expected = ["writing", "writing: 10.00 MB", "writing: 20.00 MB", "writing: 30.00 MB"];
        assert_eq!(all[..4], expected);
        assert_eq!(all[4..], ["writing: done, 30.00 MB in 30.0 s"]);
    }

    #[test]
    fn nothing_to_do_is_done_at_once() {
        assert_eq!(lines(Some(0), 0, PAUSE), ["writing", "writing: done, 0 B in 0.0 s"]);
        assert_eq!(ProgressLines::new("writing").end(PAUSE), None);
    }
}
