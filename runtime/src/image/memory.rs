//! Memory for patches.

use std::mem::MaybeUninit;

/// Values that are still to be written.
///
/// On Linux the system is asked for huge pages: to get ten megabytes in small ones takes longer
/// than to resize an image.
pub(super) fn unwritten(count: usize) -> Vec<MaybeUninit<f32>> {
    let mut values = Box::new_uninit_slice(count).into_vec();
    ask_for_huge_pages(&mut values);
    values
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &mut [MaybeUninit<f32>]) {}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(values: &mut [MaybeUninit<f32>]) {
    const HUGE: usize = 2 << 20;
    let range = values.as_mut_ptr_range();
    let start = (range.start as usize).next_multiple_of(HUGE);
    let end = range.end as usize / HUGE * HUGE;
    if start < end {
        let first = range.start.wrapping_byte_add(start - range.start as usize);
        // SAFETY: the range is inside of memory that we hold alone, and the call changes neither
        // what is in it nor what may be done with it. If the system refuses, nothing is lost.
        unsafe { libc::madvise(first.cast(), end - start, libc::MADV_HUGEPAGE) };
    }
}
