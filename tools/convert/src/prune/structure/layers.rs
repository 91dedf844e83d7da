//! Whole layers taken out of an ONNX graph.

use super::CannotRemove;
use crate::onnx::{
    OnnxModel, drop_unused,
    proto::{AttributeProto, GraphProto, ModelProto, NodeProto, attribute_proto::AttributeType},
};
use crate::prune::PruneError;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Longest way from a projection to the stream that it joins: a bias, a cast, a norm.
const MAX_STEPS: usize = 8;

/// The nodes of a layer's projections that join the stream, in order.
pub(super) struct LayerNodes {
    pub(super) first: String,
    pub(super) last: String,
}

/// Takes layers out of a model: what reads the stream behind a layer reads that before it. `numbers` are those of the
/// attentions that go, as the cached keys and values are counted.
pub(super) fn drop_layers(
    model: &OnnxModel,
    layers: &[LayerNodes],
    numbers: &BTreeSet<usize>,
) -> Result<OnnxModel, PruneError> {
    let mut graph = GraphProto {
        node: model.sorted_nodes()?.into_iter().cloned().collect(),
        value_info: vec![],
        ..model.graph().clone()
    };
    for layer in layers {
        let before = joins(model, &graph, &layer.first)?;
        let behind = joins(model, &graph, &layer.last)?;
        pass_by(&mut graph, &behind, &before.stream)?;
    }
    renumber(&mut graph, numbers)?;
    drop_unused(&mut graph);
    let known: BTreeSet<String> = graph
        .node
        .iter()
        .flat_map(|node| node.output.iter().cloned())
        .chain(graph.input.iter().map(|input| input.name().to_owned()))
        .chain(
            graph
                .initializer
                .iter()
                .map(|tensor| tensor.name().to_owned()),
        )
        .collect();
    for node in &graph.node {
        let mut read = node.input.iter().filter(|name| !name.is_empty());
        if let Some(missing) = read.find(|name| !known.contains(*name)) {
            let reason = format!("it reads {missing:?}, which goes with a layer");
            return Err(CannotRemove::new(&node.label(), &reason).into());
        }
    }
    let proto = ModelProto {
        graph: Some(graph),
        ..model.proto().clone()
    };
    Ok(model.derive(proto)?)
}

/// Where a projection joins the stream.
struct Join {
    /// The node that adds.
    node: usize,
    /// The stream that it is added to.
    stream: String,
}

fn joins(model: &OnnxModel, graph: &GraphProto, projection: &str) -> Result<Join, PruneError> {
    let cannot = |reason: &str| CannotRemove::new(projection, reason);
    let found = graph
        .node
        .iter()
        .find(|node| node.name_or_output() == projection);
    let mut value = found
        .and_then(|node| node.output_name(0))
        .ok_or_else(|| cannot("the graph has no such node"))?;
    let is_constant = |name: &str| {
        model.initializer(name).is_some()
            || graph
                .node
                .iter()
                .any(|node| node.is("Constant") && node.output_name(0) == Some(name))
    };
    for _ in 0..MAX_STEPS {
        let mut readers = graph
            .node
            .iter()
            .enumerate()
            .filter(|(_, node)| node.input.iter().any(|input| input == value));
        let (Some((index, reader)), None) = (readers.next(), readers.next()) else {
            return Err(cannot("not one node but several read what it gives").into());
        };
        let other = match (reader.input_name(0), reader.input_name(1)) {
            (Some(a), Some(b)) if b == value && a != value => Some(a),
            (Some(a), Some(b)) if a == value && b != value => Some(b),
            _ => None,
        };
        let adds = reader.is("Add") || skips(reader);
        match other.filter(|_| adds) {
            Some(other) if !is_constant(other) => {
                return Ok(Join {
                    node: index,
                    stream: other.to_owned(),
                });
            }
            Some(_) if reader.is("Add") => {}
            _ if matches!(
                reader.op_type(),
                "Cast" | "Identity" | "SimplifiedLayerNormalization" | "LayerNormalization"
            ) => {}
            _ => {
                return Err(cannot("it is not added to the stream in a way that is known").into());
            }
        }
        value = reader
            .output_name(0)
            .ok_or_else(|| cannot("what it gives is lost"))?;
    }
    Err(cannot("it is not added to the stream in a way that is known").into())
}

/// Whether a node adds to the stream and normalises the sum.
fn skips(node: &NodeProto) -> bool {
    node.is_microsoft("SkipSimplifiedLayerNormalization")
        || node.is_microsoft("SkipLayerNormalization")
        || node.is("SkipSimplifiedLayerNormalization")
        || node.is("SkipLayerNormalization")
}

