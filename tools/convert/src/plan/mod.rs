//! What happens to which matrix, decided before any is read.
//!
//! - `kind`: what a matrix is for
//! - `code`: what weights become
//! - `wishes`: what is asked for
//! - `fate`: the rules: what becomes of a matrix, and why
//! - `lines`: the plan as people read it
//!
//! `niwaki build` and `niwaki quantize` make a plan by the same rules, print it, and do what it says.

mod code;
mod fate;
mod kind;
mod lines;
mod wishes;

pub use code::Code;
pub use fate::{Fate, FloatType, Reason, decide};
pub use kind::{MatrixKind, kinds, kinds_by_node};
pub use lines::PlanLine;
pub use wishes::{Usual, Weights, Wishes};

use serde::Serialize;

/// What happens to every matrix of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Plan {
    /// The matrices, in the order of the model.
    pub matrices: Vec<PlannedMatrix>,
}

/// What happens to one matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedMatrix {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: MatrixKind,
    /// Output channels, or ids of a table.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// What becomes of it.
    #[serde(skip)]
    pub fate: Fate,
    /// How it is stored then, for people: `int4, block 32`.
    pub format: String,
    /// By which method: the quantizer's name, `kept`, `converted`.
    pub method: &'static str,
    /// Why.
    pub reason: Reason,
}

/// A node of an ONNX model that kept its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftNode {
    /// The node.
    pub node: String,
    /// Why it was left.
    pub reason: String,
}

impl PlannedMatrix {
    fn is_rounded(&self) -> bool {
        let on_lattice = matches!(self.reason, Reason::OnLattice(_));
        matches!(self.fate, Fate::Quantize(_)) && !on_lattice
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.rows as u64 * self.columns as u64
    }
}

impl Plan {
    /// Whether matrices become this.
    pub fn quantizes_to(&self, code: Code) -> bool {
        self.matrices
            .iter()
            .any(|matrix| matrix.fate == Fate::Quantize(code))
    }

    /// How many matrices are quantized, and how many weights they have.
    pub fn quantized(&self) -> (usize, u64) {
        let matrices = self.matrices.iter();
        let quantized = matrices.filter(|matrix| matches!(matrix.fate, Fate::Quantize(_)));
        quantized.fold((0, 0), |(count, weights), matrix| {
            (count + 1, weights + matrix.weights())
        })
    }

    /// Whether any matrix is quantized.
    pub fn quantizes(&self) -> bool {
        let fates = self.matrices.iter().map(|matrix| matrix.fate);
        fates
            .into_iter()
            .any(|fate| matches!(fate, Fate::Quantize(_)))
    }

    /// Whether any matrix is rounded: quantized, and not on a 4-bit grid already.
    pub fn rounds(&self) -> bool {
        self.matrices.iter().any(PlannedMatrix::is_rounded)
    }

    /// Whether any matrix is rounded to 4 bits.
    pub fn rounds_to_four_bits(&self) -> bool {
        let rounded = self.matrices.iter().filter(|matrix| matrix.is_rounded());
        rounded
            .into_iter()
            .any(|matrix| matches!(matrix.fate, Fate::Quantize(code) if code.bits() == 4))
    }

    /// Whether any matrix becomes something else than what the export stores.
    pub fn changes_anything(&self) -> bool {
        self.matrices.iter().any(|matrix| matrix.fate != Fate::Keep)
    }

    /// Whether an embedding becomes something else than what the export stores.
    pub fn changes_tables(&self) -> bool {
        self.matrices
            .iter()
            .any(|matrix| matrix.fate != Fate::Keep && matrix.kind.is_embedding())
    }

    /// Whether an embedding of floats stays because the export quantized other matrices.
    pub fn leaves_tables(&self) -> bool {
        self.leaves(MatrixKind::is_embedding)
    }

    /// Whether a projection of floats stays because the export quantized other matrices.
    pub fn leaves_projections(&self) -> bool {
        self.leaves(|kind| !kind.is_table())
    }

    fn leaves(&self, of: impl Fn(MatrixKind) -> bool) -> bool {
        self.matrices
            .iter()
            .any(|matrix| matrix.reason == Reason::LeftByTheExport && of(matrix.kind))
    }
}
