//! Options that were measured to go well together.

use super::recipe::{FloatWeights, Quantization, Recipe};
use clap::ValueEnum;

/// What a bundle is for. docs/quantization.md has the measurements behind each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// Small: 4 bits for everything.
    PhoneSmall,
    /// 4 bits, and 8 for what gains most by it, up to 5.4 bits for each weight.
    Phone,
    /// As phone, with int4, which costs CPUs without instructions for dot products a quarter less work than codebook4.
    Pi,
    /// 8 bits for everything: next to nothing is lost.
    MaxQuality,
}

/// Bits for each weight of a bundle that is to lose little: less than two thirds of what 4 bits lose is left, for a fifth more
/// bytes.
const BITS: f64 = 5.4;

impl Preset {
    /// What it says.
    pub(super) fn recipe(self) -> Recipe {
        let (weights, method, bits) = match self {
            Preset::PhoneSmall => (FloatWeights::Codebook4, Quantization::Gptq, None),
            Preset::Phone => (FloatWeights::Codebook4, Quantization::Gptq, Some(BITS)),
            Preset::Pi => (FloatWeights::Int4, Quantization::Gptq, Some(BITS)),
            Preset::MaxQuality => (FloatWeights::Int8, Quantization::Rtn, None),
        };
        Recipe {
            weights: Some(weights),
            method: Some(method),
            bits,
            ..Recipe::default()
        }
    }
}
