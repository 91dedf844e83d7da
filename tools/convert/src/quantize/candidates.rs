//! The matrices of an ONNX model: those that can be quantized, and those that cannot, with the reason.

use super::{BLOCK, Code, QuantizeOptions, Quantizer};
use crate::onnx::FloatRows;
use crate::onnx::{
    ChannelRows, DataType, Matrix, OnnxError, OnnxModel, Producers,
    proto::{GraphProto, NodeProto, TensorProto},
};
use crate::plan::{Fate, LeftNode, MatrixKind, Plan, PlannedMatrix, Reason, decide, kinds_by_node};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Tables with fewer rows (token types, say) stay floats: they weigh nothing.
const SMALLEST_TABLE_ROWS: usize = 64;
/// Constants with fewer elements are not listed when they are left: they weigh nothing either.
const SMALLEST_LISTED: usize = BLOCK * BLOCK;
/// Longer chains of casts and reshapes than any exporter writes.
const MAX_CHAIN: usize = 64;

/// A node that multiplies by a constant matrix of floats, or looks up its rows.
pub(super) struct Candidate<'a> {
    /// Its place in the graph.
    pub(super) index: usize,
    pub(super) node: &'a NodeProto,
    pub(super) use_of: Use,
    pub(super) rows: ChannelRows,
    kind: MatrixKind,
    /// Why it cannot be quantized.
    obstacle: Option<&'static str>,
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

/// A constant that is no candidate.
struct Other {
    /// The node that reads it.
    node: String,
    name: String,
    rows: usize,
    columns: usize,
    format: String,
    reason: Reason,
}

/// All matrices of a model.
pub(super) struct Found<'a> {
    pub(super) candidates: Vec<Candidate<'a>>,
    others: Vec<Other>,
}

impl<'a> Found<'a> {
    pub(super) fn of(
        model: &'a OnnxModel,
        options: &QuantizeOptions,
    ) -> Result<Found<'a>, OnnxError> {
        let graph = model.graph();
        let producers = Producers::of(graph);
        let mut candidates = vec![];
        for (index, node) in graph.node.iter().enumerate() {
            candidates.extend(candidate(model, &producers, index, node)?);
        }
        name_kinds(&mut candidates, model, options);
        let mut listed: HashSet<&str> = candidates
            .iter()
            .map(|candidate| candidate.rows.matrix.value())
            .collect();
        let others: Vec<Other> = constants(graph)
            .into_iter()
            .filter_map(|constant| Some((constant.value, constant.other()?)))
            .filter(|(value, _)| listed.insert(value))
            .map(|(_, other)| other)
            .collect();
        Ok(Found { candidates, others })
    }

    /// What happens to every matrix, to every candidate, and the nodes that keep floats.
    pub(super) fn plan(
        &self,
        options: &QuantizeOptions,
        quantizer: &dyn Quantizer,
    ) -> (Plan, Vec<Fate>, Vec<LeftNode>) {
        let beside = self
            .others
            .iter()
            .any(|other| other.reason == Reason::Quantized);
        let mut plan = Plan::default();
        let mut fates = vec![];
        let mut left = vec![];
        // A matrix that two nodes read alike is one.
        let mut seen = HashSet::new();
        for candidate in &self.candidates {
            let (mut fate, mut reason) = decide(candidate.kind, false, beside, &options.wishes);
            if let (Fate::Quantize(_), Some(obstacle)) = (fate, candidate.obstacle_to(fate)) {
                (fate, reason) = (Fate::Keep, Reason::NotQuantizable(Cow::Borrowed(obstacle)));
            }
            // Standard ONNX keeps floats in the type that the rest of the graph has.
            if matches!(fate, Fate::Float(_)) {
                fate = Fate::Keep;
            }
            let (format, method) = match fate {
                Fate::Quantize(code) => {
                    (format!("{}, block {BLOCK}", code.name()), quantizer.name())
                }
                Fate::Keep | Fate::Float(_) => {
                    (type_name(candidate.rows.matrix.stored().data_type), "kept")
                }
            };
            if fate == Fate::Keep {
                left.push(LeftNode {
                    node: candidate.node.label(),
                    reason: reason.to_string(),
                });
            }
            fates.push(fate);
            if !seen.insert((candidate.rows.matrix.value(), format.clone())) {
                continue;
            }
            plan.matrices.push(PlannedMatrix {
                name: candidate.rows.name().to_owned(),
                kind: candidate.kind,
                rows: candidate.rows.rows(),
                columns: candidate.rows.columns(),
                fate,
                format,
                method,
                reason,
            });
        }
        for other in &self.others {
            if other.reason != Reason::Quantized {
                left.push(LeftNode {
                    node: other.node.clone(),
                    reason: other.reason.to_string(),
                });
            }
            plan.matrices.push(PlannedMatrix {
                name: other.name.clone(),
                kind: MatrixKind::Other,
                rows: other.rows,
                columns: other.columns,
                fate: Fate::Keep,
                format: other.format.clone(),
                method: "kept",
                reason: other.reason.clone(),
            });
        }
        (plan, fates, left)
    }
}

