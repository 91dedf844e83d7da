//! From an [`Isa`] to code compiled for it.
//!
//! A new instruction set needs a module with a [`Simd`] type, a line in [`Supported::new`] and one in
//! [`Supported::run`].

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
use crate::isa::Isa;
use crate::lanes::Simd;
use crate::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::x86_64;

/// Every phone has NEON. The scalar code is the largest and would only be bytes to download there.
const HAS_SCALAR: bool = !cfg!(all(
    target_arch = "aarch64",
    any(target_os = "android", target_os = "ios")
));

/// Work that can be done with any instruction set.
pub(crate) trait Work {
    /// Does the work. Must be `#[inline(always)]`, to be compiled with the instruction set of the caller.
    fn run<S: Simd>(self, simd: S);
}

/// An instruction set that this CPU was found to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported(Isa);

impl Supported {
    /// `None` if this CPU does not have `isa`.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        let found = match isa {
            Isa::Scalar => HAS_SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86_64::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86_64::has_avx512_vnni(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => aarch64::has_dotprod(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => aarch64::has_i8mm(),
            _ => false,
        };
        found.then_some(Self(isa))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Runs `work`, compiled for this instruction set.
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) {
        match self.0 {
            // SAFETY: `new` found that this CPU has these instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86_64::run_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { x86_64::run_avx512_vnni(work) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => aarch64::run_neon(work),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => unsafe { aarch64::run_dotprod(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => unsafe { aarch64::run_i8mm(work) },
            _ if HAS_SCALAR => work.run(Scalar),
            _ => unreachable!("`new` refused {}", self.0),
        }
    }
}
