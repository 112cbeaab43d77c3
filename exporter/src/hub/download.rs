//! Files of one commit, from the hub into the cache.

use std::{ops::ControlFlow, path::PathBuf, thread};

use super::{
    FetchError, HubError, HubSettings,
    cache::{ModelCache, NewBlob},
    client::{Client, RemoteFile, Reply},
    names::{BlobName, CommitId},
};
use crate::ProgressDisplay;

/// How often in a row a transfer may bring nothing before it is given up.
const ATTEMPTS: usize = 5;
/// Bytes read at a time.
const CHUNK: usize = 1 << 17;

/// The download of one commit.
pub(super) struct Download<'a> {
    pub(super) id: &'a str,
    pub(super) client: Client,
    pub(super) cache: &'a ModelCache,
    pub(super) commit: CommitId,
    pub(super) settings: &'a HubSettings,
    pub(super) go_on: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl Download<'_> {
    /// A file of the commit, which is fetched where the cache does not have it; nothing where the
    /// commit does not have it.
    pub(super) fn file(&mut self, file: &str) -> Result<Option<PathBuf>, HubError> {
        if let Some(path) = self.cache.file(&self.commit, file) {
            return Ok(Some(path));
        }
        if self.cache.is_absent(&self.commit, file) {
            return Ok(None);
        }
        let remote = match self.ask(file, 0)? {
            Reply::File(remote) => remote,
            Reply::Absent { confirmed } => {
                if confirmed {
                    self.cache.set_absent(&self.commit, file);
                }
                return Ok(None);
            }
        };
        let blob = match self.cache.blob(&remote.blob, remote.size) {
            Some(blob) => blob,
            None => self.fetch(file, remote)?,
        };
        self.cache.link(&self.commit, file, &blob).map(Some)
    }

    fn ask(&mut self, file: &str, start: u64) -> Result<Reply, HubError> {
        self.check_interrupt()?;
        let reply = self.client.file(&self.commit, file, start);
        reply.map_err(|error| error.of(self.id, file))
    }

    /// Reads a file into the cache; where that breaks off, it is taken up again.
    fn fetch(&mut self, file: &str, remote: RemoteFile) -> Result<PathBuf, HubError> {
        let (name, size) = (remote.blob.clone(), remote.size);
        let mut blob = self.cache.create_blob(&name)?;
        let task = format!("downloading {file}");
        let mut progress = ProgressDisplay::new(&task, self.settings.progress);
        let mut next = Ok(remote);
        let mut failures = 0;
        loop {
            let before = blob.len();
            match next.and_then(|remote| self.transfer(file, remote, &mut blob, &mut progress)) {
                Ok(()) => break,
                Err(HubError::Fetch { source, .. })
                    if source.is_passing() && failures < ATTEMPTS =>
                {
                    failures = if blob.len() > before { 0 } else { failures + 1 };
                }
                Err(error) => return Err(error),
            }
            thread::sleep(self.settings.timeout / 10);
            next = self.take_up(file, &name, size, blob.len());
        }
        progress.finish();
        blob.finish()
    }

    /// The rest of a file from `start` on, or all of it.
    fn take_up(
        &mut self,
        file: &str,
        name: &BlobName,
        size: Option<u64>,
        start: u64,
    ) -> Result<RemoteFile, HubError> {
        match self.ask(file, start)? {
            Reply::File(remote) if remote.blob == *name && remote.size == size => Ok(remote),
            Reply::File(_) => Err(FetchError::Changed.of(self.id, file)),
            Reply::Absent { .. } => Err(FetchError::Status(404).of(self.id, file)),
        }
    }

    /// Reads what there is to read, and checks that it is the whole file.
    fn transfer(
        &mut self,
        file: &str,
        mut remote: RemoteFile,
        blob: &mut NewBlob,
        progress: &mut ProgressDisplay,
    ) -> Result<(), HubError> {
        if remote.start != blob.len() {
            blob.clear()?;
        }
        let (size, id) = (remote.size, self.id);
        let wrong_size = |expected, found| Err(FetchError::Size { expected, found }.of(id, file));
        let mut buffer = vec![0; CHUNK];
        loop {
            self.check_interrupt()?;
            progress.set(blob.len(), size);
            let count = remote.read(&mut buffer).map_err(|error| error.of(id, file))?;
            match size {
                Some(size) if count == 0 && blob.len() < size => {
                    return wrong_size(size, blob.len());
                }
                Some(size) if blob.len() + count as u64 > size => {
                    return wrong_size(size, blob.len() + count as u64);
                }
                _ if count == 0 => return Ok(()),
                _ => blob.write(&buffer[..count])?,
            }
        }
    }

    fn check_interrupt(&mut self) -> Result<(), HubError> {
        match (self.go_on)() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HubError::Interrupted),
        }
    }
}