impl Candidate<'_> {
    fn obstacle_to(&self, fate: Fate) -> Option<&'static str> {
        self.obstacle.or_else(|| {
            let odd = self.use_of.is_lookup() && !self.rows.columns().is_multiple_of(2);
            (odd && fate == Fate::Quantize(Code::Int4)).then_some("its rows have an odd length")
        })
    }
}

/// Names what matrices are for: by the lowered graph where the model lowers, else by what reads them.
fn name_kinds(candidates: &mut [Candidate<'_>], model: &OnnxModel, options: &QuantizeOptions) {
    let by_node = kinds_by_node(model, &options.facts);
    let mut uses: HashMap<String, (bool, bool)> = HashMap::new();
    for candidate in candidates.iter() {
        let (lookup, product) = uses
            .entry(candidate.rows.matrix.value().to_owned())
            .or_default();
        *lookup |= candidate.kind == MatrixKind::Embedding;
        *product |= !candidate.use_of.is_lookup();
    }
    for candidate in candidates {
        let known = by_node.get(candidate.node.name_or_output());
        if let Some(kind) = known {
            candidate.kind = *kind;
        } else if uses.get(candidate.rows.matrix.value()) == Some(&(true, true)) {
            candidate.kind = MatrixKind::EmbeddingAndHead;
        }
    }
}

fn candidate<'a>(
    model: &OnnxModel,
    producers: &Producers<'_>,
    index: usize,
    node: &'a NodeProto,
) -> Result<Option<Candidate<'a>>, OnnxError> {
    let fused = node.is_microsoft("FusedMatMul");
    if node.is("Gather") {
        lookup(model, producers, index, node)
    } else if node.is("MatMul") || node.is("Gemm") || fused {
        product(model, producers, index, node, fused)
    } else {
        Ok(None)
    }
}

fn product<'a>(
    model: &OnnxModel,
    producers: &Producers<'_>,
    index: usize,
    node: &'a NodeProto,
    fused: bool,
) -> Result<Option<Candidate<'a>>, OnnxError> {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    let Some(weight) = node.input_name(1) else {
        return Ok(None);
    };
    let Some(matrix) = Matrix::behind(model, producers, weight)? else {
        return Ok(None);
    };
    let bias = node.input_name(2).map(str::to_owned);
    let channel_axis = if flag("transB") { 0 } else { 1 };
    let rows = ChannelRows::new(matrix, channel_axis, node.float("alpha").unwrap_or(1.0));
    let obstacle = if flag("transA") || (fused && (flag("transBatchA") || flag("transBatchB"))) {
        Some("its activations are transposed")
    } else if bias.is_some() && node.float("beta").unwrap_or(1.0) != 1.0 {
        Some("its bias is scaled")
    } else if rows.columns() < BLOCK {
        Some("its rows are shorter than a block")
    } else if rows.rows() == 0 {
        Some("it has no rows")
    } else {
        None
    };
    Ok(Some(Candidate {
        index,
        node,
        use_of: Use::Product { bias },
        rows,
        kind: MatrixKind::Other,
        obstacle,
    }))
}

