//! The plan of a bundle: what happens to the matrices of a lowered graph, and the format of each.

use super::pack::Stored;
use crate::lower::{Lowered, Matrix};
use crate::plan::{
    Code, Fate, FloatType, MatrixKind, Plan, PlannedMatrix, Reason, Wishes, decide, kinds,
};
use crate::quantize::{ScaleGrid, Target};
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

/// Decides of every matrix, in the order of their ids.
pub(super) fn plan(
    lowered: &Lowered,
    wishes: &Wishes,
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
