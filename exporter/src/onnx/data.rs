//! A data file: written front to back on a thread of its own, and hashed on another one, so that who
//! makes the bytes waits for neither.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use sha2::{Digest, Sha256};

use crate::error::ExportError;

/// One file that was written.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Data of this many bytes and more starts on a page, so that readers can map it.
const PAGE: usize = 4096;
/// Other data starts on a cache line.
const LINE: usize = 64;

/// A data file that is made when the first bytes come.
pub(super) struct DataFile {
    name: String,
    path: PathBuf,
    open: Option<OpenFile>,
}

struct OpenFile {
    position: u64,
    /// Filled buffers to the writer, and from there to the hasher; empty ones come back.
    filled: Option<mpsc::SyncSender<Vec<u8>>>,
    emptied: mpsc::Receiver<Vec<u8>>,
    /// Gone once it has ended.
    writer: Option<thread::JoinHandle<io::Result<()>>>,
    hasher: Option<thread::JoinHandle<Sha256>>,
}

impl DataFile {
    pub(super) fn new(dir: &Path, name: &str) -> Self {
        DataFile { name: name.to_owned(), path: dir.join(name), open: None }
    }

    /// Goes to where data of this length can start, and tells where that is.
    pub(super) fn start(&mut self, length: usize) -> Result<u64, ExportError> {
        if self.open.is_none() {
            let open = OpenFile::create(&self.path).map_err(|e| self.error(e))?;
            self.open = Some(open);
        }
        let position = self.open.as_ref().map_or(0, |open| open.position);
        let start = position.next_multiple_of(if length >= PAGE { PAGE } else { LINE } as u64);
        self.append(&vec![0; (start - position) as usize])?;
        Ok(start)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        let appended = self.open.as_mut().map_or(Ok(()), |open| open.append(bytes));
        appended.map_err(|e| self.error(e))
    }

    /// The file that was written, if anything was.
    pub(super) fn finish(mut self) -> Result<Option<WrittenFile>, ExportError> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let (bytes, sha256) = open.finish().map_err(|e| self.error(e))?;
        Ok(Some(WrittenFile { name: self.name, bytes, sha256 }))
    }

    fn error(&self, source: io::Error) -> ExportError {
        ExportError::Write { path: self.path.clone(), source }
    }
}

impl OpenFile {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let (filled, to_write) = mpsc::sync_channel::<Vec<u8>>(4);
        let (written, to_hash) = mpsc::sync_channel::<Vec<u8>>(4);
        let (give_back, emptied) = mpsc::channel();
        let writer = thread::spawn(move || {
            for buffer in to_write {
                file.write_all(&buffer)?;
                written.send(buffer).map_err(|_| io::Error::other("the hashing thread stopped"))?;
            }
            Ok(())
        });
        let hasher = thread::spawn(move || {
            let mut sha = Sha256::new();
            for buffer in to_hash {
                sha.update(&buffer);
                // Who makes the bytes may be gone; then nobody needs the buffer.
                let _ = give_back.send(buffer);
            }
            sha
        });
        Ok(OpenFile {
            position: 0,
            filled: Some(filled),
            emptied,
            writer: Some(writer),
            hasher: Some(hasher),
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        let mut buffer = self.emptied.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        // The writer stops at its first error.
        match self.filled.as_ref().map(|filled| filled.send(buffer)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.join().err().unwrap_or_else(stopped)),
        }
    }

    /// The file's size and sha256.
    fn finish(mut self) -> io::Result<(u64, String)> {
        self.join()?;
        let hasher = self.hasher.take().ok_or_else(stopped)?;
        let sha = hasher.join().map_err(|_| stopped())?;
        Ok((self.position, hex::encode(sha.finalize())))
    }

    /// Waits for the writer.
    fn join(&mut self) -> io::Result<()> {
        self.filled = None;
        let writer = self.writer.take().ok_or_else(stopped)?;
        writer.join().map_err(|_| stopped())?
    }
}

/// The file is closed before its folder is removed: not every system removes open files.
impl Drop for OpenFile {
    fn drop(&mut self) {
        // Whoever cares for the error has called `finish`.
        let _ = self.join();
    }
}

fn stopped() -> io::Error {
    io::Error::other("the writing thread stopped")
}
