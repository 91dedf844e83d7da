//! LoRA adapters (Hu et al. 2021) as PEFT writes them, added to the float weights of a lowered model before anything is
//! quantized.
//!
//! - `adapter`: the folder: what it configures, and its tensors
//! - `places`: which rows of which matrix a module of the adapter is, by what the graph computes
//!
//! A layer's weights become `W + scale * B A`. What is merged costs nothing at run time and is quantized for what the model has
//! become.

mod adapter;
mod places;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use adapter::{Adapter, AdapterError};

use crate::lower::{LowRank, Lowered};
use adapter::Delta;
use places::{Place, Places};
use std::sync::Arc;

/// Why an adapter was not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The model has no such projection.
    #[error(
        "the adapter changes `{module}`, and the model has no projection that it could be; it was made for another model, or the \
         export joins this projection with others in an order of its own"
    )]
    NoPlace {
        /// The module, by the adapter's name.
        module: String,
    },
    /// The projection has another shape.
    #[error(
        "the adapter changes `{module}` as a matrix of {} x {}, and the model's has {} x {}: it was made for another model",
        adapter[0], adapter[1], model[0], model[1]
    )]
    Shape {
        /// The module, by the adapter's name.
        module: String,
        /// Rows and columns in the adapter.
        adapter: [usize; 2],
        /// Rows and columns in the model.
        model: [usize; 2],
    },
    /// The export holds integers.
    #[error(
        "the adapter changes `{module}`, which the export holds quantized; merge it into an export with float weights"
    )]
    Quantized {
        /// The module, by the adapter's name.
        module: String,
    },
    /// One matrix is several things.
    #[error(
        "the adapter changes `{module}`, whose weights are those of the embedding or of another layer too, and only one of them \
         would change; merge it before the export"
    )]
    Shared {
        /// The module, by the adapter's name.
        module: String,
    },
}

/// Adds `strength` times what the adapter says to the weights that it changes.
///
/// # Errors
/// [`MergeError`]; `lowered` is then to be thrown away.
pub fn merge(lowered: &mut Lowered, adapter: &Adapter, strength: f32) -> Result<(), MergeError> {
    let places = Places::of(&lowered.graph);
    for delta in adapter.deltas() {
        let module = || delta.module.clone();
        let found = places.find(delta);
        if found.is_empty() {
            return Err(MergeError::NoPlace { module: module() });
        }
        let rows: usize = found.iter().map(|place| place.rows.len()).sum();
        let mut first = 0;
        for place in found {
            merge_at(lowered, &place, delta, first, rows, strength)?;
            first += place.rows.len();
        }
    }
    Ok(())
}

/// Adds rows of `delta` from `first` on to a place; `rows` is how many the model has of them in all.
fn merge_at(
    lowered: &mut Lowered,
    place: &Place,
    delta: &Delta,
    first: usize,
    rows: usize,
    strength: f32,
) -> Result<(), MergeError> {
    let module = || delta.module.clone();
    let readers = lowered
        .graph
        .nodes
        .iter()
        .flat_map(|node| node.op.matrices());
    if readers.filter(|matrix| *matrix == place.matrix).count() > 1 {
        return Err(MergeError::Shared { module: module() });
    }
    let matrix = &mut lowered.parts.matrices[place.matrix];
    let (adapter, model) = ([delta.rows(), delta.columns()], [rows, matrix.cols()]);
    if adapter != model {
        return Err(MergeError::Shape {
            module: module(),
            adapter,
            model,
        });
    }
    let mut start = 0;
    for source in &mut matrix.stack {
        let held = start..start + source.rows();
        start = held.end;
        let (from, to) = (
            held.start.max(place.rows.start),
            held.end.min(place.rows.end),
        );
        if from >= to {
            continue;
        }
        if source.is_quantized() {
            return Err(MergeError::Quantized { module: module() });
        }
        let of_delta = first + from - place.rows.start;
        let rank = delta.rank();
        source.add(LowRank {
            rows: from - held.start..to - held.start,
            down: Arc::clone(&delta.a),
            up: delta.b[of_delta * rank..(of_delta + to - from) * rank].into(),
            factor: delta.scale * strength,
        });
    }
    Ok(())
}
