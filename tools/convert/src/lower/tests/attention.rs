//! Attention: masks, head groups and rotary embeddings as exports spell them.

use super::decoder::{Builder, HEAD_DIM, HEADS, HIDDEN, refusal};
use crate::lower::{LowerError, Lowered};
use crate::onnx::small_models::int;
use niwaki_bundle::graph::PairLayout;

/// How the queries and keys of a test turn: from heads and positions to heads.
type Turn = fn(&mut Builder, &str, &str) -> String;
/// The summand of the scores, from the positions.
type Mask = fn(&mut Builder, &str) -> Option<String>;

/// Attention spelled as products over `kv_heads` repeated key heads.
fn attention(kv_heads: usize, turn: Turn, mask: Mask) -> Result<Lowered, LowerError> {
    let mut b = Builder::default();
    let x = b.embedded();
    let positions = b.positions();
    let q = b.linear(&x, HIDDEN, HEADS * HEAD_DIM);
    let k = b.linear(&x, HIDDEN, kv_heads * HEAD_DIM);
    let v = b.linear(&x, HIDDEN, kv_heads * HEAD_DIM);
    let (q, k) = (b.split_heads(&q, HEADS), b.split_heads(&k, kv_heads));
    let v = b.split_heads(&v, kv_heads);
    let (q, k) = (turn(&mut b, &q, &positions), turn(&mut b, &k, &positions));
    let repeat = |b: &mut Builder, x: &str| {
        let two = b.ints(&[2]);
        let wide = b.op("Unsqueeze", &[x, &two]);
        let group = b.ints(&[1, 1, (HEADS / kv_heads) as i64, 1, 1]);
        let spread = b.op("Expand", &[&wide, &group]);
        let shape = b.ints(&[1, HEADS as i64, -1, HEAD_DIM as i64]);
        b.op("Reshape", &[&spread, &shape])
    };
    let (k, v) = (repeat(&mut b, &k), repeat(&mut b, &v));
    let order = crate::onnx::small_models::ints("perm", &[0, 1, 3, 2]);
    let k = b.op_with("Transpose", &[&k], vec![order]);
    let mut scores = b.op("MatMul", &[&q, &k]);
    let scale = b.scalar(0.5);
    scores = b.op("Mul", &[&scores, &scale]);
    if let Some(mask) = mask(&mut b, &positions) {
        scores = b.op("Add", &[&scores, &mask]);
    }
    let weights = b.op("Softmax", &[&scores]);
    let heads = b.op("MatMul", &[&weights, &v]);
    let order = crate::onnx::small_models::ints("perm", &[0, 2, 1, 3]);
    let moved = b.op_with("Transpose", &[&heads], vec![order]);
    let shape = b.ints(&[1, -1, HIDDEN as i64]);
    let joined = b.op("Reshape", &[&moved, &shape]);
    b.lower(&joined)
}

fn still(_: &mut Builder, x: &str, _: &str) -> String {
    x.to_owned()
}

/// How far back each key lies, `[tokens, tokens]`.
fn distance(b: &mut Builder, positions: &str) -> String {
    let (zero, one) = (b.ints(&[0]), b.ints(&[1]));
    let row = b.op("Unsqueeze", &[positions, &zero]);
    let column = b.op("Unsqueeze", &[positions, &one]);
    b.op("Sub", &[&column, &row])
}

fn hide(b: &mut Builder, hidden: &str) -> String {
    let (far, near) = (b.scalar(f32::MIN), b.scalar(0.0));
    b.op("Where", &[hidden, &far, &near])
}

fn causal(b: &mut Builder, positions: &str) -> Option<String> {
    let distance = distance(b, positions);
    let zero = b.ints(&[0]);
    let hidden = b.op("Less", &[&distance, &zero]);
    Some(hide(b, &hidden))
}

fn windowed(b: &mut Builder, positions: &str) -> Option<String> {
    let distance = distance(b, positions);
    let (zero, three) = (b.ints(&[0]), b.ints(&[3]));
    let future = b.op("Less", &[&distance, &zero]);
    let far = b.op("GreaterOrEqual", &[&distance, &three]);
    let hidden = b.op("Or", &[&future, &far]);
    Some(hide(b, &hidden))
}

