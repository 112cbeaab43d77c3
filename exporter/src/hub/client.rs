//! Questions to a hub over HTTP. Redirects are followed here rather than in ureq: a token must stay
//! with the hub, and what the hub says of a file is in the answer that redirects.

use std::{io::Read, time::Duration};

use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, Request, Response, StatusCode, Uri, header},
};

use super::{
    FetchError, HubError, HubSettings, address,
    names::{BlobName, CommitId},
};

const PUBLIC_HUB: &str = "https://huggingface.co";
const MAX_REDIRECTS: usize = 10;
const COMMIT: &str = "X-Repo-Commit";
const ETAG: &str = "ETag";

/// One model on a hub.
pub(super) struct Client {
    agent: Agent,
    hub: Uri,
    model: String,
    token: Option<String>,
    timeout: Duration,
}

/// A file of a commit.
pub(super) struct RemoteFile {
    /// Name of its content.
    pub(super) blob: BlobName,
    /// Its size in bytes, where the hub tells it.
    pub(super) size: Option<u64>,
    /// Position of the first byte that is read.
    pub(super) start: u64,
    body: BodyReader<'static>,
    timeout: Duration,
}

impl RemoteFile {
    /// Reads the next bytes; none at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        self.body.read(buffer).map_err(|error| http_error(error.into(), self.timeout))
    }
}

impl Client {
    /// A client for the model `id`.
    pub(super) fn new(id: &str, settings: &HubSettings) -> Result<Self, HubError> {
        let hub = settings.endpoint.as_deref().unwrap_or(PUBLIC_HUB).trim_end_matches('/');
        let no_address = || HubError::Endpoint(hub.to_owned());
        let timeout = Some(settings.timeout);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Sizes are those of the files.
            .accept_encoding("identity")
            .user_agent(concat!("lfm2vl-export/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        Ok(Client {
            agent: config.build().into(),
            hub: address::parse(hub).ok_or_else(no_address)?,
            model: format!("{hub}/{id}/resolve"),
            token: settings.token.clone(),
            timeout: settings.timeout,
        })
    }

    /// The newest commit, as the answer for `file` tells it.
    pub(super) fn latest(&self, file: &str) -> Result<CommitId, FetchError> {
        let Answer { about, response } = self.ask("HEAD", "main", file, 0)?;
        let status = response.status();
        if status != StatusCode::OK && !is_redirect(status) {
            return Err(FetchError::Status(status.as_u16()));
        }
        Ok(about.ok_or(FetchError::NoHeader(COMMIT))?.commit)
    }

    /// A file of a commit, from the byte `start` on where the hub goes along with that.
    pub(super) fn file(
        &self,
        commit: &CommitId,
        file: &str,
        start: u64,
    ) -> Result<Reply, FetchError> {
        let Answer { about, response } = self.ask("GET", commit.as_str(), file, start)?;
        let is_part = start > 0 && response.status() == StatusCode::PARTIAL_CONTENT;
        // The hub has answered already where a store follows, which knows no commits.
        let of_store = about.is_some() && !response.headers().contains_key(COMMIT);
        match response.status() {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if is_part => {}
            status if of_store => return Err(FetchError::Store(status.as_u16())),
            StatusCode::NOT_FOUND => {
                let confirmed = about.is_some_and(|about| about.commit == *commit);
                return Ok(Reply::Absent { confirmed });
            }
            status => return Err(FetchError::Status(status.as_u16())),
        }
        let about = about.ok_or(FetchError::NoHeader(COMMIT))?;
        if about.commit != *commit {
            let (expected, found) = (commit.as_str().to_owned(), about.commit.as_str().to_owned());
            return Err(FetchError::OtherCommit { expected, found });
        }
        let etag = about.etag.ok_or(FetchError::NoHeader(ETAG))?;
        let blob = BlobName::from_etag(&etag).ok_or_else(|| wrong_value(ETAG, &etag))?;
        let size = size(response.headers(), about.size, is_part.then_some(start))?;
        Ok(Reply::File(RemoteFile {
            blob,
            size,
            start: if is_part { start } else { 0 },
            body: response.into_body().into_reader(),
            timeout: self.timeout,
        }))
    }

