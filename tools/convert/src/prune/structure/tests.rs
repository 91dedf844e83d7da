//! Parts taken out of a small decoder in the form of onnxruntime-genai, and out of the demo model.

use super::{Part, RemoveOptions, RemoveReport, Removed, remove_parts};
use crate::calibrate::Calibration;
use crate::export::Export;
use crate::lower::{Lowered, ModelFacts, Rounding, lower};
use crate::onnx::proto::{
    GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension::Value},
    type_proto,
};
use crate::onnx::small_models::{
    float, float_tensor, graph, int, model, node, raw_tensor, with_attributes,
};
use crate::onnx::{DataType, OnnxModel};
use crate::prune::PruneError;
use niwaki_bundle::graph::Op;
use std::path::Path;

const LAYERS: usize = 3;
const HIDDEN: usize = 16;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 4;
const FFN: usize = 24;
const VOCABULARY: usize = 64;

/// A graph under construction.
#[derive(Default)]
struct Decoder {
    graph: GraphProto,
}

impl Decoder {
    fn tensor(&mut self, name: &str, dims: &[usize]) {
        let seed = self.graph.initializer.len();
        let count: usize = dims.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|i| ((i * 37 + seed * 101 + i * i % 23) % 89) as f32 / 89.0 - 0.5)
            .collect();
        let dims: Vec<i64> = dims.iter().map(|dim| *dim as i64).collect();
        self.graph
            .initializer
            .push(float_tensor(name, &dims, &values));
    }

    fn node(&mut self, operator: &str, inputs: &[&str], outputs: &[&str]) -> &mut NodeProto {
        self.graph.node.push(node(operator, inputs, outputs));
        self.graph.node.last_mut().unwrap()
    }

    fn microsoft(&mut self, operator: &str, inputs: &[&str], outputs: &[&str]) -> &mut NodeProto {
        let node = self.node(operator, inputs, outputs);
        node.domain = Some("com.microsoft".to_owned());
        node
    }

    fn linear(&mut self, from: (&str, usize), to: (&str, usize), bias: bool) {
        let weight = format!("{}.weight", to.0);
        self.tensor(&weight, &[from.1, to.1]);
        if bias {
            let (product, vector) = (format!("{}/product", to.0), format!("{}.bias", to.0));
            self.node("MatMul", &[from.0, &weight], &[&product]);
            self.tensor(&vector, &[to.1]);
            self.node("Add", &[&product, &vector], &[to.0]);
        } else {
            self.node("MatMul", &[from.0, &weight], &[to.0]);
        }
    }

    fn cache(name: &str, tokens: &str) -> ValueInfoProto {
        let dim = |value| Dimension {
            value: Some(value),
            ..Dimension::default()
        };
        let shape = TensorShapeProto {
            dim: vec![
                dim(Value::DimParam("batch".to_owned())),
                dim(Value::DimValue(KV_HEADS as i64)),
                dim(Value::DimParam(tokens.to_owned())),
                dim(Value::DimValue(HEAD_DIM as i64)),
            ],
        };
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: Some(DataType::Float as i32),
                    shape: Some(shape),
                })),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        }
    }
}

