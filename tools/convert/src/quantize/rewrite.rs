//! The rewrite of a graph: nodes with constant weights become nodes with quantized ones.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use half::{bf16, f16};

use super::{
    BLOCK, Bits, LeftNode, QuantizeError, QuantizeOptions, QuantizeReport, QuantizedMatrix,
    Quantizer, ScaleGrid, WeightRows,
    operators::{pack_gather_row, pack_matmul_row},
};
use crate::onnx::{
    ChannelRows, DataType, Matrix, OnnxError, OnnxModel, Producers,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
        attribute_proto::AttributeType,
    },
    used_names,
};

/// Rows that are in memory as floats at a time.
const PANEL_ROWS: usize = 256;
/// Tables with fewer rows (token types, say) stay floats: they weigh nothing.
const SMALLEST_TABLE_ROWS: usize = 64;

pub(super) fn rewrite(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    if !model.proto().functions.is_empty() {
        let mut inlined = model.derive(model.proto().clone())?;
        inlined.inline_functions()?;
        return rewrite(quantizer, &inlined, options);
    }
    let graph = model.graph();
    let producers = Producers::of(graph);
    let mut report = QuantizeReport::default();
    let mut planned = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        match plan(model, &producers, node, options.bits)? {
            Plan::Quantize(use_of, rows) => {
                planned.insert(index, (use_of, rows));
            }
            Plan::Leave(reason) => report.left.push(LeftNode {
                node: node.label(),
                reason: reason.to_owned(),
            }),
            Plan::Unconcerned => {}
        }
    }
    let mut store = Store::new(graph);
    let mut replacements: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    let mut quantized = Vec::new();
    // Products first: where a table serves both, its stored shape is that of the product.
    for lookups in [false, true] {
        for (index, node) in graph.node.iter().enumerate() {
            let Some((use_of, rows)) = planned
                .get(&index)
                .filter(|(use_of, _)| matches!(use_of, Use::Lookup) == lookups)
            else {
                continue;
            };
            let (tensors, relative_error) =
                store.quantize(quantizer, use_of, rows, options.bits)?;
            let matrix = QuantizedMatrix {
                node: node.label(),
                rows: rows.rows(),
                columns: rows.columns(),
                relative_error,
            };
            quantized.push((index, matrix));
            let nodes = match use_of {
                Use::Lookup => lookup_nodes(&mut store, node, rows, &tensors, options),
                Use::Product { bias } => {
                    product_nodes(&mut store, node, rows, &tensors, bias.as_deref(), options)
                }
            };
            replacements.insert(index, nodes);
        }
    }
    quantized.sort_by_key(|(index, _)| *index);
    report.quantized = quantized.into_iter().map(|(_, matrix)| matrix).collect();
    let nodes = graph.node.iter().enumerate().flat_map(|(index, node)| {
        replacements
            .remove(&index)
            .unwrap_or_else(|| vec![node.clone()])
    });
    let mut rewritten = GraphProto {
        node: nodes.collect(),
        ..graph.clone()
    };
    rewritten.initializer.extend(store.tensors);
    drop_unused(&mut rewritten);
    let mut proto = ModelProto {
        graph: Some(rewritten),
        ..model.proto().clone()
    };
    if !proto
        .opset_import
        .iter()
        .any(|import| import.domain() == "com.microsoft")
    {
        proto.opset_import.push(OperatorSetIdProto {
            domain: Some("com.microsoft".to_owned()),
            version: Some(1),
        });
    }
    Ok((model.derive(proto)?, report))
}