fn lookup<'a>(
    model: &OnnxModel,
    producers: &Producers<'_>,
    index: usize,
    node: &'a NodeProto,
) -> Result<Option<Candidate<'a>>, OnnxError> {
    let (Some(table), Some(indices)) = (node.input_name(0), node.input_name(1)) else {
        return Ok(None);
    };
    if node.int("axis").unwrap_or(0) != 0 {
        return Ok(None);
    }
    let Some(matrix) = Matrix::behind(model, producers, table)? else {
        return Ok(None);
    };
    let rows = ChannelRows::new(matrix, 0, 1.0);
    let small = rows.columns() < BLOCK || rows.rows() < SMALLEST_TABLE_ROWS;
    let kind = if looks_up_tokens(model.graph(), producers, indices) {
        MatrixKind::Embedding
    } else {
        MatrixKind::PositionTable
    };
    Ok(Some(Candidate {
        index,
        node,
        use_of: Use::Lookup,
        rows,
        kind,
        obstacle: small.then_some("the table is small"),
    }))
}

/// Whether indices are an input of the graph other than the positions, perhaps reshaped. Tables of positions (learned
/// embeddings, rotary sines and cosines) are small and sensitive, so they stay floats.
fn looks_up_tokens(graph: &GraphProto, producers: &Producers<'_>, indices: &str) -> bool {
    let mut name = indices;
    // Each step goes to another node, so this ends even in a graph with a cycle.
    for _ in 0..=graph.node.len() {
        match producers.get(name) {
            None => {
                return graph.input.iter().any(|input| input.name() == name)
                    && !name.contains("position");
            }
            Some(node) => {
                let keeps_values = matches!(
                    node.op_type(),
                    "Cast" | "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze"
                );
                match node.input_name(0) {
                    Some(input) if keeps_values && node.is_onnx() => name = input,
                    _ => return false,
                }
            }
        }
    }
    false
}

/// A constant that a node reads.
struct Constant<'a> {
    node: &'a NodeProto,
    value: &'a str,
    tensor: &'a TensorProto,
    data_type: DataType,
    /// It lies in the body of an `If`, `Loop` or `Scan`.
    in_body: bool,
    /// Which of the node's inputs it is.
    input: usize,
}

/// Every constant that a node of the graph or of its bodies reads, once for each reader.
fn constants(graph: &GraphProto) -> Vec<Constant<'_>> {
    let mut found = vec![];
    collect(graph, &mut vec![], &mut found);
    found
}

/// What the nodes of a graph, and of bodies in it, can refer to.
struct Scope<'a> {
    /// Values that do not change.
    stored: HashMap<&'a str, &'a TensorProto>,
    producers: Producers<'a>,
}

impl<'a> Scope<'a> {
    fn of(graph: &'a GraphProto) -> Scope<'a> {
        let initializers = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name(), tensor));
        let constants = graph
            .node
            .iter()
            .filter(|node| node.is("Constant"))
            .filter_map(|node| Some((node.output_name(0)?, node.tensor("value")?)));
        Scope {
            stored: initializers.chain(constants).collect(),
            producers: Producers::of(graph),
        }
    }
}

/// Whether a node gives the values of its first input in another shape, order or type.
fn moves(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "Cast" | "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze"
    )
}

/// The constant that a value is, perhaps in another shape, and its name.
fn behind<'a>(scopes: &[Scope<'a>], name: &'a str) -> Option<(&'a str, &'a TensorProto)> {
    let mut name = name;
    for _ in 0..MAX_CHAIN {
        let inner_first = || scopes.iter().rev();
        if let Some(tensor) = inner_first().find_map(|scope| scope.stored.get(name).copied()) {
            return Some((name, tensor));
        }
        let producer = inner_first().find_map(|scope| scope.producers.get(name))?;
        name = producer.input_name(0).filter(|_| moves(producer))?;
    }
    None
}

