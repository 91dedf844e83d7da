//! The nodes that take the place of products and lookups.

use super::channels::ChannelTensors;
use super::store::{QuantizedTensors, Store};
use super::{BLOCK, Code, QuantizeError};
use crate::onnx::FloatRows;
use crate::onnx::{
    ChannelRows, DataType,
    proto::{AttributeProto, NodeProto, attribute_proto::AttributeType},
};

/// What new nodes say of themselves.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) code: Code,
    /// The `accuracy_level` of `MatMulNBits`.
    pub(super) accuracy_level: i64,
}

fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

pub(super) fn product_nodes(
    store: &mut Store,
    node: &NodeProto,
    rows: &ChannelRows,
    tensors: &QuantizedTensors,
    bias: Option<&str>,
    form: Form,
) -> Vec<NodeProto> {
    let mut attribute = vec![
        int_attribute("K", rows.columns() as i64),
        int_attribute("N", rows.rows() as i64),
        int_attribute("bits", form.code.bits() as i64),
        int_attribute("block_size", BLOCK as i64),
    ];
    if form.accuracy_level != 0 {
        attribute.push(int_attribute("accuracy_level", form.accuracy_level));
    }
    let output = node.output.first().cloned().unwrap_or_default();
    let product = bias.map_or_else(
        || output.clone(),
        |_| store.unused_name(&format!("{output}_without_bias")),
    );
    let wanted = rows.matrix.data_type();
    let is_cast = tensors.scale_type != wanted;
    let (mut from, mut to) = (node.input[0].clone(), product.clone());
    let mut nodes = vec![];
    if is_cast {
        let wide = store.unused_name(&format!("{output}_wide_input"));
        let cast_name = format!("{}/widen", node.name());
        nodes.push(cast_node(cast_name, &from, &wide, tensors.scale_type));
        from = wide;
        to = store.unused_name(&format!("{product}_wide"));
    }
    nodes.push(NodeProto {
        input: vec![
            from,
            tensors.integers.name.clone(),
            tensors.scales.name.clone(),
        ],
        output: vec![to.clone()],
        name: node.name.clone(),
        op_type: Some("MatMulNBits".to_owned()),
        domain: Some("com.microsoft".to_owned()),
        attribute,
        metadata_props: node.metadata_props.clone(),
        ..NodeProto::default()
    });
    if is_cast {
        let cast_name = format!("{}/narrow", node.name());
        nodes.push(cast_node(cast_name, &to, &product, wanted));
    }
    nodes.extend(bias.map(|bias| NodeProto {
        input: vec![product, bias.to_owned()],
        output: vec![output],
        name: Some(format!("{}/bias", node.name())),
        op_type: Some("Add".to_owned()),
        ..NodeProto::default()
    }));
    nodes
}

pub(super) fn lookup_nodes(
    store: &mut Store,
    node: &NodeProto,
    rows: &ChannelRows,
    tensors: &QuantizedTensors,
    Form { code, .. }: Form,
) -> Result<Vec<NodeProto>, QuantizeError> {
    let dims = vec![
        rows.rows() as i64,
        (rows.columns() * code.bits() / 8) as i64,
    ];
    let mut nodes = Vec::new();
    let mut data = tensors.integers.name.clone();
    if tensors.integers.dims != dims {
        // The same bytes serve a product, which wants its blocks as an axis of their own.
        let shape_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let shape = store.add(
            &format!("{data}_table_shape"),
            DataType::Int64,
            vec![2],
            &shape_bytes,
        )?;
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
    let wanted = rows.matrix.data_type();
    let output = node.output.first().cloned().unwrap_or_default();
    let looked_up = if tensors.scale_type == wanted {
        output.clone()
    } else {
        store.unused_name(&format!("{output}_wide"))
    };
    nodes.push(NodeProto {
        input: vec![data, node.input[1].clone(), tensors.scales.name.clone()],
        output: vec![looked_up.clone()],
        name: node.name.clone(),
        op_type: Some("GatherBlockQuantized".to_owned()),
        domain: Some("com.microsoft".to_owned()),
        attribute: vec![
            int_attribute("bits", code.bits() as i64),
            int_attribute("block_size", BLOCK as i64),
            int_attribute("gather_axis", 0),
            int_attribute("quantize_axis", 1),
        ],
        metadata_props: node.metadata_props.clone(),
        ..NodeProto::default()
    });
    if looked_up != output {
        let cast_name = format!("{}/narrow", node.name());
        nodes.push(cast_node(cast_name, &looked_up, &output, wanted));
    }
    Ok(nodes)
}

/// What gives the value `name` of type `data_type` from 8-bit integers.
pub(super) fn dequantize_nodes(
    store: &mut Store,
    name: &str,
    tensors: &ChannelTensors,
    data_type: DataType,
) -> Vec<NodeProto> {
    let (integers, scales) = (&tensors.integers.name, &tensors.scales.name);
    let floats = if data_type == DataType::Float {
        name.to_owned()
    } else {
        store.unused_name(&format!("{name}_wide"))
    };
    let mut nodes = vec![];
    match tensors.axis {
        Some(axis) => nodes.push(NodeProto {
            input: vec![integers.clone(), scales.clone()],
            output: vec![floats.clone()],
            name: Some(format!("{name}/dequantize")),
            op_type: Some("DequantizeLinear".to_owned()),
            attribute: vec![int_attribute("axis", axis as i64)],
            ..NodeProto::default()
        }),
        // Older operator sets have no axis there, and none has two.
        None => {
            let numbers = store.unused_name(&format!("{name}_integers"));
            let cast_name = format!("{name}/integers");
            nodes.push(cast_node(cast_name, integers, &numbers, DataType::Float));
            nodes.push(NodeProto {
                input: vec![numbers, scales.clone()],
                output: vec![floats.clone()],
                name: Some(format!("{name}/dequantize")),
                op_type: Some("Mul".to_owned()),
                ..NodeProto::default()
            });
        }
    }
    if floats != name {
        nodes.push(cast_node(
            format!("{name}/narrow"),
            &floats,
            name,
            data_type,
        ));
    }
    nodes
}

fn cast_node(name: String, from: &str, to: &str, data_type: DataType) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        name: Some(name),
        op_type: Some("Cast".to_owned()),
        attribute: vec![int_attribute("to", data_type as i64)],
        ..NodeProto::default()
    }
}
