//! The constants of an ONNX model, in its graph and in the bodies inside it, and what reads each.

use super::operand::{Operand, reads_quantized_weights};
use crate::onnx::{
    DataType, Names, Place, Scopes, moves,
    proto::{GraphProto, NodeProto, TensorProto},
};
use std::collections::HashMap;

/// A node by the number of its graph, and its place there.
pub(super) type NodeAt = (usize, usize);

/// A stored tensor.
pub(super) struct StoredTensor<'a> {
    pub(super) place: Place,
    pub(super) tensor: &'a TensorProto,
    pub(super) data_type: DataType,
    pub(super) readers: Vec<Reader<'a>>,
    /// It is a result of the model or of a body.
    pub(super) is_result: bool,
}

/// A node that reads a stored tensor.
pub(super) struct Reader<'a> {
    pub(super) at: NodeAt,
    pub(super) node: &'a NodeProto,
    pub(super) operand: Operand,
    /// The indices are not tokens.
    pub(super) is_position_lookup: bool,
}

impl StoredTensor<'_> {
    pub(super) fn dims(&self) -> Vec<usize> {
        let dims = self.tensor.dims.iter();
        dims.map(|dim| usize::try_from(*dim).unwrap_or(0)).collect()
    }

    pub(super) fn elements(&self) -> usize {
        let dims = self.dims();
        dims.iter()
            .fold(1, |product, dim| product.saturating_mul(*dim))
    }

    /// The reader of integers that are weights.
    pub(super) fn quantized_reader(&self) -> Option<&NodeProto> {
        let is_integer = matches!(
            self.data_type,
            DataType::Int8
                | DataType::Uint8
                | DataType::Int4
                | DataType::Uint4
                | DataType::Int2
                | DataType::Uint2
        );
        let reads = |reader: &&Reader<'_>| {
            reads_quantized_weights(reader.node) || reader.node.op_type() == "Gather"
        };
        let reader = self.readers.iter().find(reads).filter(|_| is_integer);
        reader.map(|reader| reader.node)
    }
}

/// Every constant that a node reads, in the order of the first readers.
pub(super) fn stored_tensors<'a>(scopes: &Scopes<'a>) -> Vec<StoredTensor<'a>> {
    let mut found = Tensors::default();
    for (graph, names) in scopes.each() {
        for (index, node) in graph.node.iter().enumerate() {
            if moves(node) {
                continue;
            }
            for input in 0..node.input.len() {
                found.read(&names, node, (names.graph(), index), input);
            }
        }
        found.results(graph, &names);
    }
    found.tensors
}

#[derive(Default)]
struct Tensors<'a> {
    tensors: Vec<StoredTensor<'a>>,
    by_place: HashMap<Place, usize>,
}

impl<'a> Tensors<'a> {
    fn at(&mut self, place: Place, tensor: &'a TensorProto) -> &mut StoredTensor<'a> {
        let next = self.tensors.len();
        let index = *self.by_place.entry(place.clone()).or_insert(next);
        if index == next {
            self.tensors.push(StoredTensor {
                place,
                tensor,
                data_type: DataType::try_from(tensor.data_type()).unwrap_or_default(),
                readers: vec![],
                is_result: false,
            });
        }
        &mut self.tensors[index]
    }

    fn read(&mut self, names: &Names<'_, 'a>, node: &'a NodeProto, at: NodeAt, input: usize) {
        let Some(name) = node.input_name(input) else {
            return;
        };
        let Some(constant) = names.moved_constant(name) else {
            return;
        };
        let is_lookup = node.is("Gather") && input == 0;
        let indices = node.input_name(1).filter(|_| is_lookup);
        let reader = Reader {
            at,
            node,
            operand: Operand::of(node, input, &constant),
            is_position_lookup: indices.is_some_and(|indices| !looks_up_tokens(names, indices)),
        };
        self.at(constant.place, constant.tensor)
            .readers
            .push(reader);
    }

    fn results(&mut self, graph: &GraphProto, names: &Names<'_, 'a>) {
        for output in &graph.output {
            if let Some((place, tensor)) = names.constant(output.name()) {
                self.at(place, tensor).is_result = true;
            }
        }
    }
}

/// Whether indices are an input of the model other than the positions, perhaps reshaped. Tables of positions (learned
/// embeddings, rotary sines and cosines) are small and sensitive, so they stay floats.
pub(super) fn looks_up_tokens(names: &Names<'_, '_>, indices: &str) -> bool {
    let source = names.source(indices);
    names.is_model_input(&source) && !source.contains("position")
}