enum Plan {
    Quantize(Use, ChannelRows),
    /// The node has constant weights, but keeps them for this reason.
    Leave(&'static str),
    Unconcerned,
}

enum Use {
    /// A matrix product, and the value that is added to it.
    Product { bias: Option<String> },
    /// A lookup of rows.
    Lookup,
}

fn plan(
    model: &OnnxModel,
    producers: &Producers<'_>,
    node: &NodeProto,
    bits: Bits,
) -> Result<Plan, OnnxError> {
    let fused = node.is_microsoft("FusedMatMul");
    if node.is("Gather") {
        plan_lookup(model, producers, node, bits)
    } else if node.is("MatMul") || node.is("Gemm") || fused {
        plan_product(model, producers, node, fused)
    } else {
        Ok(Plan::Unconcerned)
    }
}

fn plan_product(
    model: &OnnxModel,
    producers: &Producers<'_>,
    node: &NodeProto,
    fused: bool,
) -> Result<Plan, OnnxError> {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    let Some(weight) = node.input_name(1) else {
        return Ok(Plan::Unconcerned);
    };
    let Some(matrix) = Matrix::behind(model, producers, weight)? else {
        return Ok(Plan::Unconcerned);
    };
    if flag("transA") || (fused && (flag("transBatchA") || flag("transBatchB"))) {
        return Ok(Plan::Leave("its activations are transposed"));
    }
    let bias = node.input_name(2).map(str::to_owned);
    if bias.is_some() && node.float("beta").unwrap_or(1.0) != 1.0 {
        return Ok(Plan::Leave("its bias is scaled"));
    }
    let channel_axis = if flag("transB") { 0 } else { 1 };
    let rows = ChannelRows::new(matrix, channel_axis, node.float("alpha").unwrap_or(1.0));
    Ok(if rows.columns() < BLOCK {
        Plan::Leave("its rows are shorter than a block")
    } else if rows.rows() == 0 {
        Plan::Leave("it has no rows")
    } else {
        Plan::Quantize(Use::Product { bias }, rows)
    })
}

fn plan_lookup(
    model: &OnnxModel,
    producers: &Producers<'_>,
    node: &NodeProto,
    bits: Bits,
) -> Result<Plan, OnnxError> {
    let (Some(table), Some(indices)) = (node.input_name(0), node.input_name(1)) else {
        return Ok(Plan::Unconcerned);
    };
    if node.int("axis").unwrap_or(0) != 0 {
        return Ok(Plan::Unconcerned);
    }
    let Some(matrix) = Matrix::behind(model, producers, table)? else {
        return Ok(Plan::Unconcerned);
    };
    let rows = ChannelRows::new(matrix, 0, 1.0);
    Ok(
        if rows.columns() < BLOCK || rows.rows() < SMALLEST_TABLE_ROWS {
            Plan::Leave("the table is small")
        } else if bits == Bits::Four && !rows.columns().is_multiple_of(2) {
            Plan::Leave("its rows have an odd length")
        } else if !looks_up_tokens(model.graph(), producers, indices) {
            Plan::Leave("it looks up positions, not tokens")
        } else {
            Plan::Quantize(Use::Lookup, rows)
        },
    )
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

/// A quantized matrix among the new initializers.
struct QuantizedTensors {
    integers: Stored,
    scales: Stored,
}

#[derive(Clone)]
struct Stored {
    name: String,
    dims: Vec<i64>,
}

/// The new initializers; equal contents are stored once.
struct Store {
    tensors: Vec<TensorProto>,
    by_content: HashMap<(DataType, blake3::Hash), Stored>,
    names: HashSet<String>,
}

impl Store {
    fn new(graph: &GraphProto) -> Self {
        let values = graph
            .node
            .iter()
            .flat_map(|node| node.output.iter().chain(&node.input).map(String::as_str));
        let initializers = graph.initializer.iter().map(|tensor| tensor.name());
        let inputs = graph.input.iter().map(|input| input.name());
        let names = values
            .chain(initializers)
            .chain(inputs)
            .map(str::to_owned)
            .collect();
        Self {
            tensors: Vec::new(),
            by_content: HashMap::new(),
            names,
        }
    }

    /// A name that nothing in the graph has.
    fn unused_name(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}_{count}");
        }
        name
    }