fn alibi(b: &mut Builder, positions: &str) -> Option<String> {
    let mask = causal(b, positions)?;
    let distance = distance(b, positions);
    let distance = b.op_with("Cast", &[&distance], vec![int("to", 1)]);
    let slope = b.scalar(-0.1);
    let bias = b.op("Mul", &[&distance, &slope]);
    Some(b.op("Add", &[&mask, &bias]))
}

#[test]
fn repeated_key_heads_are_stored_once() {
    for kv_heads in [1, 2, 4] {
        let lowered = attention(kv_heads, still, causal).unwrap();
        assert_eq!(lowered.graph.layers[0].kv_heads, kv_heads);
        assert_eq!(lowered.graph.layers[0].window, None);
    }
}

#[test]
fn a_window_is_read_from_the_mask() {
    let lowered = attention(2, still, windowed).unwrap();
    assert_eq!(lowered.graph.layers[0].window, Some(3));
}

#[test]
fn attention_to_later_tokens_is_refused() {
    assert!(refusal(attention(2, still, |_, _| None)).contains("tokens after it"));
}

#[test]
fn a_bias_by_distance_is_refused() {
    assert!(refusal(attention(2, still, alibi)).contains("ALiBi"));
}

/// Cosines and sines of two frequencies at the positions, `[1, 1, tokens, 2]` each.
fn angles(b: &mut Builder, positions: &str) -> [String; 2] {
    let positions = b.op_with("Cast", &[positions], vec![int("to", 1)]);
    let shape = b.ints(&[1, 1, -1, 1]);
    let positions = b.op("Reshape", &[&positions, &shape]);
    let frequencies = b.floats(&[1, 1, 1, 2], &[1.0, 0.125]);
    let angles = b.op("Mul", &[&positions, &frequencies]);
    [b.op("Cos", &[&angles]), b.op("Sin", &[&angles])]
}

fn halves(b: &mut Builder, x: &str, positions: &str) -> String {
    let angles = angles(b, positions);
    let last = vec![int("axis", -1)];
    let [cos, sin] = angles.map(|half| b.op_with("Concat", &[&half, &half], last.clone()));
    let (zero, two, four, axis) = (b.ints(&[0]), b.ints(&[2]), b.ints(&[4]), b.ints(&[3]));
    let first = b.op("Slice", &[x, &zero, &two, &axis]);
    let second = b.op("Slice", &[x, &two, &four, &axis]);
    let minus = b.op("Neg", &[&second]);
    let turned = b.op_with("Concat", &[&minus, &first], last);
    let (a, c) = (b.op("Mul", &[x, &cos]), b.op("Mul", &[&turned, &sin]));
    b.op("Add", &[&a, &c])
}

fn operator(b: &mut Builder, x: &str, positions: &str, interleaved: i64) -> String {
    let tables = angles(b, positions);
    let shape = b.ints(&[1, -1, 2]);
    let [cos, sin] = tables.map(|table| b.op("Reshape", &[&table, &shape]));
    b.op_with(
        "RotaryEmbedding",
        &[x, &cos, &sin],
        vec![int("interleaved", interleaved)],
    )
}

#[test]
fn every_spelling_of_a_rotary_embedding_gives_its_frequencies() {
    let spellings: [(Turn, PairLayout); 3] = [
        (halves, PairLayout::Halves),
        (|b, x, at| operator(b, x, at, 0), PairLayout::Halves),
        (|b, x, at| operator(b, x, at, 1), PairLayout::Interleaved),
    ];
    for (turn, pairs) in spellings {
        let lowered = attention(2, turn, causal).unwrap();
        let [rope] = lowered.graph.ropes.as_slice() else {
            panic!("one rotary embedding was expected");
        };
        assert_eq!(rope.pairs, pairs);
        assert_eq!(rope.inverse_frequencies, [1.0, 0.125]);
    }
}

#[test]
fn angles_that_are_not_proportional_to_the_position_are_refused() {
    let turn: Turn = |b, x, positions| {
        let squared = b.op("Mul", &[positions, positions]);
        halves(b, x, &squared)
    };
    assert!(refusal(attention(2, turn, causal)).contains("proportional"));
}
