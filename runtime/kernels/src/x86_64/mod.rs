//! Kernels for x86-64.

mod avx2;
mod avx512;
mod tiles;

pub(crate) use avx2::{has_avx2, run_avx2};
pub(crate) use avx512::{has_avx512_vnni, run_avx512_vnni};

/// Asks for the cache lines of `bytes`.
#[allow(unsafe_code)]
#[inline(always)]
fn prefetch(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in bytes.chunks(64) {
        // SAFETY: every x86-64 CPU has SSE, and a prefetch accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}
