//! The global allocator, and returning freed memory to the kernel.
//!
//! glibc keeps freed memory for the next allocation, and it keeps more the larger the blocks were.
//! After a few bodies and answers of some MiB an idle proxy would stay tens of MiB large. Forbidding
//! glibc to keep large blocks (`M_MMAP_THRESHOLD`) doubles the time of a 1 MiB echo, because the kernel
//! then maps every page of a buffer again. So the allocator keeps large blocks while they are reused,
//! and the proxy returns them to the kernel shortly after the last one was freed.
//!
//! Source: mallopt(3), `M_MMAP_THRESHOLD`; `malloc_trim(3)`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which also notes when a large block is freed.
#[derive(Debug)]
pub struct TrackingAllocator;

/// A block of at least this size is worth returning. Messages of the usual size are smaller.
const LARGE: usize = 64 * 1024;

#[global_allocator]
static ALLOCATOR: TrackingAllocator = TrackingAllocator;

/// Whether a large block was freed since the last [`trim`].
static FREED_LARGE_BLOCK: AtomicBool = AtomicBool::new(false);

/// Whether the allocator may hold large blocks that [`trim`] can return.
#[must_use]
pub fn has_freed_large_blocks() -> bool {
    FREED_LARGE_BLOCK.load(Ordering::Relaxed)
}

/// Returns unused memory to the kernel. Takes about a millisecond for each 10 MiB.
pub fn trim() {
    FREED_LARGE_BLOCK.store(false, Ordering::Relaxed);
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "only the C library knows which memory it keeps")]
    // SAFETY: malloc_trim(3) may be called at any time from any thread, and moves no block.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn note_freed(size: usize) {
    if size >= LARGE {
        FREED_LARGE_BLOCK.store(true, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait")]
// SAFETY: every call goes unchanged to the system's allocator, which keeps the contract;
// `note_freed` neither allocates nor panics.
unsafe impl GlobalAlloc for TrackingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note_freed(layout.size());
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note_freed(layout.size());
        // SAFETY: the caller's obligations are the system's.
        unsafe { System.dealloc(block, layout) }
    }
}