/// Packed queries, keys and values, one operator for attention, a feed-forward with packed gate and up or with biases.
fn genai(packed: bool) -> OnnxModel {
    let mut b = Decoder {
        graph: graph(
            &["input_ids", "attention_mask"],
            vec![],
            vec![],
            &["logits"],
        ),
    };
    b.tensor("table", &[VOCABULARY, HIDDEN]);
    b.tensor("cos", &[64, HEAD_DIM / 2]);
    b.tensor("sin", &[64, HEAD_DIM / 2]);
    angles(&mut b.graph);
    let one = raw_tensor("one", DataType::Int64, &[1], 1i64.to_le_bytes().to_vec());
    b.graph.initializer.push(one);
    let index = raw_tensor("index", DataType::Int64, &[], 1i64.to_le_bytes().to_vec());
    b.graph.initializer.push(index);
    b.node("ReduceSum", &["attention_mask", "one"], &["lengths"]);
    b.node("Sub", &["lengths", "one"], &["before"]);
    b.node("Cast", &["before"], &["seqlens"]).attribute = vec![int("to", 6)];
    b.node("Shape", &["attention_mask"], &["mask_shape"]);
    b.node("Gather", &["mask_shape", "index"], &["total"])
        .attribute = vec![int("axis", 0)];
    b.node("Cast", &["total"], &["total32"]).attribute = vec![int("to", 6)];
    b.node("Gather", &["table", "input_ids"], &["h0"]);
    b.tensor("norm0", &[HIDDEN]);
    b.node("SimplifiedLayerNormalization", &["h0", "norm0"], &["n0"]);
    let (mut stream, mut normed) = ("h0".to_owned(), "n0".to_owned());
    for layer in 0..LAYERS {
        let name = |what: &str| format!("layer{layer}/{what}");
        let (qkv, attended, o) = (name("qkv"), name("attended"), name("o"));
        b.linear(
            (&normed, HIDDEN),
            (&qkv, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
            false,
        );
        let past = ["key", "value"].map(|of| format!("past_key_values.{layer}.{of}"));
        let present = ["key", "value"].map(|of| format!("present.{layer}.{of}"));
        b.microsoft(
            "GroupQueryAttention",
            &[
                &qkv, "", "", &past[0], &past[1], "seqlens", "total32", "cos", "sin",
            ],
            &[&attended, &present[0], &present[1]],
        )
        .attribute = vec![
            int("num_heads", HEADS as i64),
            int("kv_num_heads", KV_HEADS as i64),
            int("do_rotary", 1),
            float("scale", 0.5),
        ];
        b.graph
            .input
            .extend(past.map(|name| Decoder::cache(&name, "past")));
        b.graph
            .output
            .extend(present.map(|name| Decoder::cache(&name, "all")));
        b.linear((&attended, HEADS * HEAD_DIM), (&o, HIDDEN), false);
        let (middle, inner) = (name("middle"), name("inner"));
        skip(&mut b, (&stream, &o), (&inner, &middle));
        let (gate, up) = (name("gate"), name("up"));
        if packed {
            let both = name("gate_up");
            b.linear((&inner, HIDDEN), (&both, 2 * FFN), false);
            let sizes = [FFN as i64; 2].map(i64::to_le_bytes).concat();
            let split = name("split");
            b.graph
                .initializer
                .push(raw_tensor(&split, DataType::Int64, &[2], sizes));
            b.node("Split", &[&both, &split], &[&gate, &up]).attribute = vec![int("axis", -1)];
        } else {
            b.linear((&inner, HIDDEN), (&gate, FFN), true);
            b.linear((&inner, HIDDEN), (&up, FFN), true);
        }
        let (sigmoid, silu, product, down) =
            (name("sigmoid"), name("silu"), name("product"), name("down"));
        b.node("Sigmoid", &[&gate], &[&sigmoid]);
        b.node("Mul", &[&gate, &sigmoid], &[&silu]);
        b.node("Mul", &[&silu, &up], &[&product]);
        b.linear((&product, FFN), (&down, HIDDEN), false);
        (stream, normed) = (name("out"), name("normed"));
        skip(&mut b, (&middle, &down), (&normed, &stream));
    }
    b.linear((&normed, HIDDEN), ("logits", VOCABULARY), false);
    model(b.graph)
}

/// Cosines and sines of positions.
fn angles(graph: &mut GraphProto) {
    for (name, function) in [("cos", f32::cos as fn(f32) -> f32), ("sin", f32::sin)] {
        let values: Vec<f32> = (0..64)
            .flat_map(|position| {
                (0..HEAD_DIM / 2)
                    .map(move |pair| function(position as f32 * 0.1f32.powi(pair as i32)))
            })
            .collect();
        let dims = [64, (HEAD_DIM / 2) as i64];
        let at = graph
            .initializer
            .iter()
            .position(|tensor| tensor.name() == name);
        graph.initializer[at.unwrap()] = float_tensor(name, &dims, &values);
    }
}

/// The sum of two values, and its norm.
fn skip(b: &mut Decoder, of: (&str, &str), (normed, sum): (&str, &str)) {
    let weight = format!("{normed}.norm");
    b.tensor(&weight, &[HIDDEN]);
    b.microsoft(
        "SkipSimplifiedLayerNormalization",
        &[of.0, of.1, &weight],
        &[normed, "", "", sum],
    );
}

fn facts() -> ModelFacts {
    ModelFacts {
        context_tokens: Some(64),
        kv_heads: Some(KV_HEADS),
        head_dim: Some(HEAD_DIM),
        ..ModelFacts::default()
    }
}

fn remove(
    model: &OnnxModel,
    facts: &ModelFacts,
    part: Part,
    share: f64,
) -> Result<(OnnxModel, RemoveReport), PruneError> {
    let sequences: Vec<Vec<u32>> = (0..4)
        .map(|sequence| {
            let tokens = 0..40u32;
            tokens
                .map(|token| (sequence * 131 + token * token * 7 + token * 37) % 60)
                .collect()
        })
        .collect();
    let scratch = tempfile::tempdir().unwrap();
    let options = RemoveOptions {
        part,
        share,
        calibration: Calibration {
            sequences: &sequences,
            scratch: scratch.path(),
            threads: 2,
        },
    };
    remove_parts(model, facts, &options, &mut |_| ())
}

fn lowered(model: &OnnxModel, kv_heads: usize) -> Lowered {
    let facts = ModelFacts {
        kv_heads: Some(kv_heads),
        ..facts()
    };
    lower(model, &facts, Rounding::Niwaki).unwrap()
}

fn dims(model: &OnnxModel, name: &str) -> Vec<usize> {
    model.tensor(name).unwrap().unwrap().dims
}

#[test]
fn channels_go_from_what_computes_them_and_from_what_reads_them() {
    for packed in [false, true] {
        let (after, report) = remove(&genai(packed), &facts(), Part::FfnChannels, 0.25).unwrap();
        let Removed::FfnChannels {
            before: FFN,
            after: kept,
        } = &report.removed
        else {
            panic!("{:?}", report.removed);
        };
        let gone = FFN * LAYERS - kept.iter().sum::<usize>();
        assert_eq!((kept.len(), gone), (LAYERS, FFN * LAYERS / 4));
        assert_eq!(report.fitted, 2 * LAYERS);
        assert_eq!(
            report.weights_before - report.weights_after,
            (3 * gone * HIDDEN) as u64
        );
        for (layer, kept) in kept.iter().enumerate() {
            assert_eq!(
                dims(&after, &format!("layer{layer}/down.weight")),
                [*kept, HIDDEN]
            );
            if packed {
                let both = dims(&after, &format!("layer{layer}/gate_up.weight"));
                assert_eq!(both, [HIDDEN, 2 * kept]);
            } else {
                for name in ["gate", "up"] {
                    let weight = format!("layer{layer}/{name}.weight");
                    assert_eq!(dims(&after, &weight), [HIDDEN, *kept]);
                }
            }
        }
        let lowered = lowered(&after, KV_HEADS);
        let nodes = lowered.graph.nodes.iter();
        let gates = nodes.filter(|node| matches!(node.op, Op::Gate { .. }));
        assert!(gates.map(|gate| &gate.width).eq(kept));
    }
}

#[test]
fn channels_go_where_they_cost_least() {
    let costs = [
        (1, vec![1.0, 2.0, 9.0]),
        (3, vec![5.0, 50.0, 500.0]),
        (5, vec![0.5, 3.0, 3.5]),
    ];
    let times = super::plan::cheapest(&costs.into(), 5);
    assert_eq!(times, [(1, 2), (3, 0), (5, 3)].into());
}

#[test]
fn key_value_heads_go_with_their_queries_and_caches_shrink() {
    let (after, report) = remove(&genai(true), &facts(), Part::Heads, 0.5).unwrap();
    let expected = Removed::Heads {
        before: 2,
        after: 1,
        query_heads_each: 2,
        head_dim: HEAD_DIM,
    };
    assert_eq!(report.removed, expected);
    let attentions = after
        .graph()
        .node
        .iter()
        .filter(|node| node.op_type() == "GroupQueryAttention");
    for attention in attentions {
        assert_eq!(
            (attention.int("num_heads"), attention.int("kv_num_heads")),
            (Some(2), Some(1))
        );
    }
    let caches = after.graph().input.iter().chain(&after.graph().output);
    let mut shrunk = 0;
    for cache in
        caches.filter(|value| value.name().contains("key") || value.name().contains("value"))
    {
        let Some(type_proto::Value::TensorType(tensor)) = &cache.r#type.as_ref().unwrap().value
        else {
            panic!("{} is no tensor", cache.name());
        };
        let heads = tensor.shape.as_ref().unwrap().dim[1].value.clone();
        assert_eq!(heads, Some(Value::DimValue(1)), "{}", cache.name());
        shrunk += 1;
    }
    assert_eq!(shrunk, 4 * LAYERS);
    assert_eq!(dims(&after, "layer1/qkv.weight"), [HIDDEN, 4 * HEAD_DIM]);
    assert_eq!(dims(&after, "layer1/o.weight"), [2 * HEAD_DIM, HIDDEN]);
    let layers = lowered(&after, 1).graph.layers;
    assert!(layers.iter().all(|layer| layer.kv_heads == 1));
}

#[test]
fn a_layer_goes_and_the_caches_of_the_others_are_counted_anew() {
    let (after, report) = remove(&genai(false), &facts(), Part::Layers, 0.3).unwrap();
    let Removed::Layers { before, removed } = &report.removed else {
        panic!("{:?}", report.removed);
    };
    assert_eq!((*before, removed.len()), (LAYERS, 1));
    assert_eq!(report.fitted, 2 * (LAYERS - 1));
    let caches: Vec<&str> = after
        .graph()
        .input
        .iter()
        .map(|input| input.name())
        .filter(|name| name.starts_with("past"))
        .collect();
    let expected = [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ];
    assert_eq!(caches, expected);
    assert_eq!(lowered(&after, KV_HEADS).graph.layers.len(), LAYERS - 1);
    let names = after.graph().initializer.iter().map(|tensor| tensor.name());
    let gone = format!("layer{}/", removed[0]);
    let held = names.filter(|name| name.starts_with(&gone) && !name.contains("norm"));
    assert_eq!(held.count(), 0, "weights of the layer are still there");
}

#[test]
fn any_layer_can_be_the_one_that_goes() {
    for layer in 0..LAYERS {
        let nodes = |what: &str| format!("MatMul_of_layer{layer}/{what}");
        let layers = [super::LayerNodes {
            first: nodes("o"),
            last: nodes("down"),
        }];
        let gone = [layer].into();
        let after = super::layers::drop_layers(&genai(false), &layers, &gone).unwrap();
        let (before, after) = (lowered(&genai(false), KV_HEADS), lowered(&after, KV_HEADS));
        assert_eq!(after.graph.layers.len(), LAYERS - 1);
        let linear = |lowered: &Lowered| -> Vec<String> {
            let nodes = lowered.graph.nodes.iter();
            let linear = nodes.filter(|node| matches!(node.op, Op::Linear { .. }));
            linear.map(|node| node.name.clone()).collect()
        };
        let others = linear(&before).into_iter();
        let gone = format!("layer{layer}/");
        let others: Vec<String> = others.filter(|name| !name.contains(&gone)).collect();
        assert_eq!(linear(&after), others);
    }
}

fn demo() -> (OnnxModel, ModelFacts) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model/onnx");
    let export = Export::open(&folder).unwrap();
    (OnnxModel::open(&export.model).unwrap(), export.facts())
}

