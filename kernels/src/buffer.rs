//! Memory for packed weights and for what is computed on the way.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::Cell,
    ptr::NonNull,
    thread::LocalKey,
};

/// A cache line, and a vector of AVX-512.
pub(crate) const LINE: usize = 64;

/// Pages that the processor finds without a walk through several tables.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that start at a cache line and are written before they are read.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its bytes, as a `Box<[u8]>` does.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) const fn empty() -> Self {
        Buffer { start: NonNull::dangling(), len: 0 }
    }

    /// Bytes without content.
    pub(crate) fn unwritten(len: usize) -> Self {
        if len == 0 {
            return Buffer::empty();
        }
        let layout = Self::layout(len);
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let buffer = Buffer { start, len };
        buffer.advise_huge_pages();
        buffer
    }

    fn layout(len: usize) -> Layout {
        // Large ones start at a huge page, so that these can be used; the rest of the last one is
        // small pages, and takes no more memory than it has.
        let alignment = if len >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        Layout::from_size_align(len, alignment).expect("sizes are checked before")
    }

    /// Weights are read from end to end for each token: fewer pages are 4 to 7 % of that.
    fn advise_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.len >= HUGE_PAGE {
            let whole = self.len / HUGE_PAGE * HUGE_PAGE;
            // SAFETY: the range is this buffer's; the advice changes no content. A kernel that does
            // not take it is as well.
            unsafe { libc::madvise(self.start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        }
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

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
        }
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
