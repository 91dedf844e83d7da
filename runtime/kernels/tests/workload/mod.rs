//! Numbers that look random and are the same on every machine. Each test file uses a part of this.
#![allow(dead_code, clippy::expect_used)]

use niwaki_kernels::{Activation, Codebook};

/// Every activation.
pub(crate) const ACTIVATIONS: [Activation; 6] = [
    Activation::Silu,
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::GeluSigmoid,
    Activation::Relu,
    Activation::ReluSquared,
];

/// SplitMix64 (Steele et al., 2014).
pub(crate) struct Numbers(u64);

impl Numbers {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A multiple of 2^-23 between -1 and 1.
    pub(crate) fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// Values in no order: both extremes, and others more than once.
    pub(crate) fn codebook(&mut self) -> Codebook {
        let value = |_| match self.below(6) {
            0 => -127,
            1 => 127,
            2 => self.below(3) as i8 - 1,
            _ => (self.below(255) as i32 - 127) as i8,
        };
        Codebook::new([(); 16].map(value)).expect("has no -128")
    }

    /// An integer below `limit`.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (self.bits() >> 32) as u32 % limit
    }
}

/// The bits, for comparisons that tell -0 from 0.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