#[test]
fn channels_and_layers_go_from_an_export_that_spells_attention_out_and_heads_are_refused() {
    let (model, facts) = demo();
    let (_, report) = remove(&model, &facts, Part::FfnChannels, 0.1).unwrap();
    let Removed::FfnChannels { before: 512, after } = &report.removed else {
        panic!("{:?}", report.removed);
    };
    // A tenth of 6 layers' 16 blocks.
    assert_eq!(
        after.iter().map(|kept| (512 - kept) / 32).sum::<usize>(),
        10
    );
    let (after, report) = remove(&model, &facts, Part::Layers, 0.2).unwrap();
    assert!(matches!(&report.removed, Removed::Layers { removed, .. } if removed.len() == 1));
    let lowered = lower(&after, &facts, Rounding::Niwaki).unwrap();
    assert_eq!(lowered.graph.layers.len(), 5);
    let refused = remove(&model, &facts, Part::Heads, 0.5).unwrap_err();
    assert!(
        matches!(refused, PruneError::CannotRemove(_)),
        "{refused:?}"
    );
}

#[test]
fn too_little_is_an_error() {
    for (part, share) in [
        (Part::FfnChannels, 0.001),
        (Part::Heads, 0.1),
        (Part::Layers, 0.1),
    ] {
        let refused = remove(&genai(false), &facts(), part, share).unwrap_err();
        assert!(
            matches!(refused, PruneError::NothingPruned { .. }),
            "{refused:?}"
        );
    }
    for share in [0.0, 1.0, f64::NAN] {
        let refused = remove(&genai(false), &facts(), Part::Layers, share).unwrap_err();
        assert!(matches!(refused, PruneError::Sparsity(_)), "{refused:?}");
    }
}

#[test]
fn what_computes_with_the_sizes_that_change_is_refused() {
    // A reshape that says how many channels there are.
    let mut proto = genai(false).proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    let shape = [1i64, -1, FFN as i64].map(i64::to_le_bytes).concat();
    graph
        .initializer
        .push(raw_tensor("shape", DataType::Int64, &[3], shape));
    let at = graph
        .node
        .iter()
        .position(|node| node.output[0] == "layer1/product")
        .unwrap();
    graph.node[at].output[0] = "flat".to_owned();
    let reshape = with_attributes(
        node("Reshape", &["flat", "shape"], &["layer1/product"]),
        vec![],
    );
    graph.node.insert(at + 1, reshape);
    let odd = genai(false).derive(proto).unwrap();
    let refused = remove(&odd, &facts(), Part::FfnChannels, 0.25).unwrap_err();
    let PruneError::CannotRemove(reason) = &refused else {
        panic!("{refused:?}");
    };
    assert!(reason.to_string().contains("Reshape"), "{reason}");
}
