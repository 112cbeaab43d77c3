//! Expressions that match names of modules, as Python's `re` has them.

use fancy_regex::Regex;

use super::AdapterError;

/// An expression of `adapter_config.json`.
#[derive(Debug)]
pub(super) struct Pattern {
    key: &'static str,
    source: String,
    regex: Regex,
}

impl Pattern {
    /// Matches the whole name: `re.fullmatch`, as `match_target_against_key` in peft's
    /// `utils/other.py` does.
    pub(super) fn whole(key: &'static str, source: &str) -> Result<Self, AdapterError> {
        Self::new(key, source, &format!(r"\A(?:{source})\z"))
    }

    /// Matches the end of the name from the start of one of its parts, as `get_pattern_key` in peft's
    /// `utils/other.py` does.
    pub(super) fn end(key: &'static str, source: &str) -> Result<Self, AdapterError> {
        Self::new(key, source, &format!(r"\A(.*\.)?({source})\z"))
    }

    /// Matches a module and all within it, as `check_target_module_exists` in peft's
    /// `tuners/tuners_utils.py` finds what is saved whole.
    pub(super) fn within(key: &'static str, source: &str) -> Result<Self, AdapterError> {
        Self::new(key, source, &format!(r"\A(\A|.*\.){source}(\z|\..*)"))
    }

    /// Finds the number of the layer in a list of this name, as the same function does.
    pub(super) fn layer(key: &'static str, source: &str) -> Result<Self, AdapterError> {
        Self::new(key, source, &format!(r"\A(?:\A|.*?\.){source}\.(?P<idx>\d+)\."))
    }

    fn new(key: &'static str, source: &str, anchored: &str) -> Result<Self, AdapterError> {
        match Regex::new(anchored) {
            Ok(regex) => Ok(Pattern { key, source: source.to_owned(), regex }),
            Err(error) => Err(pattern_error(key, source, &error)),
        }
    }

    pub(super) fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(name).map_err(|error| self.error(&error))
    }

    /// The number that a pattern of [`Pattern::layer`] finds.
    pub(super) fn layer_of(&self, name: &str) -> Result<Option<u64>, AdapterError> {
        let captures = self.regex.captures(name).map_err(|error| self.error(&error))?;
        let number = captures.and_then(|captures| captures.name("idx"));
        Ok(number.and_then(|number| number.as_str().parse().ok()))
    }

    fn error(&self, error: &fancy_regex::Error) -> AdapterError {
        pattern_error(self.key, &self.source, error)
    }
}

fn pattern_error(key: &str, source: &str, error: &fancy_regex::Error) -> AdapterError {
    let reason = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
    AdapterError::Pattern { key: key.to_owned(), pattern: super::short(source), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_python() {
        let end = |source: &str, name: &str| Pattern::end("k", source).unwrap().matches(name);
        assert!(end("v_proj", "a.v_proj").unwrap());
        assert!(end("v_proj", "v_proj").unwrap());
        assert!(!end("proj", "a.v_proj").unwrap());
        assert!(!end("v_proj", "a.v_proj.b").unwrap());
        assert!(end(r"^a\.1\..*q_proj", "a.1.b.q_proj").unwrap());
        assert!(!end(r"^a\.1\..*q_proj", "c.a.1.b.q_proj").unwrap());
        assert!(end("q|v", "a.v").unwrap());
        let whole = |source: &str, name: &str| Pattern::whole("k", source).unwrap().matches(name);
        assert!(whole(r"(?!.*vision).*\.(q|v)_proj", "language.q_proj").unwrap());
        assert!(!whole(r"(?!.*vision).*\.(q|v)_proj", "vision.q_proj").unwrap());
        assert!(!whole("a|a.b", "a.c").unwrap());
        assert!(whole("a|a.b", "a.b").unwrap());
        let layer = Pattern::layer("k", "layers").unwrap();
        assert_eq!(layer.layer_of("model.layers.12.mlp.3.w").unwrap(), Some(12));
        assert_eq!(layer.layer_of("layers.12.w").unwrap(), Some(12));
        assert_eq!(layer.layer_of("model.blocks.12.w").unwrap(), None);
    }

    #[test]
    fn bad_and_endless_expressions_are_refused_in_one_line() {
        for source in ["(", "[", "a{2", "(?P<x", "*", &"(".repeat(10_000), "(?<=a+)b("] {
            if let Err(error) = Pattern::whole("target_modules", source) {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() < 400, "{text}");
            }
        }
        let endless = Pattern::whole("target_modules", r"(?=(a+)+$)(a|a)*\1b").unwrap();
        let error = endless.matches(&"a".repeat(100)).unwrap_err().to_string();
        assert!(error.contains("target_modules"), "{error}");
    }
}
