//! The channels that 8-bit activations are worst for, put first and given a second term.
//!
//! Activations are quantized in blocks of 32 columns with one scale. A few channels of a language model are tens of
//! times as large as the others (Dettmers et al., 2022): every block that has one of them is coarse for the rest. Here such
//! channels move together into the first blocks, which changes nothing but the order of sums, and those blocks of a
//! matrix's input are quantized [in two terms](niwaki_kernels::Matrix::refined), as far as that may cost.
//!
//! - `spaces`: which channels may change places
//! - `inputs`: what a text shows of the inputs of matrices, and what quantizing them costs
//! - `choose`: the new order, and how many blocks get a second term
//! - `reorder`: the graph in that order

mod choose;
mod inputs;
mod reorder;
mod spaces;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use crate::calibrate::{CalibrateError, Calibration};
use crate::lower::Lowered;
use niwaki_bundle::graph::MatrixId;
use spaces::Spaces;
use std::collections::{BTreeMap, BTreeSet};

/// Tokens that are looked at; more of them tell the same.
pub(crate) const TEXT_TOKENS: usize = 1024;

/// Which matrices may be changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// They are going to be integers, so their inputs are.
    pub(crate) quantized: BTreeSet<MatrixId>,
    /// Of those, columns that share a scale have to go on sharing it: with four bits, a scale suits one large channel in a block
    /// well, and several badly.
    pub(crate) in_blocks: BTreeSet<MatrixId>,
    /// They have to stay in their order.
    pub(crate) fixed: BTreeSet<MatrixId>,
    /// By which share multiply-adds of matrices may grow.
    pub(crate) share: f64,
}

/// How many of the first blocks of each matrix's input have a second term.
pub(crate) type Refined = BTreeMap<MatrixId, usize>;

/// Puts the channels of a model in a better order, and says where second terms pay most. A model in which nothing can be
/// moved stays what it is.
///
/// # Errors
/// When the text does not get through the model.
pub(crate) fn refine(
    lowered: &mut Lowered,
    choice: &Choice,
    calibration: Calibration<'_>,
) -> Result<Refined, CalibrateError> {
    let spaces = Spaces::of(lowered, &choice.fixed);
    let mut inputs = inputs::inputs(lowered, &spaces, &choice.quantized, calibration)?;
    let mut orders = choose::orders(&mut inputs, &choice.in_blocks);
    let most = choice.share * choose::multiply_adds(lowered);
    let refined = choose::blocks(&inputs, most);
    // An order pays by second terms alone.
    let pays = |space: &_| {
        let mut inputs = inputs.iter().filter(|input| input.space == *space);
        inputs.any(|input| refined.contains_key(&input.matrices[0]))
    };
    orders.retain(|space, order| pays(space) && !order.is_sorted());
    reorder::reorder(lowered, &spaces, &orders);
    Ok(refined)
}

/// What was done, in words, if anything was.
pub(crate) fn description(lowered: &Lowered, refined: &Refined) -> Option<String> {
    let share = choose::share(lowered, refined);
    (share > 0.0).then(|| {
        let percent = share * 100.0;
        format!("outlier channels first, in two terms: {percent:.1} % more multiply-adds")
    })
}
