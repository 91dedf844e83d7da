//! The matrices of an ONNX model that blocks of integers can hold: what is multiplied by one, or looks up its rows.

use super::stored::{NodeAt, looks_up_tokens};
use super::{BLOCK, Code, QuantizeOptions};
use crate::onnx::FloatRows;
use crate::onnx::{
    ChannelRows, Matrix, MatrixShape, Names, OnnxError, OnnxModel, Place, Scopes, proto::NodeProto,
};
use crate::plan::{Fate, MatrixKind, kinds_by_node};
use std::collections::HashMap;

/// Tables with fewer rows (token types, say) stay floats: they weigh nothing.
pub(super) const SMALLEST_TABLE_ROWS: usize = 64;

/// A node that multiplies by a constant matrix of floats, or looks up its rows, and can do so in blocks.
pub(super) struct Candidate<'a> {
    pub(super) at: NodeAt,
    pub(super) node: &'a NodeProto,
    /// Where the matrix is stored.
    pub(super) place: Place,
    pub(super) use_of: Use,
    pub(super) rows: ChannelRows,
    pub(super) kind: MatrixKind,
}

pub(super) enum Use {
    /// A matrix product, and the value that is added to it.
    Product { bias: Option<String> },
    /// A lookup of rows.
    Lookup,
}

impl Use {
    pub(super) fn is_lookup(&self) -> bool {
        matches!(self, Use::Lookup)
    }
}

/// All candidates of a model, in the order of its graphs.
pub(super) fn candidates<'a>(
    model: &OnnxModel,
    scopes: &Scopes<'a>,
    options: &QuantizeOptions,
) -> Result<Vec<Candidate<'a>>, OnnxError> {
    let mut found = vec![];
    for (graph, names) in scopes.each() {
        for (index, node) in graph.node.iter().enumerate() {
            let at = (names.graph(), index);
            let candidate = if node.is("Gather") {
                lookup(model, &names, at, node)?
            } else if node.is("MatMul") || node.is("Gemm") || node.is_microsoft("FusedMatMul") {
                product(model, &names, at, node)?
            } else {
                None
            };
            found.extend(candidate);
        }
    }
    name_kinds(&mut found, model, options);
    Ok(found)
}

impl Candidate<'_> {
    /// Whether blocks of this fate hold it.
    pub(super) fn takes(&self, fate: Fate) -> bool {
        // Two of 4 bits share a byte.
        let odd = self.use_of.is_lookup() && !self.rows.columns().is_multiple_of(2);
        !(odd && fate == Fate::Quantize(Code::Int4))
    }
}

/// Names what matrices are for: by the lowered graph where the model lowers, else by what reads them.
fn name_kinds(candidates: &mut [Candidate<'_>], model: &OnnxModel, options: &QuantizeOptions) {
    let by_node = kinds_by_node(model, &options.facts);
    let mut uses: HashMap<Place, (bool, bool)> = HashMap::new();
    for candidate in candidates.iter() {
        let (lookup, product) = uses.entry(candidate.place.clone()).or_default();
        *lookup |= candidate.kind == MatrixKind::Embedding;
        *product |= !candidate.use_of.is_lookup();
    }
    for candidate in candidates {
        let known = by_node.get(candidate.node.name_or_output());
        if let Some(kind) = known.filter(|_| candidate.at.0 == 0) {
            candidate.kind = *kind;
        } else if uses.get(&candidate.place) == Some(&(true, true)) {
            candidate.kind = MatrixKind::EmbeddingAndHead;
        }
    }
}

/// The constant matrix of a name, and where it is stored.
fn matrix(
    model: &OnnxModel,
    names: &Names<'_, '_>,
    name: &str,
) -> Result<Option<(Place, Matrix)>, OnnxError> {
    let Some((place, _)) = names.constant(name) else {
        return Ok(None);
    };
    let definition = |name: &str| Some(names.define(name)?.1);
    let matrix = Matrix::defined(model, definition, name, MatrixShape::TwoDimensions)?;
    Ok(matrix.map(|matrix| (place, matrix)))
}

fn product<'a>(
    model: &OnnxModel,
    names: &Names<'_, '_>,
    at: NodeAt,
    node: &'a NodeProto,
) -> Result<Option<Candidate<'a>>, OnnxError> {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    let fused = !node.is_onnx();
    let bias = node.input_name(2).map(str::to_owned);
    let is_scaled = bias.is_some() && node.float("beta").unwrap_or(1.0) != 1.0;
    let is_turned = flag("transA") || (fused && (flag("transBatchA") || flag("transBatchB")));
    let (Some(_), Some(weight)) = (node.input_name(0), node.input_name(1)) else {
        return Ok(None);
    };
    if is_scaled || is_turned {
        return Ok(None);
    }
    let Some((place, matrix)) = matrix(model, names, weight)? else {
        return Ok(None);
    };
    let channel_axis = if flag("transB") { 0 } else { 1 };
    let rows = ChannelRows::new(matrix, channel_axis, node.float("alpha").unwrap_or(1.0));
    if rows.columns() < BLOCK || rows.rows() == 0 {
        return Ok(None);
    }
    Ok(Some(Candidate {
        at,
        node,
        place,
        use_of: Use::Product { bias },
        rows,
        kind: MatrixKind::Other,
    }))
}

fn lookup<'a>(
    model: &OnnxModel,
    names: &Names<'_, '_>,
    at: NodeAt,
    node: &'a NodeProto,
) -> Result<Option<Candidate<'a>>, OnnxError> {
    let (Some(table), Some(indices)) = (node.input_name(0), node.input_name(1)) else {
        return Ok(None);
    };
    if node.int("axis").unwrap_or(0) != 0 {
        return Ok(None);
    }
    let Some((place, matrix)) = matrix(model, names, table)? else {
        return Ok(None);
    };
    let rows = ChannelRows::new(matrix, 0, 1.0);
    if rows.columns() < BLOCK || rows.rows() < SMALLEST_TABLE_ROWS {
        return Ok(None);
    }
    let kind = if looks_up_tokens(names, indices) {
        MatrixKind::Embedding
    } else {
        MatrixKind::PositionTable
    };
    Ok(Some(Candidate {
        at,
        node,
        place,
        use_of: Use::Lookup,
        rows,
        kind,
    }))
}
