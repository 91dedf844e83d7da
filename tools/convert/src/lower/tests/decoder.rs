//! Builds decoders node by node.

use crate::lower::{LowerError, Lowered, ModelFacts, Rounding, lower};
use crate::onnx::DataType;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::onnx::small_models::{
    float_tensor, graph, int, ints, model, node, raw_tensor, tensor_attribute, with_attributes,
};

pub(super) const HIDDEN: usize = 16;
pub(super) const HEADS: usize = 4;
pub(super) const HEAD_DIM: usize = 4;
const VOCABULARY: usize = 11;

/// A graph under construction; every method returns the name of its result.
#[derive(Default)]
pub(super) struct Builder {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Builder {
    pub(super) fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.op_with(op_type, inputs, vec![])
    }

    pub(super) fn op_with(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = format!("v{}", self.nodes.len());
        self.nodes
            .push(with_attributes(node(op_type, inputs, &[&name]), attributes));
        name
    }

    /// An operator of onnxruntime's own domain.
    pub(super) fn microsoft(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = self.op_with(op_type, inputs, attributes);
        if let Some(node) = self.nodes.last_mut() {
            node.domain = Some("com.microsoft".to_owned());
        }
        name
    }

    pub(super) fn floats(&mut self, dims: &[usize], values: &[f32]) -> String {
        let name = format!("c{}", self.constants.len());
        let dims: Vec<i64> = dims.iter().map(|&dim| dim as i64).collect();
        self.constants.push(float_tensor(&name, &dims, values));
        name
    }

    pub(super) fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("c{}", self.constants.len());
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = raw_tensor(&name, DataType::Int64, &[values.len() as i64], data);
        self.constants.push(tensor);
        name
    }

    /// `x` times a matrix of numbers that differ from matrix to matrix.
    pub(super) fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let seed = self.constants.len();
        let values: Vec<f32> = (0..from * to)
            .map(|i| ((i * 37 + seed * 101) % 89) as f32 / 89.0 - 0.5)
            .collect();
        let weight = self.floats(&[from, to], &values);
        self.op("MatMul", &[x, &weight])
    }

    pub(super) fn embedded(&mut self) -> String {
        let values: Vec<f32> = (0..VOCABULARY * HIDDEN).map(|i| (i % 13) as f32).collect();
        let table = self.floats(&[VOCABULARY, HIDDEN], &values);
        self.op("Gather", &[&table, "input_ids"])
    }

    pub(super) fn rms_norm(&mut self, x: &str) -> String {
        let weight = self.floats(&[HIDDEN], &[1.5; HIDDEN]);
        self.op("SimplifiedLayerNormalization", &[x, &weight])
    }

    /// The number of new tokens, as one INT64.
    pub(super) fn tokens(&mut self) -> String {
        let shape = self.op("Shape", &["input_ids"]);
        let one = self.ints(&[1]);
        let at = self.op("Gather", &[&shape, &one]);
        self.op("Squeeze", &[&at])
    }

    /// The positions of the new tokens, `[tokens]`.
    pub(super) fn positions(&mut self) -> String {
        let tokens = self.tokens();
        let (zero, one) = (self.ints(&[0]), self.ints(&[1]));
        let (zero, one) = (self.op("Squeeze", &[&zero]), self.op("Squeeze", &[&one]));
        self.op("Range", &[&zero, &tokens, &one])
    }

    /// `[1, tokens, heads * HEAD_DIM]` as `[1, heads, tokens, HEAD_DIM]`.
    pub(super) fn split_heads(&mut self, x: &str, heads: usize) -> String {
        let shape = self.ints(&[1, -1, heads as i64, HEAD_DIM as i64]);
        let split = self.op("Reshape", &[x, &shape]);
        let order = ints("perm", &[0, 2, 1, 3]);
        self.op_with("Transpose", &[&split], vec![order])
    }

    /// Attention and gated feed-forward with their norms and sums, by fused operators.
    pub(super) fn layer(&mut self, x: &str, kv_heads: usize) -> String {
        let normed = self.rms_norm(x);
        let q = self.linear(&normed, HIDDEN, HEADS * HEAD_DIM);
        let k = self.linear(&normed, HIDDEN, kv_heads * HEAD_DIM);
        let v = self.linear(&normed, HIDDEN, kv_heads * HEAD_DIM);
        let counts = vec![
            int("num_heads", HEADS as i64),
            int("kv_num_heads", kv_heads as i64),
        ];
        let attended = self.microsoft("GroupQueryAttention", &[&q, &k, &v], counts);
        let out = self.linear(&attended, HEADS * HEAD_DIM, HIDDEN);
        let x = self.op("Add", &[x, &out]);
        let normed = self.rms_norm(&x);
        let (gate, up) = (
            self.linear(&normed, HIDDEN, 24),
            self.linear(&normed, HIDDEN, 24),
        );
        let sigmoid = self.op("Sigmoid", &[&gate]);
        let silu = self.op("Mul", &[&gate, &sigmoid]);
        let gated = self.op("Mul", &[&silu, &up]);
        let down = self.linear(&gated, 24, HIDDEN);
        self.op("Add", &[&x, &down])
    }

    /// The graph whose logits are a projection of `x`.
    pub(super) fn finish(mut self, x: &str) -> GraphProto {
        let logits = self.linear(x, HIDDEN, VOCABULARY);
        graph(&["input_ids"], self.constants, self.nodes, &[&logits])
    }

    pub(super) fn lower(self, x: &str) -> Result<Lowered, LowerError> {
        lower_graph(self.finish(x))
    }
}

pub(super) fn lower_graph(graph: GraphProto) -> Result<Lowered, LowerError> {
    lower(&model(graph), &ModelFacts::default(), Rounding::Niwaki)
}

/// The reasons of a refusal in one text.
pub(super) fn refusal(outcome: Result<Lowered, LowerError>) -> String {
    match outcome {
        Ok(_) => "it lowered".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_decoder_of_three_hundred_layers_lowers() {
    let mut b = Builder::default();
    let mut x = b.embedded();
    for _ in 0..300 {
        x = b.layer(&x, 2);
    }
    let lowered = b.lower(&x).unwrap();
    assert_eq!(lowered.graph.layers.len(), 300);
}

#[test]
fn a_chain_deeper_than_any_decoder_is_refused() {
    let mut b = Builder::default();
    let mut x = b.embedded();
    let weight = b.floats(&[HIDDEN, HIDDEN], &[0.1; HIDDEN * HIDDEN]);
    for _ in 0..11_000 {
        let normed = b.rms_norm(&x);
        let product = b.op("MatMul", &[&normed, &weight]);
        x = b.op("Add", &[&product, &x]);
    }
    let reason = refusal(b.lower(&x));
    assert!(reason.contains("deeper"), "{reason}");
}

#[test]
fn a_weight_in_a_constant_node_is_a_weight() {
    let mut b = Builder::default();
    let x = b.embedded();
    let x = b.rms_norm(&x);
    let values: Vec<f32> = (0..HIDDEN * HIDDEN).map(|i| (i % 7) as f32).collect();
    let tensor = float_tensor("value", &[HIDDEN as i64, HIDDEN as i64], &values);
    let weight = b.op_with("Constant", &[], vec![tensor_attribute("value", tensor)]);
    let x = b.op("MatMul", &[&x, &weight]);
    assert!(b.lower(&x).is_ok());
}
