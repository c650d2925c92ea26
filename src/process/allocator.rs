//! What the allocator keeps of memory that was freed, and giving it back.
//!
//! glibc keeps freed memory for the next allocation, and the more of it the larger what it was asked
//! for before: after some bodies and answers of a few MiB an idle proxy would stay tens of MiB large.
//! Asking it never to keep large blocks (`M_MMAP_THRESHOLD`) doubles the time of a 1 MiB echo, since every
//! page of a buffer is then mapped anew. So blocks are kept while they are in use again and again, and what is left
//! of them is given back a moment after one was freed.
//!
//! Source: mallopt(3), `M_MMAP_THRESHOLD`; `malloc_trim(3)`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which is watched for large blocks that are freed.
#[derive(Debug)]
pub struct Heap;

/// A block from this size on is worth giving back: messages of the usual size are below.
const LARGE: usize = 64 * 1024;

#[global_allocator]
static HEAP: Heap = Heap;

/// A large block was freed since the last time that memory was given back.
static UNTIDY: AtomicBool = AtomicBool::new(false);

/// Whether there is something that could be given back.
#[must_use]
pub fn is_untidy() -> bool {
    UNTIDY.load(Ordering::Relaxed)
}

/// Gives back to the kernel what is not in use. Takes about a millisecond for each 10 MiB.
pub fn tidy() {
    UNTIDY.store(false, Ordering::Relaxed);
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the C library alone knows what it keeps")]
    // SAFETY: malloc_trim(3) may be called at any time from any thread, and moves no block.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn freed(size: usize) {
    if size >= LARGE {
        UNTIDY.store(true, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call is passed on as it is to the system's allocator, which keeps the contract;
// what is done besides neither allocates nor panics.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        freed(layout.size());
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
