//! Beam search: the most likely texts, where [`Session::generate`](crate::Session::generate) follows one.
//!
//! As transformers' `BeamSearchScorer` (up to 4.49) with `num_beams`, `num_beam_groups`, `diversity_penalty`,
//! `length_penalty` and `early_stopping`: the same hypotheses and scores. Beams are sequences of one batch and share the
//! pages of keys and values that they have in common.

mod hypotheses;
mod options;
mod search;

pub use hypotheses::Hypothesis;
pub use options::{BeamOptions, EarlyStopping, InvalidBeams};
