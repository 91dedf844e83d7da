//! What a bundle says of its quality: the figures on which somebody decides whether to ship it.

use super::{Quality, Tried};
use crate::plan::{Plan, PlannedMatrix};
use serde::{Deserialize, Serialize};

/// The quality report of a bundle, in its own section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// What quantization changes on text that no quantizer has seen.
    pub quality: Quality,
    /// The methods and formats that were measured on the way.
    pub tried: Vec<Tried>,
    /// How matrices are stored.
    pub stored: Vec<StoredMatrices>,
}

/// Matrices of one kind that fare alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredMatrices {
    /// What they are for.
    pub kind: String,
    /// How many there are.
    pub matrices: usize,
    /// Their weights.
    pub weights: u64,
    /// What they take of the file.
    pub size_bytes: u64,
    /// How they are stored.
    pub format: String,
    /// By which method.
    pub method: String,
    /// Why.
    pub reason: String,
}

impl StoredMatrices {
    fn of(matrix: &PlannedMatrix, size_bytes: u64) -> StoredMatrices {
        StoredMatrices {
            kind: matrix.kind.name().to_owned(),
            matrices: 1,
            weights: matrix.weights(),
            size_bytes,
            format: matrix.format.clone(),
            method: matrix.method.to_owned(),
            reason: matrix.reason.to_string(),
        }
    }

    fn is_like(&self, other: &StoredMatrices) -> bool {
        let what = |stored: &StoredMatrices| {
            let StoredMatrices {
                kind,
                format,
                method,
                reason,
                ..
            } = stored.clone();
            [kind, format, method, reason]
        };
        what(self) == what(other)
    }
}

impl QualityReport {
    /// Of a plan and the size of each of its matrices.
    pub(super) fn new(
        quality: Quality,
        tried: Vec<Tried>,
        plan: &Plan,
        sizes_bytes: &[u64],
    ) -> QualityReport {
        let mut stored: Vec<StoredMatrices> = vec![];
        for (matrix, size_bytes) in plan.matrices.iter().zip(sizes_bytes) {
            let line = StoredMatrices::of(matrix, *size_bytes);
            match stored.iter_mut().find(|held| held.is_like(&line)) {
                Some(held) => {
                    held.matrices += 1;
                    held.weights += line.weights;
                    held.size_bytes += line.size_bytes;
                }
                None => stored.push(line),
            }
        }
        QualityReport {
            quality,
            tried,
            stored,
        }
    }
}
