//! Kernels for x86-64.

mod avx2;
mod avx512;
mod tiles;

pub(crate) use avx2::{has_avx2, run_avx2};
pub(crate) use avx512::{has_avx512_vnni, run_avx512_vnni};

/// Asks for the cache lines of `size_bytes` bytes: in the second-level cache, which waits for twice as many lines at
/// once as the first and leaves that one to what is computed with.
#[allow(unsafe_code)]
#[inline(always)]
pub(crate) fn prefetch(start: *const u8, size_bytes: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for offset in (0..size_bytes).step_by(64) {
        // SAFETY: every x86-64 CPU has SSE, and a prefetch accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(offset).cast()) };
    }
}
