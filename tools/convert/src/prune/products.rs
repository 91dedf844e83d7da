//! The products of an ONNX model with constant weights, in its graph and in the bodies inside it.

use crate::onnx::{
    ChannelRows, DataType, Definition, Matrix, MatrixShape, Names, OnnxError, OnnxModel, Place,
    Scopes, count_graphs, moves,
    proto::{GraphProto, NodeProto, TensorProto},
};
use std::collections::HashSet;

/// Longer chains of casts and reshapes than any exporter writes.
const MAX_CHAIN: usize = 64;
/// Constants with fewer elements are not named when they are left: they weigh nothing.
const SMALLEST_NAMED: usize = 1024;

/// A node that has constant floats for weights.
pub(super) struct Weighted<'a> {
    pub(super) node: &'a NodeProto,
    /// Where the weights are stored.
    pub(super) place: Option<Place>,
    pub(super) reads: Reads,
    /// Its result is one of the model's, but for a bias and a function that keeps its order.
    pub(super) is_head: bool,
}

/// How a node reads its weights.
pub(super) enum Reads {
    /// It multiplies by them: one row for each output channel.
    Product(ChannelRows),
    /// It looks up rows of them; whether they are worth being named in a report.
    Table(bool),
    /// Any other way, or they are stored in a way that is not pruned. Some are worth being named in a report.
    Otherwise(Option<String>),
}

/// Whether a value was made from integers, perhaps moved since.
fn was_quantized(names: &Names<'_, '_>, name: &str) -> bool {
    let mut name = name.to_owned();
    for _ in 0..MAX_CHAIN {
        let Some((_, Definition::Node(node))) = names.define(&name) else {
            return false;
        };
        if node.is("DequantizeLinear") {
            let integers = node.input_name(0);
            return integers.is_some_and(|name| names.constant(name).is_some());
        }
        match node.input_name(0) {
            Some(input) if moves(node) => name = input.to_owned(),
            _ => return false,
        }
    }
    false
}

fn matrix(
    model: &OnnxModel,
    names: &Names<'_, '_>,
    name: &str,
    shape: MatrixShape,
) -> Result<Option<Matrix>, OnnxError> {
    let definition = |name: &str| Some(names.define(name)?.1);
    let matrix = Matrix::defined(model, definition, name, shape)?;
    Ok(matrix.filter(|matrix| !matrix.is_double()))
}

/// Every node with constant weights, in the order of the graphs.
pub(super) fn weighted(model: &OnnxModel) -> Result<Vec<Weighted<'_>>, OnnxError> {
    let scopes = Scopes::of(model.graph());
    let mut heads = Heads::of(model.graph(), scopes.count());
    let mut found = vec![];
    for (graph, names) in scopes.each() {
        let number = names.graph();
        heads.follow(number, graph, &names);
        for node in graph.node.iter().filter(|node| !moves(node)) {
            read(model, &names, node, |place, reads| {
                let mut outputs = node.output.iter();
                found.push(Weighted {
                    node,
                    place,
                    reads,
                    is_head: outputs.any(|output| heads.holds(number, output)),
                });
            })?;
        }
    }
    Ok(found)
}

/// Tells what a node reads of what the model stores.
fn read(
    model: &OnnxModel,
    names: &Names<'_, '_>,
    node: &NodeProto,
    mut tell: impl FnMut(Option<Place>, Reads),
) -> Result<(), OnnxError> {
    let (shape, transposed) = match node.op_type() {
        "Conv" if node.is_onnx() => (MatrixShape::Kernels, true),
        "MatMul" | "Gemm" if node.is_onnx() => (
            MatrixShape::TwoDimensions,
            node.int("transB").unwrap_or(0) != 0,
        ),
        "FusedMatMul" if node.is_microsoft("FusedMatMul") => (
            MatrixShape::TwoDimensions,
            node.int("transB").unwrap_or(0) != 0,
        ),
        _ => {
            let table = node.is("Gather");
            if multiplies_integers(node) {
                tell(None, Reads::Otherwise(Some(QUANTIZED.to_owned())));
            }
            // Shapes are not values.
            let inputs = node.input.iter().filter(|_| !node.is("Shape"));
            for (index, name) in inputs.enumerate() {
                if let Some((place, tensor)) = names.constant(name) {
                    let reads = if table && index == 0 {
                        Reads::Table(other_reason(node, tensor).is_some())
                    } else {
                        Reads::Otherwise(other_reason(node, tensor))
                    };
                    tell(Some(place), reads);
                }
            }
            return Ok(());
        }
    };
    for (index, name) in node.input.iter().enumerate() {
        let place = names.constant(name);
        if index != 1 {
            if let Some((place, tensor)) = place {
                let reason = other_reason(node, tensor).filter(|_| index == 0);
                let reason = reason.map(|_| "its weights are the left factor".to_owned());
                tell(Some(place), Reads::Otherwise(reason));
            }
            continue;
        }
        let channel_axis = usize::from(!transposed);
        match (matrix(model, names, name, shape)?, place) {
            (Some(matrix), Some((place, _))) => {
                let rows = ChannelRows::new(matrix, channel_axis, 1.0);
                tell(Some(place), Reads::Product(rows));
            }
            (_, Some((place, tensor))) => {
                let reason = other_reason(node, tensor);
                let dimensions = tensor.dims.len();
                let reason = reason.map(|reason| match tensor.data_type() {
                    code if code == DataType::Double as i32 => "its weights are float64".to_owned(),
                    _ if dimensions != 2 => format!("its weights have {dimensions} dimensions"),
                    _ => reason,
                });
                tell(Some(place), Reads::Otherwise(reason));
            }
            (_, None) if was_quantized(names, name) => {
                tell(None, Reads::Otherwise(Some(QUANTIZED.to_owned())));
            }
            (_, None) => {}
        }
    }
    Ok(())
}

