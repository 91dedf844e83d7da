//! Kernels for x86-64.

mod avx2;
mod avx512;
mod tiles;

pub(crate) use avx2::{has_avx2, run_avx2};
pub(crate) use avx512::{has_avx512_vnni, run_avx512_vnni};
