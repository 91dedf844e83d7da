//! What an append returns.

use std::fmt;
use std::sync::Arc;
use tract_core::internal::{Tensor, TractResult};

/// Next-token logits: `[rows, vocabulary]`.
#[derive(Clone)]
pub struct Logits {
    values: Values,
    vocabulary: usize,
}

#[derive(Clone)]
enum Values {
    /// Gathered from several runs.
    Gathered(Vec<f32>),
    /// What a run computed: the session computes the next ones elsewhere as long as somebody holds it.
    Computed(Arc<Tensor>),
}

impl Logits {
    pub(super) fn gathered(values: Vec<f32>, vocabulary: usize) -> Logits {
        let values = Values::Gathered(values);
        Logits { values, vocabulary }
    }

    /// Takes `[rows, vocabulary]` as it was computed, if it is numbers of this type in memory of this machine.
    pub(super) fn computed(values: Arc<Tensor>, vocabulary: usize) -> TractResult<Logits> {
        values.try_as_plain_ram()?.as_slice::<f32>()?;
        let values = Values::Computed(values);
        Ok(Logits { values, vocabulary })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.as_slice().len() / self.vocabulary
    }

    /// Number of columns.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// One row; `None` past the end.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.as_slice().chunks_exact(self.vocabulary).nth(index)
    }

    /// The last row.
    pub fn last(&self) -> &[f32] {
        self.as_slice()
            .chunks_exact(self.vocabulary)
            .next_back()
            .unwrap_or_default()
    }

    /// All rows, one after the other.
    pub fn as_slice(&self) -> &[f32] {
        match &self.values {
            Values::Gathered(values) => values,
            // `computed` has looked.
            Values::Computed(tensor) => tensor
                .try_as_plain_ram()
                .and_then(|view| view.as_slice::<f32>())
                .unwrap_or_default(),
        }
    }

    /// All rows, one after the other.
    pub fn into_vec(self) -> Vec<f32> {
        match self.values {
            Values::Gathered(values) => values,
            Values::Computed(_) => self.as_slice().to_vec(),
        }
    }
}

impl PartialEq for Logits {
    fn eq(&self, other: &Self) -> bool {
        self.vocabulary == other.vocabulary && self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Logits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logits")
            .field("rows", &self.rows())
            .field("vocabulary", &self.vocabulary)
            .finish_non_exhaustive()
    }
}
