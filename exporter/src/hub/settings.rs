//! Which hub to ask and where to keep what it gives, from the same variables as huggingface_hub
//! (its `constants.py` and `utils/_auth.py`, version 2.4).

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
    time::Duration,
};

/// Which hub to ask, and where to keep what it gives.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Address of the hub; the public one when not given.
    pub endpoint: Option<String>,
    /// Access token, for models that need one.
    pub token: Option<String>,
    /// Folder of the cache; an error where it is needed and not given.
    pub cache: Option<PathBuf>,
    /// Whether to take what is in the cache and ask no hub.
    pub offline: bool,
    /// Whether the cache's snapshots link to its blobs; where that cannot be, they are copies.
    pub symlinks: bool,
    /// How long the hub may say nothing.
    pub timeout: Duration,
    /// Whether to show on stderr how far a download is: as a bar on a terminal, else as lines.
    pub progress: bool,
}

/// A day, in seconds.
const LONGEST_TIMEOUT: u64 = 86_400;

impl Default for HubSettings {
    fn default() -> Self {
        HubSettings {
            endpoint: None,
            token: None,
            cache: None,
            offline: false,
            symlinks: true,
            timeout: Duration::from_secs(10),
            progress: false,
        }
    }
}

impl HubSettings {
    /// From `HF_ENDPOINT`, `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`), `HF_HUB_CACHE`, `HF_HOME`,
    /// `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`,
    /// `HF_HUB_DISABLE_SYMLINKS`, `HF_HUB_DOWNLOAD_TIMEOUT` and the older names that
    /// huggingface_hub still knows.
    pub fn from_environment(progress: bool) -> Self {
        Self::from_variables(&|name| std::env::var_os(name), progress)
    }

    /// As [`from_environment`](Self::from_environment), with the values that `variable` gives.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, progress: bool) -> Self {
        let variables = Variables(variable);
        let home = variables.path("HF_HOME").or_else(|| {
            let caches = variables.path("XDG_CACHE_HOME");
            caches.or_else(|| Some(home()?.join(".cache"))).map(|caches| caches.join("huggingface"))
        });
        let in_home = |name| home.as_ref().map(|home| home.join(name));
        let seconds = variables.text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        let defaults = HubSettings::default();
        HubSettings {
            endpoint: variables.text("HF_ENDPOINT"),
            token: if variables.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                None
            } else {
                variables.token(in_home("token"))
            },
            cache: (variables.path("HF_HUB_CACHE"))
                .or_else(|| variables.path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| in_home("hub")),
            offline: match variables.text("HF_HUB_OFFLINE") {
                Some(value) => is_true(&value),
                None => variables.flag("TRANSFORMERS_OFFLINE"),
            },
            symlinks: !variables.flag("HF_HUB_DISABLE_SYMLINKS"),
            timeout: match seconds {
                Some(seconds @ 1..=LONGEST_TIMEOUT) => Duration::from_secs(seconds),
                _ => defaults.timeout,
            },
            progress,
        }
    }
}

fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// Variables by name; empty ones are as good as none.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Variables<'_> {
    fn value(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.value(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| is_true(&value))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(|value| self.expand(&value))
    }

    /// A path with `~`, `$NAME` and `${NAME}` replaced, as Python's `expanduser` and `expandvars`
    /// do it.
    fn expand(&self, path: &OsStr) -> PathBuf {
        let Some(text) = path.to_str() else { return path.into() };
        let (mut expanded, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once('$') {
            let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let (name, following) = braced.unwrap_or_else(|| {
                let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                after.split_at(after.find(is_end).unwrap_or(after.len()))
            });
            expanded += before;
            match self.text(name) {
                Some(value) => expanded += &value,
                None => expanded += &rest[before.len()..rest.len() - following.len()],
            }
            rest = following;
        }
        let path = PathBuf::from(expanded + rest);
        match (path.strip_prefix("~"), home()) {
            (Ok(below), Some(home)) => home.join(below),
            _ => path,
        }
    }

    /// The token of the variables, or of the file that `hf auth login` writes.
    fn token(&self, usual_file: Option<PathBuf>) -> Option<String> {
        let given = self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN"));
        let stored = || {
            let file = self.path("HF_TOKEN_PATH").or(usual_file)?;
            clean_token(&fs::read_to_string(file).ok()?)
        };
        given.and_then(|token| clean_token(&token)).or_else(stored)
    }
}

/// A token without the ends of lines that files and secrets have.
fn clean_token(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "").trim().to_owned();
    (!token.is_empty()).then_some(token)
}
