//! What a bundle says of its quality: the figures on which somebody decides whether to ship it.

use super::manifest::{companion_files, source_files};
use super::optimize::{Continuation, Damage, Details};
use super::{BuildError, Quality, Tried};
use crate::export::Export;
use crate::plan::Plan;
use niwaki_bundle::SourceFile;
use niwaki_bundle::graph::MatrixId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The quality report of a bundle, in its own section. It holds figures, names and what a model says to built-in prompts;
/// nothing of the text that it was calibrated on, and no folder of the machine that built it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// What quantization changes on text that no quantizer has seen.
    pub quality: Quality,
    /// Where that comes from.
    pub damage: Damage,
    /// The method that was chosen, with its settings.
    pub chosen: String,
    /// The methods and formats that were measured on the way.
    pub tried: Vec<Tried>,
    /// How each matrix is stored, in the order of the model.
    pub matrices: Vec<StoredMatrix>,
    /// What the float model and the bundle say to the same.
    pub continuations: Vec<Continuation>,
    /// What a person should know: what is not computed as the export computes it, and what the export lacks.
    pub notes: Vec<String>,
    /// How it was made.
    pub made: Made,
}

/// One matrix, as a bundle holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredMatrix {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: String,
    /// Its layer, counted from 0, if it is in one.
    pub layer: Option<usize>,
    /// Output channels, or ids of a table.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// What it takes of the file.
    pub size_bytes: u64,
    /// How it is stored.
    pub format: String,
    /// By which method.
    pub method: String,
    /// Why.
    pub reason: String,
    /// Root mean square of what quantizing its weights does to its products over that of the products, on held-out text;
    /// of what was not quantized, or is not multiplied with, nothing.
    pub relative_error: Option<f64>,
}

/// How a bundle was made, told by who had it made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// A command that makes the same bundle of the same inputs.
    pub command: String,
    /// All that the command says, and a preset or recipe said for it: options and their values.
    pub recipe: BTreeMap<String, String>,
    /// Every file that was read.
    pub inputs: Vec<SourceFile>,
    /// What was pruned first.
    pub pruned: Option<PrunedBefore>,
}

/// What was pruned before weights were quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedBefore {
    /// By which method, and how much went.
    pub summary: String,
    /// Matrices that got zeros, and how many of their weights are zero.
    pub matrices: BTreeMap<String, u64>,
}

/// What a report tells of matrices that fare alike.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMatrices<'a> {
    /// One of them, which stands for all: kind, format, method and reason are theirs too.
    pub like: &'a StoredMatrix,
    /// How many there are.
    pub matrices: usize,
    /// Their weights.
    pub weights: u64,
    /// What they take of the file.
    pub size_bytes: u64,
}

impl StoredMatrix {
    /// Number of its weights.
    pub fn weights(&self) -> u64 {
        (self.rows as u64).saturating_mul(self.columns as u64)
    }

    fn fares(&self) -> [&str; 4] {
        [&self.kind, &self.format, &self.method, &self.reason]
    }
}

impl QualityReport {
    /// Matrices that fare alike together, in the order in which the first of each comes.
    pub fn groups(&self) -> Vec<StoredMatrices<'_>> {
        let mut groups: Vec<StoredMatrices<'_>> = vec![];
        let mut places: BTreeMap<[&str; 4], usize> = BTreeMap::new();
        for matrix in &self.matrices {
            let place = *places.entry(matrix.fares()).or_insert(groups.len());
            if place == groups.len() {
                groups.push(StoredMatrices {
                    like: matrix,
                    matrices: 0,
                    weights: 0,
                    size_bytes: 0,
                });
            }
            let group = &mut groups[place];
            group.matrices += 1;
            group.weights = group.weights.saturating_add(matrix.weights());
            group.size_bytes = group.size_bytes.saturating_add(matrix.size_bytes);
        }
        groups
    }

    /// For each layer the root mean square of the relative errors of its matrices.
    pub fn layer_errors(&self) -> BTreeMap<usize, f64> {
        let mut squares: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
        for matrix in &self.matrices {
            if let (Some(layer), Some(error)) = (matrix.layer, matrix.relative_error) {
                let (sum, count) = squares.entry(layer).or_default();
                *sum += error * error;
                *count += 1;
            }
        }
        let mean = |(sum, count): (f64, usize)| (sum / count as f64).sqrt();
        squares
            .into_iter()
            .map(|(layer, squares)| (layer, mean(squares)))
            .collect()
    }
}

/// The matrices of a plan, their sizes and layers, and what quantizing them does.
pub(super) fn stored(
    plan: &Plan,
    sizes_bytes: &[u64],
    layers: &BTreeMap<MatrixId, usize>,
    details: &Details,
) -> Vec<StoredMatrix> {
    let matrices = plan.matrices.iter().zip(sizes_bytes).enumerate();
    matrices
        .map(|(id, (matrix, size_bytes))| StoredMatrix {
            name: matrix.name.clone(),
            kind: matrix.kind.name().to_owned(),
            layer: layers.get(&id).copied(),
            rows: matrix.rows,
            columns: matrix.columns,
            size_bytes: *size_bytes,
            format: matrix.format.clone(),
            method: matrix.method.to_owned(),
            reason: matrix.reason.to_string(),
            relative_error: details.product_errors.get(&id).copied(),
        })
        .collect()
}

/// How it was made, with the files of the export before those that are named already.
pub(super) fn made_of(export: &Export, made: &Made) -> Result<Made, BuildError> {
    let mut inputs = source_files(&export.model)?;
    inputs.extend(companion_files(export)?);
    inputs.extend(made.inputs.iter().cloned());
    Ok(Made {
        inputs,
        ..made.clone()
    })
}
