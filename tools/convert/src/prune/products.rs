//! The products of an ONNX model with constant weights, in its graph and in the bodies inside it.

use crate::onnx::{
    ChannelRows, DataType, Definition, Matrix, MatrixShape, OnnxError, OnnxModel, Producers,
    proto::{GraphProto, NodeProto, TensorProto},
};
use std::collections::{HashMap, HashSet};

/// Longer chains of casts and reshapes than any exporter writes.
const MAX_CHAIN: usize = 64;
/// Constants with fewer elements are not named when they are left: they weigh nothing.
const SMALLEST_NAMED: usize = 1024;

/// Where a model stores a tensor: the graph's number, counted as [`graphs`] walks through them, and the value there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) graph: usize,
    pub(super) value: String,
}

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

/// The graphs of a model: the main one and the bodies of `If`, `Loop` and `Scan` in it, each with the numbers of those around
/// it, outermost first.
pub(super) fn graphs(main: &GraphProto) -> Vec<(&GraphProto, Vec<usize>)> {
    fn walk<'a>(
        graph: &'a GraphProto,
        around: &[usize],
        found: &mut Vec<(&'a GraphProto, Vec<usize>)>,
    ) {
        let mut around = around.to_vec();
        found.push((graph, around.clone()));
        around.push(found.len() - 1);
        for body in graph.node.iter().flat_map(NodeProto::subgraphs) {
            walk(body, &around, found);
        }
    }
    let mut found = vec![];
    walk(main, &[], &mut found);
    found
}

/// Calls `change` for each graph with its number, as [`graphs`] counts them.
pub(super) fn change_graphs(main: &mut GraphProto, change: &mut dyn FnMut(usize, &mut GraphProto)) {
    fn walk(
        graph: &mut GraphProto,
        next: &mut usize,
        change: &mut dyn FnMut(usize, &mut GraphProto),
    ) {
        change(*next, graph);
        *next += 1;
        let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
        for attribute in attributes {
            for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                walk(body, next, change);
            }
        }
    }
    walk(main, &mut 0, change);
}

/// What the names in one graph stand for.
struct Scope<'a> {
    initializers: HashMap<&'a str, &'a TensorProto>,
    producers: Producers<'a>,
}

impl<'a> Scope<'a> {
    fn of(graph: &'a GraphProto) -> Scope<'a> {
        let initializers = graph.initializer.iter();
        Scope {
            initializers: initializers.map(|tensor| (tensor.name(), tensor)).collect(),
            producers: Producers::of(graph),
        }
    }

    fn definition(&self, name: &str) -> Option<Definition<'a>> {
        match self.initializers.get(name) {
            Some(tensor) => Some(Definition::Initializer(tensor)),
            None => self.producers.get(name).map(Definition::Node),
        }
    }
}

/// What the names in a graph stand for: in itself and in those around it.
struct Names<'s, 'a> {
    scopes: &'s [Scope<'a>],
    /// The graph's number, and those around it from the inside out.
    seen: Vec<usize>,
}

impl<'a> Names<'_, 'a> {
    /// What a name stands for, and the number of the graph that says so.
    fn define(&self, name: &str) -> Option<(usize, Definition<'a>)> {
        self.seen
            .iter()
            .find_map(|number| Some((*number, self.scopes[*number].definition(name)?)))
    }

    /// Where the constant behind a name is stored, and its message.
    fn constant(&self, name: &str) -> Option<(Place, &'a TensorProto)> {
        let mut name = name.to_owned();
        for _ in 0..MAX_CHAIN {
            let (graph, definition) = self.define(&name)?;
            let node = match definition {
                Definition::Initializer(tensor) => {
                    return Some((Place { graph, value: name }, tensor));
                }
                Definition::Node(node) => node,
            };
            if node.is("Constant") {
                return Some((Place { graph, value: name }, node.tensor("value")?));
            }
            name = node.input_name(0).filter(|_| moves(node))?.to_owned();
        }
        None
    }

    /// Whether a value was made from integers, perhaps moved since.
    fn was_quantized(&self, name: &str) -> bool {
        let mut name = name.to_owned();
        for _ in 0..MAX_CHAIN {
            let Some((_, Definition::Node(node))) = self.define(&name) else {
                return false;
            };
            if node.is("DequantizeLinear") {
                let integers = node.input_name(0);
                return integers.is_some_and(|name| self.constant(name).is_some());
            }
            match node.input_name(0) {
                Some(input) if moves(node) => name = input.to_owned(),
                _ => return false,
            }
        }
        false
    }

    fn matrix(
        &self,
        model: &OnnxModel,
        name: &str,
        shape: MatrixShape,
    ) -> Result<Option<Matrix>, OnnxError> {
        let definition = |name: &str| Some(self.define(name)?.1);
        Matrix::defined(model, definition, name, shape)
    }
}

/// Whether a node gives the values of its first input in another shape, order or type.
fn moves(node: &NodeProto) -> bool {
    node.is_onnx()
        && matches!(
            node.op_type(),
            "Cast" | "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze"
        )
}

/// Every node with constant weights, in the order of the graphs.
pub(super) fn weighted(model: &OnnxModel) -> Result<Vec<Weighted<'_>>, OnnxError> {
    let graphs = graphs(model.graph());
    let scopes: Vec<Scope<'_>> = graphs.iter().map(|(graph, _)| Scope::of(graph)).collect();
    let mut heads = Heads::of(&graphs);
    let mut found = vec![];
    for (number, (graph, around)) in graphs.iter().enumerate() {
        let names = Names {
            scopes: &scopes,
            seen: std::iter::once(number)
                .chain(around.iter().rev().copied())
                .collect(),
        };
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
        match (names.matrix(model, name, shape)?, place) {
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
            (_, None) if names.was_quantized(name) => {
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
    fn of(graphs: &[(&GraphProto, Vec<usize>)]) -> Heads {
        let mut values = vec![HashSet::new(); graphs.len()];
        if let (Some(main), Some((graph, _))) = (values.first_mut(), graphs.first()) {
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
                next += count(body);
            }
        }
    }
}

/// A graph and all bodies in it.
fn count(graph: &GraphProto) -> usize {
    let bodies = graph.node.iter().flat_map(NodeProto::subgraphs);
    1 + bodies.map(count).sum::<usize>()
}
