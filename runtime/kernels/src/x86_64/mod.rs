//! Kernels for x86-64.

mod avx2;
mod avx512;
mod tiles;

use std::arch::x86_64::{__cpuid, _MM_HINT_T1, _mm_prefetch};
use std::sync::OnceLock;

pub(crate) use avx2::{has_avx2, run_avx2};
pub(crate) use avx512::{has_avx512_vnni, run_avx512_vnni};

/// Asks for the cache lines of `size_bytes` bytes, one for every 64: in the second-level cache, which waits for twice as many lines at
/// once as the first and leaves that one to what is computed with.
#[inline(always)]
pub(crate) fn prefetch(start: *const u8, size_bytes: usize) {
    prefetch_to::<_MM_HINT_T1>(start, size_bytes);
}

/// Asks for the cache lines of `size_bytes` bytes in the cache that `HINT` means.
#[allow(unsafe_code)]
#[inline(always)]
fn prefetch_to<const HINT: i32>(start: *const u8, size_bytes: usize) {
    for offset in (0..size_bytes).step_by(64) {
        // SAFETY: every x86-64 CPU has SSE, and a prefetch accesses nothing.
        unsafe { _mm_prefetch::<HINT>(start.wrapping_add(offset).cast()) };
    }
}

/// Whether one long stretch of memory is read faster when it is asked for ahead. Zen 5 reads weights 1.3 times as fast
/// with it. Zen 4 sees such stretches by itself and is a sixth slower; other CPUs were not measured, and let alone.
fn streams_need_prefetch() -> bool {
    static ZEN_5: OnceLock<bool> = OnceLock::new();
    *ZEN_5.get_or_init(|| {
        let vendor = __cpuid(0);
        let version = __cpuid(1).eax;
        let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
        let model = version >> 4 & 0xf | version >> 12 & 0xf0;
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"AuthenticAMD";
        // The rest of the family is Zen 6.
        is_amd && family == 0x1a && matches!(model, 0x00..=0x2f | 0x40..=0x4f | 0x60..=0x7f)
    })
}
