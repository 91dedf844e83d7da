//! A piece of a graph as a bundle of its own.

use super::pieces::Pieces;
use super::{CalibrateError, Replacements};
use crate::onnx::FloatRows;
use crate::panels::each_panel;
use niwaki_bundle::Manifest;
use niwaki_bundle::graph::{
    Graph, Input, InputKind, KvLayer, MatrixId, Node, Op, Output, VectorId, WeightMut,
};
use niwaki_bundle::write::BundleWriter;
use niwaki_kernels::{MatrixFormat, pack_float};
use std::collections::BTreeMap;
use std::path::Path;

/// The name under which a piece answers a node's value.
pub(super) fn output_name(node: usize) -> String {
    format!("value of node {node}")
}

/// Writes the bundle that computes the values of the nodes `outputs` from that of the node `start`, or from what the
/// whole graph begins with. Weights are `f32`, those of `replacements` in place of the graph's.
pub(super) fn write(
    pieces: &Pieces<'_>,
    start: Option<usize>,
    outputs: &[usize],
    replacements: &Replacements<'_>,
    path: &Path,
) -> Result<(), CalibrateError> {
    let whole = &pieces.lowered.graph;
    let mut piece = Piece {
        writer: BundleWriter::create(path)?,
        pieces,
        replacements,
        matrices: BTreeMap::new(),
        vectors: BTreeMap::new(),
        layers: vec![],
    };
    let mut nodes: Vec<Node> = vec![];
    let mut ids = BTreeMap::new();
    let inputs = match start {
        None => whole.inputs.clone(),
        Some(start) => {
            let Node { name, width, .. } = &pieces.nodes[start];
            ids.insert(start, 0);
            nodes.push(Node {
                name: name.clone(),
                op: Op::Rows { input: 0 },
                inputs: vec![],
                width: *width,
            });
            vec![Input {
                name: "residual stream".to_owned(),
                kind: InputKind::Rows { width: *width },
            }]
        }
    };
    for id in pieces.needed(start, outputs) {
        let mut node = pieces.nodes[id].clone();
        for columns in &mut node.inputs {
            columns.node = ids[&columns.node];
        }
        piece.take(&mut node.op)?;
        ids.insert(id, nodes.len());
        nodes.push(node);
    }
    let Piece { writer, layers, .. } = piece;
    let graph = Graph {
        context_tokens: whole.context_tokens,
        inputs,
        layers,
        ropes: whole.ropes.clone(),
        outputs: outputs
            .iter()
            .map(|id| Output {
                name: output_name(*id),
                node: ids[id],
            })
            .collect(),
        nodes,
    };
    writer.finish(&Manifest::default(), &graph)?;
    Ok(())
}

/// A piece while it is put together.
struct Piece<'a> {
    writer: BundleWriter,
    pieces: &'a Pieces<'a>,
    replacements: &'a Replacements<'a>,
    /// The piece's numbers of the graph's weights.
    matrices: BTreeMap<MatrixId, MatrixId>,
    vectors: BTreeMap<VectorId, VectorId>,
    layers: Vec<KvLayer>,
}

impl Piece<'_> {
    /// Writes the weights of an operator, and makes it refer to what the piece has: weights, and attention layers in
    /// order.
    fn take(&mut self, op: &mut Op) -> Result<(), CalibrateError> {
        for weight in op.weights_mut() {
            match weight {
                WeightMut::Matrix(id) => *id = self.matrix(*id)?,
                WeightMut::Vector(id) => *id = self.vector(*id)?,
            }
        }
        if let Op::Attention { layer, .. } = op {
            self.layers.push(self.pieces.lowered.graph.layers[*layer]);
            *layer = self.layers.len() - 1;
        }
        Ok(())
    }

    fn vector(&mut self, id: VectorId) -> Result<VectorId, CalibrateError> {
        if let Some(held) = self.vectors.get(&id) {
            return Ok(*held);
        }
        let (name, values) = &self.pieces.lowered.parts.vectors[id];
        let new = self.writer.add_vector(name.clone(), values)?;
        self.vectors.insert(id, new);
        Ok(new)
    }

    fn matrix(&mut self, id: MatrixId) -> Result<MatrixId, CalibrateError> {
        if let Some(held) = self.matrices.get(&id) {
            return Ok(*held);
        }
        let new = match self.replacements.get(&id) {
            Some(replacement) => self.floats(replacement.as_ref())?,
            None => self.floats(&self.pieces.lowered.parts.matrices[id])?,
        };
        self.matrices.insert(id, new);
        Ok(new)
    }

    fn floats(&mut self, matrix: &dyn FloatRows) -> Result<MatrixId, CalibrateError> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let mut output =
            self.writer
                .begin_matrix(matrix.name(), MatrixFormat::F32, rows, columns)?;
        let pack = |panel: std::ops::Range<usize>| {
            let mut values = vec![0.0; panel.len() * columns];
            matrix.read(panel.clone(), &mut values)?;
            matrix.release(panel.clone());
            // Its only error is a wrong number of values.
            Ok::<_, CalibrateError>(
                pack_float(MatrixFormat::F32, panel.len(), columns, &values).unwrap_or_default(),
            )
        };
        each_panel(rows, pack, |bytes| Ok(output.write(&bytes)?), &mut |_| ())?;
        let id = output.finish()?;
        matrix.release(0..rows);
        Ok(id)
    }
}
