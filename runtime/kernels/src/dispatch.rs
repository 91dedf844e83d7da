//! From an [`Isa`] to code compiled for it.
//!
//! A new instruction set needs a module with a [`Simd`] type, and a line in each function below.

use crate::isa::Isa;
use crate::lanes::Simd;
use crate::scalar::Scalar;

/// Work that can be done with any instruction set.
pub(crate) trait Work {
    /// What it computes.
    type Output;
    /// Does the work. Must be `#[inline(always)]`, to be compiled with the instruction set of the caller.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Whether this CPU can run the instruction set.
pub(crate) fn is_available(isa: Isa) -> bool {
    match isa {
        Isa::Scalar => true,
        _ => false,
    }
}

/// Runs `work` with an instruction set that the caller knows to be available.
#[inline]
pub(crate) fn run<W: Work>(isa: Isa, work: W) -> W::Output {
    match isa {
        _ => work.run(Scalar),
    }
}