/// What is said of weights that are integers already.
pub(super) const QUANTIZED: &str = "its weights are not plain floats: prune before quantizing";

fn multiplies_integers(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "MatMulNBits"
            | "MatMulInteger"
            | "MatMulIntegerToFloat"
            | "DynamicQuantizeMatMul"
            | "QLinearMatMul"
            | "QGemm"
            | "ConvInteger"
            | "QLinearConv"
            | "MatMulBnb4"
    )
}

/// Why floats of some size that a node reads are left; `None` where they are no weights.
fn other_reason(node: &NodeProto, tensor: &TensorProto) -> Option<String> {
    let elements = tensor.dims.iter().fold(1usize, |product, dim| {
        product.saturating_mul(usize::try_from(*dim).unwrap_or(0))
    });
    let is_float = matches!(
        DataType::try_from(tensor.data_type()).unwrap_or_default(),
        DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double
    );
    // Tables of angles, masks, and what is added.
    let is_table = matches!(
        node.op_type(),
        "Add"
            | "Constant"
            | "GroupQueryAttention"
            | "Mul"
            | "MultiHeadAttention"
            | "RotaryEmbedding"
            | "Slice"
            | "Where"
    );
    (is_float && !is_table && tensor.dims.len() >= 2 && elements >= SMALLEST_NAMED)
        .then(|| format!("the operator {} is not pruned", node.op_type()))
}

/// The values that are the model's results, but for a bias or a function that keeps their order.
struct Heads(Vec<HashSet<String>>);

impl Heads {
    fn of(graph: &GraphProto, graphs: usize) -> Heads {
        let mut values = vec![HashSet::new(); graphs];
        if let Some(main) = values.first_mut() {
            main.extend(graph.output.iter().map(|output| output.name().to_owned()));
        }
        Heads(values)
    }

    fn holds(&self, graph: usize, value: &str) -> bool {
        self.0[graph].contains(value)
    }

    /// Goes back from results of a graph to what they are made of, and into the branches that give them.
    fn follow(&mut self, number: usize, graph: &GraphProto, names: &Names<'_, '_>) {
        // Nodes come after what they read, so one way back is enough.
        for node in graph.node.iter().rev() {
            let gives = |output: &String| self.0[number].contains(output);
            if !node.output.iter().any(gives) {
                continue;
            }
            let passes = moves(node)
                || node.is_onnx()
                    && matches!(
                        node.op_type(),
                        "LogSoftmax" | "Sigmoid" | "Softmax" | "Tanh"
                    );
            let adds = node.is("Add")
                && node
                    .input
                    .iter()
                    .any(|input| names.constant(input).is_some());
            if passes {
                self.0[number].extend(node.input_name(0).map(str::to_owned));
            } else if adds {
                self.0[number].extend(node.input.iter().cloned());
            }
        }
        // Bodies are numbered after their graph, one after the other with what is in them.
        let mut next = number + 1;
        for node in &graph.node {
            for body in node.subgraphs() {
                let results = node
                    .output
                    .iter()
                    .zip(&body.output)
                    .filter(|(output, _)| node.is("If") && self.0[number].contains(*output));
                let results: Vec<String> = results
                    .map(|(_, result)| result.name().to_owned())
                    .collect();
                self.0[next].extend(results);
                next += count_graphs(body);
            }
        }
    }
}