    /// Asks for a file of a revision and follows redirects; for HEAD no further than to what the
    /// hub says of the file.
    fn ask(
        &self,
        method: &str,
        revision: &str,
        file: &str,
        start: u64,
    ) -> Result<Answer, FetchError> {
        let first = format!("{}/{revision}/{}", self.model, address::encode(file));
        let mut address = address::parse(&first).ok_or(FetchError::Location(first))?;
        let mut about: Option<About> = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&address);
            if let Some(token) = &self.token
                && address::same_origin(&address, &self.hub)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let request = request.body(()).map_err(|error| FetchError::Http(error.into()))?;
            let response =
                self.agent.run(request).map_err(|error| http_error(error, self.timeout))?;
            about = About::read(response.headers())?.or(about);
            if !is_redirect(response.status()) || (method == "HEAD" && about.is_some()) {
                return Ok(Answer { about, response });
            }
            let location = text(response.headers(), "Location")?.ok_or(FetchError::NoLocation)?;
            address = address::join(&address, location)
                .ok_or_else(|| FetchError::Location(shorten(location)))?;
        }
        Err(FetchError::Redirects(MAX_REDIRECTS))
    }
}

/// What a hub answers to the question for a file.
pub(super) enum Reply {
    /// It has the file.
    File(RemoteFile),
    /// It has no such file; confirmed where it says so of the very commit.
    Absent {
        /// Whether it does.
        confirmed: bool,
    },
}

struct Answer {
    about: Option<About>,
    response: Response<Body>,
}

/// What the headers of a hub's answer tell, as huggingface_hub's `get_hf_file_metadata` reads them.
struct About {
    commit: CommitId,
    etag: Option<String>,
    size: Option<u64>,
}

impl About {
    /// Nothing where the answer comes from somewhere else, such as the store of large files.
    fn read(headers: &HeaderMap) -> Result<Option<Self>, FetchError> {
        let Some(commit) = text(headers, COMMIT)? else {
            return Ok(None);
        };
        let commit = CommitId::parse(commit).ok_or_else(|| wrong_value(COMMIT, commit))?;
        let linked = text(headers, "X-Linked-Etag")?;
        let etag = linked.or(text(headers, ETAG)?).map(str::to_owned);
        let size = number(headers, "X-Linked-Size")?;
        Ok(Some(About { commit, etag, size }))
    }
}

/// The size of a file: what the hub says of it, which the length of what comes must not contradict.
/// `part` is where the answer should start when it is a part of the file.
fn size(
    headers: &HeaderMap,
    linked: Option<u64>,
    part: Option<u64>,
) -> Result<Option<u64>, FetchError> {
    let announced = match part {
        None => number(headers, "Content-Length")?,
        Some(start) => {
            const RANGE: &str = "Content-Range";
            let range = text(headers, RANGE)?.ok_or(FetchError::NoHeader(RANGE))?;
            let total = range.strip_prefix(&format!("bytes {start}-"));
            let total = total.and_then(|rest| rest.split_once('/')?.1.parse().ok());
            Some(total.ok_or_else(|| wrong_value(RANGE, range))?)
        }
    };
    match (linked, announced) {
        (Some(expected), Some(found)) if expected != found => {
            Err(FetchError::Size { expected, found })
        }
        (None, None) if !headers.contains_key(header::TRANSFER_ENCODING) => Err(FetchError::NoSize),
        (linked, announced) => Ok(linked.or(announced)),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, FetchError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(wrong_value(name, &String::from_utf8_lossy(value.as_bytes()))),
    }
}

fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, FetchError> {
    let Some(text) = text(headers, name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| wrong_value(name, text))
}

fn wrong_value(header: &'static str, value: &str) -> FetchError {
    FetchError::Header { header, value: shorten(value) }
}

/// The beginning of what a hub sent, for a message.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

fn http_error(error: ureq::Error, timeout: Duration) -> FetchError {
    match error {
        ureq::Error::Timeout(_) => FetchError::Silent(timeout),
        other => FetchError::Http(other),
    }
}
