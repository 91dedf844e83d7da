//! Instruction sets that kernels exist for.

use std::fmt;

/// An instruction set. All of them compute the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the definition, on every CPU. Left out for Android and iOS on aarch64.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    Avx512Vnni,
    /// aarch64 (every one has NEON).
    Neon,
    /// aarch64 with the dot product instructions (ARMv8.2 `dotprod`).
    NeonDotprod,
    /// aarch64 with `dotprod` and the 8-bit matrix multiply instructions (ARMv8.6 `i8mm`).
    NeonI8mm,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: &[Isa] = &[
        Isa::Scalar,
        Isa::Avx2,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
    ];

    /// The fastest one this CPU has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Isa::Scalar)
    }

    /// All that this CPU has, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL
            .iter()
            .copied()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        crate::dispatch::Supported::new(self).is_some()
    }

    /// The name that [`from_name`](Self::from_name) understands.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "dotprod",
            Isa::NeonI8mm => "i8mm",
        }
    }

    /// The instruction set of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|isa| isa.name() == name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
