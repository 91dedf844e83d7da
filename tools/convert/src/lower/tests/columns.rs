//! Norms, activations and sums: every spelling gives the same operator.

use super::decoder::{Builder, HIDDEN, refusal};
use crate::lower::Lowered;
use crate::onnx::small_models::{float, int};
use niwaki_bundle::graph::{Activation, NormKind, Op};

fn norms(lowered: &Lowered) -> Vec<(NormKind, f32, usize)> {
    let norm = |op: &Op| match op {
        Op::Norm {
            kind,
            epsilon,
            group,
            ..
        } => Some((*kind, *epsilon, *group)),
        _ => None,
    };
    lowered
        .graph
        .nodes
        .iter()
        .filter_map(|node| norm(&node.op))
        .collect()
}

fn lowered(spell: impl Fn(&mut Builder, &str) -> String) -> Lowered {
    let mut b = Builder::default();
    let x = b.embedded();
    let y = spell(&mut b, &x);
    b.lower(&y).unwrap()
}

/// The mean of `square` over the columns plus epsilon.
fn mean_square(b: &mut Builder, square: &str) -> String {
    let axes = b.ints(&[-1]);
    let mean = b.op("ReduceMean", &[square, &axes]);
    let epsilon = b.scalar(1e-3);
    b.op("Add", &[&mean, &epsilon])
}

type Spelling = fn(&mut Builder, &str) -> String;

#[test]
fn every_spelling_of_an_rms_norm_is_one_norm() {
    let spellings: [Spelling; 5] = [
        |b, x| {
            let weight = b.floats(&[HIDDEN], &[2.0; HIDDEN]);
            let epsilon = vec![float("epsilon", 1e-3)];
            b.op_with("SimplifiedLayerNormalization", &[x, &weight], epsilon)
        },
        |b, x| {
            let two = b.scalar(2.0);
            let square = b.op("Pow", &[x, &two]);
            let mean = mean_square(b, &square);
            let root = b.op("Sqrt", &[&mean]);
            b.op("Div", &[x, &root])
        },
        |b, x| {
            let square = b.op("Mul", &[x, x]);
            let mean = mean_square(b, &square);
            let root = b.op("Sqrt", &[&mean]);
            let inverse = b.op("Reciprocal", &[&root]);
            b.op("Mul", &[&inverse, x])
        },
        |b, x| {
            let square = b.op("Mul", &[x, x]);
            let mean = mean_square(b, &square);
            let power = b.scalar(-0.5);
            let inverse = b.op("Pow", &[&mean, &power]);
            let normed = b.op("Mul", &[x, &inverse]);
            let weight: Vec<f32> = (0..HIDDEN).map(|i| i as f32).collect();
            let weight = b.floats(&[HIDDEN], &weight);
            b.op("Mul", &[&weight, &normed])
        },
        |b, x| {
            let square = b.op("Mul", &[x, x]);
            let mean = mean_square(b, &square);
            let root = b.op("Sqrt", &[&mean]);
            let one = b.scalar(1.0);
            let inverse = b.op("Div", &[&one, &root]);
            b.op("Mul", &[x, &inverse])
        },
    ];
    for spelling in spellings {
        let found = norms(&lowered(spelling));
        assert_eq!(found.len(), 1);
        let (kind, epsilon, group) = found[0];
        assert_eq!((kind, group), (NormKind::Rms, HIDDEN));
        assert!((epsilon - 1e-3).abs() < 1e-8);
    }
}

#[test]
fn a_layer_norm_may_be_spelled_out() {
    let spelled = lowered(|b, x| {
        let axes = b.ints(&[-1]);
        let mean = b.op("ReduceMean", &[x, &axes]);
        let centred = b.op("Sub", &[x, &mean]);
        let square = b.op("Mul", &[&centred, &centred]);
        let variance = mean_square(b, &square);
        let root = b.op("Sqrt", &[&variance]);
        let normed = b.op("Div", &[&centred, &root]);
        let weight = b.floats(&[HIDDEN], &[1.5; HIDDEN]);
        let bias = b.floats(&[HIDDEN], &[0.5; HIDDEN]);
        let scaled = b.op("Mul", &[&normed, &weight]);
        b.op("Add", &[&scaled, &bias])
    });
    assert_eq!(norms(&spelled)[0].0, NormKind::Layer);
}

