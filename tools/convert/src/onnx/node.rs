//! Reading a node's attributes.

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

impl NodeProto {
    /// The node's name, or that of what it computes.
    pub fn name_or_output(&self) -> &str {
        match self.name() {
            "" => self.output.first().map_or("", String::as_str),
            name => name,
        }
    }

    /// The operator and the name, for messages: `MatMul "/model/layers.0/mlp/up_proj/MatMul"`. A node without a name is
    /// called after its first output.
    pub fn label(&self) -> String {
        let name = self.name_or_output();
        if self.is_onnx() {
            format!("{} {name:?}", self.op_type())
        } else {
            format!("{}:{} {name:?}", self.domain(), self.op_type())
        }
    }

    /// Whether the operator is of the ONNX standard's own domain, in either of its spellings.
    pub fn is_onnx(&self) -> bool {
        matches!(self.domain(), "" | "ai.onnx")
    }

    /// Whether this is the standard operator `op_type`.
    pub fn is(&self, op_type: &str) -> bool {
        self.is_onnx() && self.op_type() == op_type
    }

    /// Whether this is onnxruntime's contributed operator `op_type`.
    pub fn is_microsoft(&self, op_type: &str) -> bool {
        self.domain() == "com.microsoft" && self.op_type() == op_type
    }

    /// The name of input `index`, or `None` where it is absent (beyond the end, or empty).
    pub fn input_name(&self, index: usize) -> Option<&str> {
        self.input
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The name of output `index`, or `None` where it is absent (beyond the end, or empty).
    pub fn output_name(&self, index: usize) -> Option<&str> {
        self.output
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The attribute of that name.
    pub fn attribute_named(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute
            .iter()
            .find(|attribute| attribute.name() == name)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute_named(name)?.i
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute_named(name)?.f
    }

    /// A list of integers; an attribute that is absent and an empty list differ.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        Some(&self.attribute_named(name)?.ints)
    }

    /// A list of floats.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        Some(&self.attribute_named(name)?.floats)
    }

    /// A string attribute; `None` when it is absent or not UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.attribute_named(name)?.s.as_deref()?).ok()
    }

    /// A tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute_named(name)?.t.as_ref()
    }

    /// A graph attribute (the branches of `If`, the bodies of `Loop` and `Scan`).
    pub fn graph(&self, name: &str) -> Option<&GraphProto> {
        self.attribute_named(name)?.g.as_ref()
    }

    /// Every graph held by an attribute.
    pub fn subgraphs(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute
            .iter()
            .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
    }
}