    fn add(&mut self, wanted: &str, data_type: DataType, dims: Vec<i64>, data: Vec<u8>) -> Stored {
        let key = (data_type, blake3::hash(&data));
        if let Some(stored) = self.by_content.get(&key) {
            return stored.clone();
        }
        let stored = Stored {
            name: self.unused_name(wanted),
            dims,
        };
        self.tensors.push(TensorProto {
            name: Some(stored.name.clone()),
            dims: stored.dims.clone(),
            data_type: Some(data_type as i32),
            raw_data: Some(Bytes::from(data)),
            ..TensorProto::default()
        });
        self.by_content.insert(key, stored.clone());
        stored
    }

    /// Quantizes a matrix, and says how large the error is relative to the weights.
    fn quantize(
        &mut self,
        quantizer: &dyn Quantizer,
        use_of: &Use,
        rows: &ChannelRows,
        bits: Bits,
    ) -> Result<(QuantizedTensors, f64), QuantizeError> {
        let (count, columns) = (rows.rows(), rows.columns());
        let blocks = columns.div_ceil(BLOCK);
        let data_type = rows.matrix.data_type();
        let grid = if data_type == DataType::Bfloat16 {
            ScaleGrid::Bf16
        } else {
            ScaleGrid::F16
        };
        let (mut integers, mut scales, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (mut error, mut power) = (0.0f64, 0.0f64);
        for start in (0..count).step_by(PANEL_ROWS) {
            let panel = start..count.min(start + PANEL_ROWS);
            rows.read(panel.clone(), &mut values)?;
            let weights = WeightRows {
                name: rows.matrix.name(),
                first_row: panel.start,
                columns,
                values: &values,
            };
            let quantized = quantizer.quantize(&weights, bits, grid)?;
            let row_pairs = quantized
                .integers
                .chunks(columns)
                .zip(quantized.scales.chunks(blocks));
            for (values, (row, row_scales)) in values.chunks(columns).zip(row_pairs) {
                match use_of {
                    Use::Product { .. } => pack_matmul_row(row, bits, &mut integers),
                    Use::Lookup => pack_gather_row(row, bits, &mut integers),
                }
                for (column, (&value, &integer)) in values.iter().zip(row).enumerate() {
                    let difference = f64::from(value)
                        - f64::from(integer) * f64::from(row_scales[column / BLOCK]);
                    error += difference * difference;
                    power += f64::from(value) * f64::from(value);
                }
                append_scales(row_scales, data_type, &mut scales);
            }
        }
        let name = format!("{}_Q{}", rows.matrix.name(), bits.count());
        let dims = match use_of {
            Use::Product { .. } => vec![
                count as i64,
                blocks as i64,
                (BLOCK * bits.count() / 8) as i64,
            ],
            Use::Lookup => vec![count as i64, (columns * bits.count() / 8) as i64],
        };
        let tensors = QuantizedTensors {
            integers: self.add(&name, DataType::Uint8, dims, integers),
            scales: self.add(
                &format!("{name}_scales"),
                data_type,
                vec![count as i64, blocks as i64],
                scales,
            ),
        };
        Ok((
            tensors,
            if power > 0.0 {
                (error / power).sqrt()
            } else {
                0.0
            },
        ))
    }
}

fn append_scales(scales: &[f32], data_type: DataType, out: &mut Vec<u8>) {
    match data_type {
        DataType::Float16 => out.extend(
            scales
                .iter()
                .flat_map(|&scale| f16::from_f32(scale).to_le_bytes()),
        ),
        DataType::Bfloat16 => out.extend(
            scales
                .iter()
                .flat_map(|&scale| bf16::from_f32(scale).to_le_bytes()),
        ),
        _ => out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes())),
    }
}

fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