/// Makes what reads the stream behind a layer read `stream`.
fn pass_by(graph: &mut GraphProto, behind: &Join, stream: &str) -> Result<(), PruneError> {
    let node = &mut graph.node[behind.node];
    let sum = if skips(node) {
        let sum = node.output_name(3).map(str::to_owned);
        if let Some(output) = [1, 2].into_iter().find_map(|index| node.output_name(index)) {
            let reason = format!("its output {output:?} is used");
            return Err(CannotRemove::new(&node.label(), &reason).into());
        }
        let simplified = node.op_type() == "SkipSimplifiedLayerNormalization";
        let mut inputs = vec![stream.to_owned()];
        inputs.extend(node.input_name(2).map(str::to_owned));
        if !simplified {
            inputs.extend(node.input_name(3).map(str::to_owned));
        }
        let operator = match simplified {
            true => "SimplifiedLayerNormalization",
            false => "LayerNormalization",
        };
        node.op_type = Some(operator.to_owned());
        node.domain = None;
        node.input = inputs;
        node.output.truncate(1);
        for (name, value) in [("axis", -1), ("stash_type", 1)] {
            node.attribute.retain(|attribute| attribute.name() != name);
            node.attribute.push(AttributeProto {
                name: Some(name.to_owned()),
                r#type: Some(AttributeType::Int as i32),
                i: Some(value),
                ..AttributeProto::default()
            });
        }
        sum
    } else {
        node.output_name(0).map(str::to_owned)
    };
    let Some(sum) = sum else {
        return Ok(());
    };
    if graph.output.iter().any(|output| output.name() == sum) {
        return Err(CannotRemove::new(&sum, "the stream itself is a result of the model").into());
    }
    let renamed = HashMap::from([(sum, stream.to_owned())]);
    rename_inputs(graph, &renamed);
    Ok(())
}

/// Renames what nodes read, in bodies too.
fn rename_inputs(graph: &mut GraphProto, renamed: &HashMap<String, String>) {
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(new) = renamed.get(input) {
                input.clone_from(new);
            }
        }
        for attribute in &mut node.attribute {
            for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                rename_inputs(body, renamed);
            }
        }
    }
}

/// The number in the name of cached keys or values, and the name around it.
fn number(name: &str) -> Option<(&str, usize, &str)> {
    if !name.starts_with("past") && !name.starts_with("present") {
        return None;
    }
    let start = name.find(|letter: char| letter.is_ascii_digit())?;
    let digits = &name[start..];
    let length = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    let number = digits[..length].parse().ok()?;
    Some((&name[..start], number, &digits[length..]))
}

/// Takes the cached keys and values of layers out, and counts those that stay from zero again.
fn renumber(graph: &mut GraphProto, gone: &BTreeSet<usize>) -> Result<(), PruneError> {
    let values = graph.input.iter().chain(&graph.output);
    let names: Vec<String> = values.map(|value| value.name().to_owned()).collect();
    let found: BTreeSet<usize> = names
        .iter()
        .filter_map(|name| number(name).map(|(_, number, _)| number))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let counted = found.iter().copied().eq(0..found.len());
    if !counted || gone.iter().any(|number| !found.contains(number)) {
        let reason = "the cached keys and values are not numbered as the layers are";
        return Err(CannotRemove::new("the graph", reason).into());
    }
    let is_gone = |name: &str| number(name).is_some_and(|(_, number, _)| gone.contains(&number));
    graph.input.retain(|input| !is_gone(input.name()));
    graph.output.retain(|output| !is_gone(output.name()));
    // What else reads a cache that goes, for its length, reads that of the next layer, which takes its name.
    let new_names: BTreeMap<usize, usize> = found
        .iter()
        .filter(|number| !gone.contains(number))
        .enumerate()
        .map(|(new, old)| (*old, new))
        .collect();
    let renamed: HashMap<String, String> = names
        .iter()
        .filter_map(|name| {
            let (before, old, after) = number(name)?;
            let new = new_names.get(&old)?;
            Some((name.clone(), format!("{before}{new}{after}")))
        })
        .collect();
    // What those that go give gets out of the way.
    for node in &mut graph.node {
        for output in &mut node.output {
            if is_gone(output) {
                *output = format!("{output}/gone");
            } else if let Some(new) = renamed.get(output) {
                output.clone_from(new);
            }
        }
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(new) = renamed.get(value.name()) {
            value.name = Some(new.clone());
        }
    }
    rename_inputs(graph, &renamed);
    Ok(())
}