#[test]
fn every_spelling_of_an_activation_is_found() {
    let spellings: [(Activation, Spelling); 6] = [
        (Activation::Silu, |b, x| {
            let sigmoid = b.op("Sigmoid", &[x]);
            b.op("Mul", &[&sigmoid, x])
        }),
        (Activation::Silu, |b, x| {
            let minus = b.op("Neg", &[x]);
            let power = b.op("Exp", &[&minus]);
            let one = b.scalar(1.0);
            let sum = b.op("Add", &[&power, &one]);
            b.op("Div", &[x, &sum])
        }),
        (Activation::GeluErf, |b, x| {
            let root = b.scalar(std::f32::consts::SQRT_2);
            let inside = b.op("Div", &[x, &root]);
            let erf = b.op("Erf", &[&inside]);
            let one = b.scalar(1.0);
            let sum = b.op("Add", &[&one, &erf]);
            let product = b.op("Mul", &[x, &sum]);
            let half = b.scalar(0.5);
            b.op("Mul", &[&half, &product])
        }),
        (Activation::GeluTanh, |b, x| {
            let three = b.scalar(3.0);
            let cube = b.op("Pow", &[x, &three]);
            let factor = b.scalar(0.044715);
            let term = b.op("Mul", &[&cube, &factor]);
            let sum = b.op("Add", &[x, &term]);
            let scale = b.scalar(0.797_884_6);
            let inside = b.op("Mul", &[&scale, &sum]);
            let tanh = b.op("Tanh", &[&inside]);
            let one = b.scalar(1.0);
            let sum = b.op("Add", &[&tanh, &one]);
            let half = b.scalar(0.5);
            let halved = b.op("Mul", &[x, &half]);
            b.op("Mul", &[&halved, &sum])
        }),
        (Activation::GeluSigmoid, |b, x| {
            b.microsoft("QuickGelu", &[x], vec![])
        }),
        (Activation::ReluSquared, |b, x| {
            let relu = b.op("Relu", &[x]);
            b.op("Mul", &[&relu, &relu])
        }),
    ];
    for (wanted, spelling) in spellings {
        let lowered = lowered(|b, x| {
            let x = b.linear(x, HIDDEN, HIDDEN);
            spelling(b, &x)
        });
        let found = lowered.graph.nodes.iter().find_map(|node| match node.op {
            Op::Activate { activation } => Some(activation),
            _ => None,
        });
        assert_eq!(found, Some(wanted));
    }
}

#[test]
fn a_function_that_is_no_activation_is_refused_by_name() {
    let mut b = Builder::default();
    let x = b.embedded();
    let x = b.linear(&x, HIDDEN, HIDDEN);
    let x = b.op("Exp", &[&x]);
    let reason = refusal(b.lower(&x));
    assert!(
        reason.contains("Exp_of_") && reason.contains("no known activation"),
        "{reason}"
    );
}

#[test]
fn a_bias_on_a_residual_sum_joins_the_projection() {
    let lowered = lowered(|b, x| {
        let projected = b.linear(x, HIDDEN, HIDDEN);
        let sum = b.op("Add", &[x, &projected]);
        let bias = b.floats(&[HIDDEN], &[0.25; HIDDEN]);
        b.op("Add", &[&sum, &bias])
    });
    let biased = lowered
        .graph
        .nodes
        .iter()
        .filter(|node| matches!(node.op, Op::Linear { bias: Some(_), .. }))
        .count();
    assert_eq!(biased, 1);
}

#[test]
fn a_value_used_twice_at_many_levels_is_refused_in_time() {
    let mut b = Builder::default();
    let x = b.embedded();
    let mut x = b.linear(&x, HIDDEN, HIDDEN);
    for _ in 0..60 {
        x = b.op("Mul", &[&x, &x]);
    }
    assert!(refusal(b.lower(&x)).contains("does not lower"));
}

#[test]
fn a_result_of_absurd_size_is_refused() {
    let mut b = Builder::default();
    let x = b.embedded();
    let shape = b.ints(&[1 << 20, 1 << 20, 1, 1, 1]);
    let large = b.op("Expand", &[&x, &shape]);
    let axes = vec![int("axis", 0)];
    let x = b.op_with("Flatten", &[&large], axes);
    assert!(refusal(b.lower(&x)).contains("Expand"));
}
