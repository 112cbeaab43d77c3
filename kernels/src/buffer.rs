//! Memory for packed weights and for what is computed on the way.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::Cell,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::LocalKey,
};

/// A cache line, and a vector of AVX-512.
pub(crate) const LINE: usize = 64;

/// Pages that the processor finds without a walk through several tables.
const HUGE_PAGE: usize = 2 << 20;

/// What small weights share: together they fill huge pages, which each by itself does not.
const SHARED: usize = 32 << 20;

/// Memory that is given back with the last buffer in it.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it only owns the bytes; who may read and write them is said by the buffers in it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` bytes, which are more than none.
    fn new(len: usize) -> Self {
        // Large ones start at a huge page, so that these can be used; the rest of the last one is
        // small pages, and takes no more memory than it has.
        let alignment = if len >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let layout = Layout::from_size_align(len, alignment).expect("sizes are checked before");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let memory = Memory { start, layout };
        memory.advise_huge_pages();
        memory
    }

    /// Weights are read from end to end for each token: fewer pages are 4 to 7 % of that.
    fn advise_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.layout.size() >= HUGE_PAGE {
            let whole = self.layout.size() / HUGE_PAGE * HUGE_PAGE;
            // SAFETY: the range is this memory; the advice changes no content. A kernel that does not
            // take it is as well.
            unsafe { libc::madvise(self.start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Bytes that start at a cache line and are written before they are read.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// Where they lie; none are nowhere.
    _memory: Option<Arc<Memory>>,
}

// SAFETY: its bytes are its own, as a `Box<[u8]>`'s are.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) const fn empty() -> Self {
        Buffer { start: NonNull::dangling(), len: 0, _memory: None }
    }

    /// Bytes without content.
    pub(crate) fn unwritten(len: usize) -> Self {
        if len == 0 {
            return Buffer::empty();
        }
        let memory = Memory::new(len);
        Buffer { start: memory.start, len, _memory: Some(Arc::new(memory)) }
    }

    /// The same for what stays: small ones lie beside each other.
    pub(crate) fn unwritten_to_stay(len: usize) -> Self {
        /// Where there may still be room, and the bytes that are taken.
        static LAST: Mutex<(Weak<Memory>, usize)> = Mutex::new((Weak::new(), 0));
        if len == 0 || len > SHARED / 2 {
            return Buffer::unwritten(len);
        }
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, taken) = match last.0.upgrade() {
            Some(memory) if last.1 + len <= SHARED => (memory, last.1),
            _ => (Arc::new(Memory::new(SHARED)), 0),
        };
        *last = (Arc::downgrade(&memory), (taken + len).next_multiple_of(LINE));
        // SAFETY: within the memory.
        let start = unsafe { memory.start.add(taken) };
        Buffer { start, len, _memory: Some(memory) }
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// A thread's scratch memory while it is used.
pub(crate) struct Scratch {
    home: &'static LocalKey<Cell<Buffer>>,
    buffer: Buffer,
}

impl Scratch {
    /// At least `len` bytes without content.
    pub(crate) fn take(home: &'static LocalKey<Cell<Buffer>>, len: usize) -> Self {
        // Out of its place meanwhile, so that who takes it again gets memory of its own.
        let mut buffer = home.replace(Buffer::empty());
        if buffer.len() < len {
            buffer = Buffer::unwritten(len.next_multiple_of(LINE));
        }
        Scratch { home, buffer }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.buffer.as_mut_ptr()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.home.set(std::mem::replace(&mut self.buffer, Buffer::empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_lies_beside_each_other_and_not_in_each_other() {
        let mut buffers: Vec<_> =
            (0..100).map(|i| Buffer::unwritten_to_stay((i + 1) * 20_001)).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            // SAFETY: as many bytes as it has.
            unsafe { buffer.as_mut_ptr().write_bytes(i as u8, buffer.len()) };
        }
        buffers.retain(|buffer| buffer.len() % 2 == 0);
        for buffer in &buffers {
            // SAFETY: written above.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), buffer.len()) };
            let expected = (buffer.len() / 20_001 - 1) as u8;
            assert!(bytes.iter().all(|&byte| byte == expected));
            assert!(buffer.as_ptr().addr().is_multiple_of(LINE));
        }
        let memories: std::collections::HashSet<_> =
            buffers.iter().filter_map(|buffer| buffer._memory.as_ref()).map(Arc::as_ptr).collect();
        assert!(memories.len() < buffers.len() / 4, "{} memories", memories.len());
    }
}