/// Collects from a graph that lies in `scopes`, and from the bodies in it.
fn collect<'a>(graph: &'a GraphProto, scopes: &mut Vec<Scope<'a>>, found: &mut Vec<Constant<'a>>) {
    scopes.push(Scope::of(graph));
    for node in graph.node.iter().filter(|node| !moves(node)) {
        for input in 0..node.input.len() {
            let name = node.input_name(input);
            let Some((value, tensor)) = name.and_then(|name| behind(scopes, name)) else {
                continue;
            };
            found.push(Constant {
                node,
                value,
                tensor,
                data_type: DataType::try_from(tensor.data_type()).unwrap_or_default(),
                in_body: scopes.len() > 1,
                input,
            });
        }
        for body in node.subgraphs() {
            collect(body, scopes, found);
        }
    }
    scopes.pop();
}

impl Constant<'_> {
    /// What is said of it in the plan, if anything.
    fn other(&self) -> Option<Other> {
        let dims: Vec<usize> = self
            .tensor
            .dims
            .iter()
            .map(|dim| usize::try_from(*dim).unwrap_or(0))
            .collect();
        let elements = dims
            .iter()
            .fold(1usize, |product, dim| product.saturating_mul(*dim));
        if dims.len() < 2 || elements < SMALLEST_LISTED {
            return None;
        }
        let reason = match self.data_type {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => {
                Reason::NotQuantizable(self.obstacle(dims.len())?)
            }
            DataType::Int8
            | DataType::Uint8
            | DataType::Int4
            | DataType::Uint4
            | DataType::Int2
            | DataType::Uint2
                if self.reads_quantized_weights() =>
            {
                Reason::Quantized
            }
            _ => return None,
        };
        let packed = |name: &str| {
            self.node
                .int(name)
                .and_then(|size| usize::try_from(size).ok())
        };
        let rows = packed("N").or(dims.first().copied()).unwrap_or(0);
        let columns = packed("K").unwrap_or_else(|| elements.checked_div(dims[0]).unwrap_or(0));
        let format = match (self.node.int("bits"), &reason) {
            (Some(bits), Reason::Quantized) => format!("{bits} bits"),
            _ => type_name(self.data_type),
        };
        Some(Other {
            node: self.node.label(),
            name: self.value.to_owned(),
            rows,
            columns,
            format,
            reason,
        })
    }

    /// Why floats are left; `None` where they are no weights.
    fn obstacle(&self, dimensions: usize) -> Option<Cow<'static, str>> {
        let operator = self.node.op_type();
        // Tables of angles and masks; scales of what is quantized.
        let is_no_weight = matches!(
            operator,
            "RotaryEmbedding" | "GroupQueryAttention" | "MultiHeadAttention" | "Where" | "Constant"
        );
        if is_no_weight || (self.reads_quantized_weights() && operator != "Gather") {
            return None;
        }
        if self.in_body {
            return Some("it lies in the body of an If or a Loop".into());
        }
        if !matches!(operator, "MatMul" | "Gemm" | "FusedMatMul" | "Gather") {
            return Some(format!("the operator {operator} is not quantized").into());
        }
        Some(if self.data_type == DataType::Double {
            "its weights are float64".into()
        } else if dimensions != 2 {
            format!("its weights have {dimensions} dimensions").into()
        } else if operator == "Gather" {
            "it does not look up rows".into()
        } else if self.input == 0 {
            "its weights are the left factor".into()
        } else {
            "its weights are not a matrix".into()
        })
    }

    fn reads_quantized_weights(&self) -> bool {
        matches!(
            self.node.op_type(),
            "MatMulNBits"
                | "GatherBlockQuantized"
                | "MatMulInteger"
                | "MatMulIntegerToFloat"
                | "DynamicQuantizeMatMul"
                | "QLinearMatMul"
                | "QGemm"
                | "ConvInteger"
                | "QLinearConv"
                | "DequantizeLinear"
                | "MatMulBnb4"
                | "Gather"
        )
    }
}

fn type_name(data_type: DataType) -> String {
    match data_type {
        DataType::Float => "f32".to_owned(),
        DataType::Float16 => "f16".to_owned(),
        DataType::Bfloat16 => "bf16".to_owned(),
        DataType::Double => "f64".to_owned(),
        other => other.as_str_name().to_lowercase(),
    }
}