fn product_nodes(
    store: &mut Store,
    node: &NodeProto,
    rows: &ChannelRows,
    tensors: &QuantizedTensors,
    bias: Option<&str>,
    options: &QuantizeOptions,
) -> Vec<NodeProto> {
    let mut attribute = vec![
        int_attribute("K", rows.columns() as i64),
        int_attribute("N", rows.rows() as i64),
        int_attribute("bits", options.bits.count() as i64),
        int_attribute("block_size", BLOCK as i64),
    ];
    if options.accuracy_level != 0 {
        attribute.push(int_attribute("accuracy_level", options.accuracy_level));
    }
    let output = node.output.first().cloned().unwrap_or_default();
    let product = bias.map_or_else(
        || output.clone(),
        |_| store.unused_name(&format!("{output}_without_bias")),
    );
    let mut nodes = vec![NodeProto {
        input: vec![
            node.input[0].clone(),
            tensors.integers.name.clone(),
            tensors.scales.name.clone(),
        ],
        output: vec![product.clone()],
        name: node.name.clone(),
        op_type: Some("MatMulNBits".to_owned()),
        domain: Some("com.microsoft".to_owned()),
        attribute,
        metadata_props: node.metadata_props.clone(),
        ..NodeProto::default()
    }];
    nodes.extend(bias.map(|bias| NodeProto {
        input: vec![product, bias.to_owned()],
        output: vec![output],
        name: Some(format!("{}/bias", node.name())),
        op_type: Some("Add".to_owned()),
        ..NodeProto::default()
    }));
    nodes
}

fn lookup_nodes(
    store: &mut Store,
    node: &NodeProto,
    rows: &ChannelRows,
    tensors: &QuantizedTensors,
    options: &QuantizeOptions,
) -> Vec<NodeProto> {
    let bits = options.bits;
    let dims = vec![
        rows.rows() as i64,
        (rows.columns() * bits.count() / 8) as i64,
    ];
    let mut nodes = Vec::new();
    let mut data = tensors.integers.name.clone();
    if tensors.integers.dims != dims {
        // The same bytes serve a product, which wants its blocks as an axis of their own.
        let shape_bytes = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let shape = store.add(
            &format!("{data}_table_shape"),
            DataType::Int64,
            vec![2],
            shape_bytes,
        );
        let reshaped = store.unused_name(&format!("{data}_table"));
        nodes.push(NodeProto {
            input: vec![data, shape.name],
            output: vec![reshaped.clone()],
            name: Some(format!("{}/table", node.name())),
            op_type: Some("Reshape".to_owned()),
            ..NodeProto::default()
        });
        data = reshaped;
    }
    nodes.push(NodeProto {
        input: vec![data, node.input[1].clone(), tensors.scales.name.clone()],
        output: node.output.clone(),
        name: node.name.clone(),
        op_type: Some("GatherBlockQuantized".to_owned()),
        domain: Some("com.microsoft".to_owned()),
        attribute: vec![
            int_attribute("bits", bits.count() as i64),
            int_attribute("block_size", BLOCK as i64),
            int_attribute("gather_axis", 0),
            int_attribute("quantize_axis", 1),
        ],
        metadata_props: node.metadata_props.clone(),
        ..NodeProto::default()
    });
    nodes
}

/// Drops nodes whose results nothing uses, and initializers that no node reads.
fn drop_unused(graph: &mut GraphProto) {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        producers.extend(node.output.iter().map(|output| (output.as_str(), index)));
    }
    let mut live_nodes = vec![false; graph.node.len()];
    let mut live_names: HashSet<String> = HashSet::new();
    let mut wanted: Vec<&str> = graph.output.iter().map(|output| output.name()).collect();
    while let Some(name) = wanted.pop() {
        if live_names.insert(name.to_owned())
            && let Some(&index) = producers.get(name)
            && !std::mem::replace(&mut live_nodes[index], true)
        {
            wanted.extend(used_names(&graph.node[index]));
            wanted.extend(graph.node[index].output.iter().map(String::as_str));
        }
    }
    let dropped: HashSet<String> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name().to_owned())
        .filter(|name| !live_names.contains(name))
        .collect();
    let mut is_live = live_nodes.into_iter();
    graph.node.retain(|_| is_live.next().unwrap_or(true));
    graph
        .initializer
        .retain(|tensor| !dropped.contains(tensor.name()));
    graph.input.retain(|input| !dropped.contains(input.name()));
    graph
        .value_info
        .retain(|value| live_names.contains(value.name()));
    graph
        .quantization_annotation
        .retain(|annotation| live_names.contains(annotation.tensor_name()));
}
