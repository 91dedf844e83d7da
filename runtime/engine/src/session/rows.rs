//! What a run returns.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tract_core::internal::{Tensor, TractResult};

/// Rows of numbers that a model computed: `[rows, width]`. Of the output `logits` a row has a score for every token
/// that may come next.
#[derive(Clone)]
pub struct Logits {
    values: Values,
    width: usize,
}

#[derive(Clone)]
enum Values {
    /// Gathered from several runs.
    Gathered(Vec<f32>),
    /// Some rows of what a run computed: the next run computes elsewhere as long as somebody holds them.
    Computed {
        tensor: Arc<Tensor>,
        range: Range<usize>,
    },
}

impl Logits {
    pub(super) fn gathered(values: Vec<f32>, width: usize) -> Logits {
        let values = Values::Gathered(values);
        Logits { values, width }
    }

    /// Takes rows of `[rows, width]` as they were computed, if it is numbers of this type in memory of this machine.
    pub(super) fn computed(
        tensor: Arc<Tensor>,
        rows: Range<usize>,
        width: usize,
    ) -> TractResult<Logits> {
        let count = tensor.try_as_plain_ram()?.as_slice::<f32>()?.len();
        let range = rows.start * width..rows.end * width;
        tract_core::internal::ensure!(range.end <= count, "fewer rows than were asked for");
        let values = Values::Computed { tensor, range };
        Ok(Logits { values, width })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.as_slice().len() / self.width
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row; `None` past the end.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.as_slice().chunks_exact(self.width).nth(index)
    }

    /// The last row.
    pub fn last(&self) -> &[f32] {
        self.as_slice()
            .chunks_exact(self.width)
            .next_back()
            .unwrap_or_default()
    }

    /// All rows, one after the other.
    pub fn as_slice(&self) -> &[f32] {
        match &self.values {
            Values::Gathered(values) => values,
            // `computed` has looked.
            Values::Computed { tensor, range } => tensor
                .try_as_plain_ram()
                .and_then(|view| view.as_slice::<f32>())
                .ok()
                .and_then(|values| values.get(range.clone()))
                .unwrap_or_default(),
        }
    }

    /// All rows, one after the other.
    pub fn into_vec(self) -> Vec<f32> {
        match self.values {
            Values::Gathered(values) => values,
            Values::Computed { .. } => self.as_slice().to_vec(),
        }
    }
}

impl PartialEq for Logits {
    fn eq(&self, other: &Self) -> bool {
        self.width == other.width && self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Logits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logits")
            .field("rows", &self.rows())
            .field("width", &self.width)
            .finish_non_exhaustive()
    }
}
