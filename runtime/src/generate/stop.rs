//! Stop strings in streamed text.

/// Passes text on, but neither a stop string nor anything that may become one.
pub(super) struct StopText {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// Text that is certain to be no part of a stop string.
    Text(String),
    /// The last text; a stop string followed it.
    Stopped(String),
}

impl StopText {
    pub(super) fn new(stops: &[String]) -> Self {
        StopText { stops: stops.to_vec(), held: String::new() }
    }

    /// Takes in the next piece.
    pub(super) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        if let Some(start) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(start);
            return Passed::Stopped(std::mem::take(&mut self.held));
        }
        let may_begin_stop =
            |tail: &str| self.stops.iter().any(|stop| !tail.is_empty() && stop.starts_with(tail));
        let boundaries = self.held.char_indices().map(|(at, _)| at);
        let safe = boundaries.into_iter().find(|&at| may_begin_stop(&self.held[at..]));
        let held = self.held.split_off(safe.unwrap_or(self.held.len()));
        Passed::Text(std::mem::replace(&mut self.held, held))
    }

    /// The text still held back, at the end.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
        let mut stop = StopText::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            match stop.push(piece) {
                Passed::Text(passed) => {
                    text += &passed;
                    assert!(stops.iter().all(|s| !text.contains(s)), "{text}");
                }
                Passed::Stopped(passed) => return (text + &passed, true),
            }
        }
        (text + &stop.finish(), false)
    }

    #[test]
    fn stop_strings_end_the_text_wherever_they_are_cut() {
        assert_eq!(run(&["###"], &["ab", "#", "#", "#", "c"]), ("ab".into(), true));
        assert_eq!(run(&["###"], &["ab##", "c##", "d"]), ("ab##c##d".into(), false));
        assert_eq!(run(&["END", "STOP"], &["so ST", "OP END"]), ("so ".into(), true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(run(&[], &["plain"]), ("plain".into(), false));
    }
}
