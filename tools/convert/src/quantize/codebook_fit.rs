//! The 16 values that suit the weights of one matrix best.

use super::BLOCK;
use super::levels::{Block, Levels};
use super::scale::{Factors, best_scale};
use niwaki_kernels::Codebook;
use rayon::prelude::*;

/// Where fitting begins: what the layers of a small language model came to.
const BEGINNING: [i8; 16] = [
    -127, -96, -75, -57, -41, -28, -16, -6, 1, 10, 20, 31, 44, 59, 80, 114,
];

const STEPS: usize = 12;

/// A matrix with more zeros than this was pruned.
const PRUNED_SHARE: f64 = 0.05;

/// Blocks that are fitted together before the sums are added up, so that the number of threads changes no bit.
const CHUNK_BLOCKS: usize = 256;

/// A block and how much the error of each of its weights counts.
pub(super) struct Sample {
    pub(super) weights: Block,
    pub(super) importance: Block,
}

/// Fits a codebook by Lloyd's iteration: blocks get the best scales for the values, then each value moves to the weighted
/// mean of the weights, over their scales, that it stands for. Where weights were pruned, one of the values is zero.
pub(super) fn fit(samples: &[Sample]) -> Codebook {
    let weights = samples.iter().flat_map(|sample| sample.weights);
    let zeros = weights.filter(|weight| *weight == 0.0).count();
    let is_pruned = zeros as f64 > PRUNED_SHARE * (samples.len() * BLOCK) as f64;
    let mut values = BEGINNING;
    for _ in 0..STEPS {
        let levels = Levels::table(values);
        let chunks: Vec<Sums> = samples
            .par_chunks(CHUNK_BLOCKS)
            .map(|samples| Sums::of(samples, &levels))
            .collect();
        let mut sums = Sums::default();
        for chunk in &chunks {
            sums.add(chunk);
        }
        let mut means = values.map(f64::from);
        for (mean, (product, power)) in means.iter_mut().zip(sums.products.iter().zip(sums.powers))
        {
            // A value that stands for nothing stays where it is.
            if power > 0.0 {
                *mean = product / power;
            }
        }
        let largest = means
            .iter()
            .fold(0.0f64, |largest, mean| largest.max(mean.abs()));
        if largest > 0.0 {
            values = means.map(|mean| (mean * (127.0 / largest)).round_ties_even() as i8);
        }
        values.sort_unstable();
        if is_pruned && let Some(least) = values.iter_mut().min_by_key(|value| value.unsigned_abs())
        {
            *least = 0;
        }
    }
    codebook(values)
}

/// The codebook for weights of which nothing is known.
pub(super) fn beginning() -> Codebook {
    codebook(BEGINNING)
}

/// -128 is none of its values.
fn codebook(values: [i8; 16]) -> Codebook {
    Codebook::new(values).unwrap_or(Codebook::LINEAR)
}

/// For each value: the sums of `importance * scale * weight` and of `importance * scale^2`.
#[derive(Default)]
struct Sums {
    products: [f64; 16],
    powers: [f64; 16],
}

impl Sums {
    fn of(samples: &[Sample], levels: &Levels) -> Sums {
        let mut sums = Sums::default();
        for Sample {
            weights,
            importance,
        } in samples
        {
            let scale = best_scale(levels, weights, importance, &Factors::COARSE);
            if scale == 0.0 {
                continue;
            }
            for (weight, importance) in weights.iter().zip(importance) {
                let code = levels.code(weight / scale);
                let at = usize::try_from(code).unwrap_or(0);
                let driven = f64::from(*importance) * f64::from(scale);
                sums.products[at] += driven * f64::from(*weight);
                sums.powers[at] += driven * f64::from(scale);
            }
        }
        sums
    }

    fn add(&mut self, other: &Sums) {
        for at in 0..16 {
            self.products[at] += other.products[at];
            self.powers[at] += other.powers[at];
        }
    }
}
