//! The plan of a bundle: what happens to the matrices of a lowered graph, and the format of each.

use super::pack::Stored;
use crate::lower::{Lowered, Matrix};
use crate::plan::{
    Code, Fate, FloatType, MatrixKind, Plan, PlannedMatrix, Reason, Wishes, decide, kinds,
};
use crate::quantize::{
    KeepLattice, OnLattice, QuantizeError, Quantizer, ScaleGrid, Target, on_lattice,
};
use niwaki_bundle::graph::MatrixId;
use niwaki_kernels::{Element, MatrixFormat, ScaleType};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What becomes of matrices where something else is better than what the wishes say, and by which method.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Assignment {
    /// The quantizer, by its place in the options.
    pub(super) quantizer: usize,
    /// Matrices that get another code than the wishes say.
    pub(super) codes: BTreeMap<MatrixId, Code>,
}

/// Matrices that training left on a 4-bit grid.
pub(super) type Lattices = BTreeMap<MatrixId, OnLattice>;

/// The matrices on a 4-bit grid, of those that are to be quantized.
pub(super) fn lattices(lowered: &Lowered, wishes: &Wishes) -> Result<Lattices, QuantizeError> {
    let (_, stored) = plan(
        lowered,
        wishes,
        &Lattices::new(),
        &Assignment::default(),
        "",
    );
    let mut lattices = Lattices::new();
    for (id, (matrix, stored)) in lowered.parts.matrices.iter().zip(&stored).enumerate() {
        if let Fate::Quantize(_) = stored.fate {
            lattices.extend(on_lattice(matrix)?.map(|found| (id, found)));
        }
    }
    Ok(lattices)
}

/// Decides of every matrix, in the order of their ids. What lies on a 4-bit grid is kept there.
pub(super) fn plan(
    lowered: &Lowered,
    wishes: &Wishes,
    lattices: &Lattices,
    assignment: &Assignment,
    method: &'static str,
) -> (Plan, Vec<Stored>) {
    let kinds = kinds(&lowered.graph);
    let matrices = &lowered.parts.matrices;
    let beside = matrices.iter().any(Matrix::is_quantized);
    let decided: Vec<(PlannedMatrix, Stored)> = matrices
        .par_iter()
        .enumerate()
        .map(|(id, matrix)| {
            let kind = kinds.get(&id).copied().unwrap_or(MatrixKind::Other);
            let (mut fate, mut reason) = decide(kind, matrix.is_quantized(), beside, wishes);
            if let (Fate::Quantize(usual), Some(code)) = (fate, assignment.codes.get(&id))
                && usual != *code
            {
                (fate, reason) = (Fate::Quantize(*code), Reason::WorthItsBytes);
            }
            let mut method = method;
            if let (Fate::Quantize(code), Some(found)) = (fate, lattices.get(&id)) {
                // Both hold it as it is.
                let code = if code == Code::Int8 { code } else { Code::Int4 };
                (fate, reason) = (Fate::Quantize(code), Reason::OnLattice(*found));
                method = KeepLattice.name();
            }
            planned(matrix, kind, fate, reason, method)
        })
        .collect();
    let (matrices, stored) = decided.into_iter().unzip();
    (Plan { matrices }, stored)
}

fn planned(
    matrix: &Matrix,
    kind: MatrixKind,
    fate: Fate,
    reason: Reason,
    quantizer: &'static str,
) -> (PlannedMatrix, Stored) {
    let (format, method, reason) = match fate {
        Fate::Quantize(code) => (format_of(of_code(code)), quantizer, reason),
        Fate::Float(FloatType::F16) => (MatrixFormat::F16, "converted", reason),
        Fate::Float(FloatType::F32) => (MatrixFormat::F32, "converted", reason),
        Fate::Keep => match matrix.exact_format() {
            (format, Some(why)) => (format, "expanded", Reason::NotInBlocks(why)),
            (format, None) => (format, "kept", reason),
        },
    };
    let planned = PlannedMatrix {
        name: matrix.name.clone(),
        kind,
        rows: matrix.rows(),
        columns: matrix.cols(),
        fate,
        format: format_name(&format),
        method,
        reason,
    };
    (planned, Stored { fate, format })
}

/// What a matrix becomes in a bundle.
pub(super) fn of_code(code: Code) -> Target {
    Target {
        code,
        grid: ScaleGrid::F16,
    }
}

/// How that is stored.
pub(super) fn format_of(target: Target) -> MatrixFormat {
    let format = match target.code {
        Code::Int4 => MatrixFormat::INT4,
        Code::Codebook4 => MatrixFormat::CODEBOOK4,
        Code::Int8 => MatrixFormat::INT8,
    };
    match target.grid {
        ScaleGrid::F32 => MatrixFormat {
            scale: ScaleType::F32,
            ..format
        },
        ScaleGrid::F16 | ScaleGrid::Bf16 => format,
    }
}

impl PlannedMatrix {
    /// Says that a matrix is stored otherwise than was planned, if it is.
    pub(super) fn stored_as(&mut self, format: &MatrixFormat) {
        let name = format_name(format);
        if self.format != name {
            self.format = name;
            self.reason = Reason::OutOfReach;
        }
    }
}

fn format_name(format: &MatrixFormat) -> String {
    let name = match format.element {
        Element::F32 => "f32".to_owned(),
        Element::F16 => "f16".to_owned(),
        Element::Int8 => format!("int8, block {}", format.block),
        Element::Int4 => format!("int4, block {}", format.block),
        Element::Codebook4 => format!("codebook4, block {}", format.block),
    };
    match format.scale {
        ScaleType::F32 if format.is_quantized() && !format.zero_points => {
            format!("{name}, 32-bit scales")
        }
        _ => name,
    }
}
