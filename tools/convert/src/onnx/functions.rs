//! Functions that a model defines itself (as PyTorch's exporter writes them): their calls are replaced by their nodes.

use std::collections::HashMap;

use super::{
    OnnxError,
    model::opset,
    proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto},
};

/// More nodes than any real model has; functions that call functions can multiply without bound.
const MAX_NODES: usize = 250_000;
/// Deeper than any real model nests its functions and subgraphs.
const MAX_DEPTH: usize = 64;

/// Domain, operator and overload.
type Key = (String, String, String);

pub(super) fn inline_functions(model: &mut ModelProto) -> Result<(), OnnxError> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let functions = std::mem::take(&mut model.functions);
    adopt_opsets(model, &functions)?;
    let Some(graph) = model.graph.as_mut() else {
        return Ok(());
    };
    let functions: HashMap<Key, &FunctionProto> = functions
        .iter()
        .map(|function| {
            (
                key(function.domain(), function.name(), function.overload()),
                function,
            )
        })
        .collect();
    let mut inliner = Inliner {
        functions,
        prefix: unused_prefix(graph),
        calls: 0,
        nodes: 0,
    };
    inliner.expand_graph(graph, 0)
}

fn key(domain: &str, name: &str, overload: &str) -> Key {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    (domain.to_owned(), name.to_owned(), overload.to_owned())
}

/// Imports the operator sets that only functions name.
fn adopt_opsets(model: &mut ModelProto, functions: &[FunctionProto]) -> Result<(), OnnxError> {
    for function in functions {
        for import in &function.opset_import {
            let version = import.version();
            match opset(model, import.domain()) {
                None => model.opset_import.push(OperatorSetIdProto {
                    domain: Some(import.domain().to_owned()),
                    version: Some(version),
                }),
                Some(of_model) if of_model == version => {}
                Some(of_model) => {
                    return Err(OnnxError::Model(format!(
                        "function {:?} is written for version {version} of operator set {:?}, the model for {of_model}",
                        function.name(),
                        import.domain()
                    )));
                }
            }
        }
    }
    Ok(())
}

/// A prefix that no value of the model begins with, so that the names of the functions' inner values are new.
fn unused_prefix(graph: &GraphProto) -> String {
    let mut prefix = "inlined".to_owned();
    while graph.node.iter().any(|node| mentions(node, &prefix)) {
        prefix.push('_');
    }
    prefix
}

fn mentions(node: &NodeProto, prefix: &str) -> bool {
    node.output
        .iter()
        .chain(&node.input)
        .any(|name| name.starts_with(prefix))
        || node
            .subgraphs()
            .any(|graph| graph.node.iter().any(|node| mentions(node, prefix)))
}

struct Inliner<'a> {
    functions: HashMap<Key, &'a FunctionProto>,
    prefix: String,
    calls: usize,
    nodes: usize,
}

impl Inliner<'_> {
    fn expand_graph(&mut self, graph: &mut GraphProto, depth: usize) -> Result<(), OnnxError> {
        graph.node = self.expand_nodes(std::mem::take(&mut graph.node), depth)?;
        Ok(())
    }

    fn expand_nodes(
        &mut self,
        nodes: Vec<NodeProto>,
        depth: usize,
    ) -> Result<Vec<NodeProto>, OnnxError> {
        if depth > MAX_DEPTH {
            return Err(OnnxError::Model(
                "its functions call each other in a circle".to_owned(),
            ));
        }
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return Err(OnnxError::Model(format!(
                    "its functions expand to more than {MAX_NODES} nodes"
                )));
            }
            match self
                .functions
                .get(&key(node.domain(), node.op_type(), node.overload()))
                .copied()
            {
                Some(function) => {
                    let body = self.body_of_call(&node, function)?;
                    expanded.extend(self.expand_nodes(body, depth + 1)?);
                }
                None => {
                    for attribute in &mut node.attribute {
                        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                            self.expand_graph(graph, depth + 1)?;
                        }
                    }
                    expanded.push(node);
                }
            }
        }
        Ok(expanded)
    }

    /// The function's nodes with the call's values and attributes in place of the formal ones.
    fn body_of_call(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
    ) -> Result<Vec<NodeProto>, OnnxError> {
        if call.input.len() > function.input.len() || call.output.len() > function.output.len() {
            return Err(OnnxError::node(
                call,
                "it has more inputs or outputs than the function that it calls",
            ));
        }
        self.calls += 1;
        let mut call_scope = CallScope {
            prefix: format!("{}{}/", self.prefix, self.calls),
            node_prefix: call.name().to_owned(),
            values: HashMap::new(),
            attributes: function
                .attribute_proto
                .iter()
                .chain(&call.attribute)
                .map(|attribute| (attribute.name(), attribute))
                .collect(),
        };
        for (index, formal) in function.input.iter().enumerate() {
            call_scope
                .values
                .insert(formal, call.input.get(index).cloned().unwrap_or_default());
        }
        let mut body = Vec::with_capacity(function.node.len());
        for (formal, actual) in function
            .output
            .iter()
            .zip(&call.output)
            .filter(|(_, actual)| !actual.is_empty())
        {
            // An output that is an input, or that is named twice, needs a node to carry it.
            match call_scope.values.get(formal.as_str()) {
                Some(source) => body.push(identity(source, actual)),
                None => {
                    call_scope.values.insert(formal, actual.clone());
                }
            }
        }
        for node in &function.node {
            let mut node = node.clone();
            call_scope.rename_node(&mut node);
            body.push(node);
        }
        Ok(body)
    }
}

fn identity(source: &str, target: &str) -> NodeProto {
    NodeProto {
        op_type: Some("Identity".to_owned()),
        name: Some(format!("{target}/Identity")),
        input: vec![source.to_owned()],
        output: vec![target.to_owned()],
        ..NodeProto::default()
    }
}

/// What the names inside a function stand for in one call.
struct CallScope<'a> {
    prefix: String,
    node_prefix: String,
    values: HashMap<&'a str, String>,
    attributes: HashMap<&'a str, &'a AttributeProto>,
}

impl CallScope<'_> {
    fn rename(&self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        *name = match self.values.get(name.as_str()) {
            Some(actual) => actual.clone(),
            None => format!("{}{name}", self.prefix),
        };
    }

    fn rename_option(&self, name: &mut Option<String>) {
        if let Some(name) = name {
            self.rename(name);
        }
    }

    fn rename_node(&self, node: &mut NodeProto) {
        let inner = node
            .name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(node.op_type.as_deref().unwrap_or(""));
        node.name = Some(format!("{}/{inner}", self.node_prefix));
        node.input
            .iter_mut()
            .chain(&mut node.output)
            .for_each(|name| self.rename(name));
        node.attribute = std::mem::take(&mut node.attribute)
            .into_iter()
            .filter_map(|mut attribute| {
                if let Some(reference) = attribute
                    .ref_attr_name
                    .as_deref()
                    .filter(|name| !name.is_empty())
                {
                    let given = self.attributes.get(reference)?;
                    return Some(AttributeProto {
                        name: attribute.name,
                        ..AttributeProto::clone(given)
                    });
                }
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.rename_graph(graph);
                }
                Some(attribute)
            })
            .collect();
    }

    fn rename_graph(&self, graph: &mut GraphProto) {
        for value in graph
            .input
            .iter_mut()
            .chain(&mut graph.output)
            .chain(&mut graph.value_info)
        {
            self.rename_option(&mut value.name);
        }
        for tensor in &mut graph.initializer {
            self.rename_option(&mut tensor.name);
        }
        for node in &mut graph.node {
            self.rename_node(node);
        }
    }
}
