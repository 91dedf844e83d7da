//! Attention and rotary embeddings that an export spells as one operator.

use super::super::base::{AttentionDef, Def, Rounding};
use super::super::form::Form;
use super::super::known::Known;
use super::super::layout;
use super::{Interpreter, Understood, Value, not_understood};
use crate::onnx::proto::NodeProto;
use std::rc::Rc;

impl Interpreter<'_> {
    /// The node's results when it is attention or a rotary embedding, `None` when it is of another kind.
    pub(super) fn attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        match node.op_type() {
            "RotaryEmbedding" => self
                .rotary_embedding(node, inputs)
                .map(|form| Some(vec![Value::Form(form)])),
            "GroupQueryAttention" => self.group_query_attention(node, inputs).map(Some),
            "MultiHeadAttention" => self.multi_head_attention(node, inputs).map(Some),
            "Attention" if node.domain() == "com.microsoft" => {
                self.fused_attention(node, inputs).map(Some)
            }
            "Attention" => self.onnx_attention(node, inputs).map(Some),
            _ => Ok(None),
        }
    }

    /// `ai.onnx` and `com.microsoft` RotaryEmbedding; they order their inputs differently.
    fn rotary_embedding(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Understood<Form> {
        let Some(Some(Value::Form(x))) = inputs.first() else {
            return not_understood("it rotates no activation");
        };
        let x = x.clone();
        let microsoft = node.domain() == "com.microsoft";
        let (cos, sin, positions) = if microsoft { (2, 3, 1) } else { (1, 2, 3) };
        let (Some(cos), Some(sin)) = (self.known_at(inputs, cos)?, self.known_at(inputs, sin)?)
        else {
            return not_understood("it has no tables");
        };
        let mut positions = self.i64s_at(inputs, positions)?;
        if microsoft
            && let Some(held) = &mut positions
            && held.len() == 1
        {
            // One value is the offset of the first token.
            *held = (0..self.lengths.tokens as i64)
                .map(|token| token + held[0])
                .collect();
        }
        let positions = positions.unwrap_or_else(|| (0..self.lengths.tokens as i64).collect());
        let heads = node
            .int("num_heads")
            .filter(|heads| *heads > 0)
            .map(|heads| heads as usize);
        let interleaved = node.int("interleaved").unwrap_or(0) != 0;
        let scale = f64::from(node.float("scale").unwrap_or(1.0));
        let rotated = node
            .int("rotary_embedding_dim")
            .filter(|dim| *dim > 0)
            .map(|dim| dim as usize);
        let table = Table::new(&cos, &sin, &positions)?;
        match *x.shape.as_slice() {
            [1, _, tokens, _] if tokens == self.lengths.tokens => {
                let head_first = layout::transpose(&x.shape, &[0, 2, 1, 3]);
                let flat = x.pick(&head_first);
                let turned = rotate(&flat, &table, interleaved, rotated)?.scaled(scale);
                Ok(turned.pick(&layout::transpose(&turned.shape, &[0, 2, 1, 3])))
            }
            [1, tokens, width] => {
                let Some(head_dim) = heads
                    .and_then(|heads| width.checked_div(heads))
                    .or(rotated)
                    .or(Some(table.pairs * 2))
                else {
                    return not_understood("it does not say how many heads there are");
                };
                if head_dim == 0 || width % head_dim != 0 {
                    return not_understood("its heads do not divide its columns");
                }
                let split = x.reshape(vec![1, tokens, width / head_dim, head_dim]);
                Ok(rotate(&split, &table, interleaved, rotated)?
                    .scaled(scale)
                    .reshape(x.shape.clone()))
            }
            _ => not_understood(format!(
                "its input of shape {:?} is not heads of one text",
                x.shape
            )),
        }
    }

    fn group_query_attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Vec<Value>> {
        let form = |index: usize| match inputs.get(index) {
            Some(Some(Value::Form(form))) => Some(form.clone()),
            _ => None,
        };
        let count = |name: &str| {
            node.int(name)
                .and_then(|value| usize::try_from(value).ok())
                .filter(|n| *n > 0)
        };
        let (Some(heads), Some(kv_heads)) = (count("num_heads"), count("kv_num_heads")) else {
            return not_understood("it does not say how many heads there are");
        };
        let Some(query) = form(0) else {
            return not_understood("its query is no activation");
        };
        let (q, k, v) = match (form(1), form(2)) {
            (Some(k), Some(v)) => (query, k, v),
            (None, None) => split_heads(&query, heads, kv_heads)?,
            _ => return not_understood("it has a key without a value"),
        };
        let head_dim = q.shape.last().map_or(0, |width| width / heads);
        let (q, k) = if node.int("do_rotary").unwrap_or(0) != 0 {
            let (Some(cos), Some(sin)) = (self.known_at(inputs, 7)?, self.known_at(inputs, 8)?)
            else {
                return not_understood("it has no rotary tables");
            };
            let positions = match self.i64s_at(inputs, 9)? {
                Some(positions) => positions,
                None => (0..self.lengths.tokens)
                    .map(|token| (self.lengths.past + token) as i64)
                    .collect(),
            };
            let table = Table::new(&cos, &sin, &positions)?;
            let interleaved = node.int("rotary_interleaved").unwrap_or(0) != 0;
            let turn = |x: &Form, heads: usize| -> Understood<Form> {
                let split = x.reshape(vec![1, x.shape[1], heads, head_dim]);
                Ok(rotate(&split, &table, interleaved, None)?.reshape(x.shape.clone()))
            };
            (turn(&q, heads)?, turn(&k, kv_heads)?)
        } else {
            (q, k)
        };
        if inputs.get(11).is_some_and(Option::is_some) {
            return not_understood("it has attention sinks");
        }
        if node.int("smooth_softmax").unwrap_or(0) > 0 {
            return not_understood("it smooths its softmax");
        }
        let bias = self.score_bias(inputs, 10)?;
        let width = kv_heads * head_dim;
        let k_rounding = self.cache_rounding(node, inputs, 12, "k_quant_type", width)?;
        let v_rounding = self.cache_rounding(node, inputs, 13, "v_quant_type", width)?;
        let def = AttentionDef {
            q,
            k,
            v,
            heads,
            kv_heads,
            scale: scale_of(node, head_dim),
            softcap: node
                .float("softcap")
                .filter(|cap| *cap > 0.0)
                .map(f64::from),
            window: node
                .int("local_window_size")
                .filter(|size| *size > 0)
                .map(|size| size as usize),
            mask: bias,
            k_rounding,
            v_rounding,
            causal: true,
        };
        self.finish_attention(node, def, [1, heads * head_dim])
    }

    /// How a quantized cache rounds keys or values.
    fn cache_rounding(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        index: usize,
        kind: &str,
        width: usize,
    ) -> Understood<Option<Rounding>> {
        if !matches!(node.string(kind), Some(kind) if kind != "NONE") {
            return Ok(None);
        }
        let Some(scales) = self.known_at(inputs, index)? else {
            return not_understood("its cache is quantized without a scale");
        };
        if !self.rounds {
            self.note("the cache that the export quantizes with fixed scales keeps f16 instead");
            return Ok(None);
        }
        let scales: Vec<f32> = scales.f64s()?.iter().map(|scale| *scale as f32).collect();
        if scales.len() != 1 && scales.len() != width {
            return not_understood(
                "the scales of its cache are neither one for all nor one for each column",
            );
        }
        let (low, high) = match node.int("kv_cache_bit_width").unwrap_or(8) {
            8 => (-128, 127),
            4 => (-8, 7),
            bits => return not_understood(format!("a cache of {bits} bits is not supported")),
        };
        Ok(Some(Rounding::Static {
            scales,
            zero_point: 0,
            low,
            high,
        }))
    }

    fn multi_head_attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Vec<Value>> {
        let form = |index: usize| match inputs.get(index) {
            Some(Some(Value::Form(form))) => Some(form.clone()),
            _ => None,
        };
        let (Some(mut q), Some(mut k), Some(mut v)) = (form(0), form(1), form(2)) else {
            return not_understood("its query, key and value are not separate activations");
        };
        let Some(heads) = node
            .int("num_heads")
            .and_then(|heads| usize::try_from(heads).ok())
            .filter(|n| *n > 0)
        else {
            return not_understood("it does not say how many heads there are");
        };
        let width = q.shape.last().copied().unwrap_or(0);
        if let Some(bias) = self.known_at(inputs, 3)? {
            let values: Vec<f32> = bias.f64s()?.iter().map(|value| *value as f32).collect();
            if values.len() != 3 * width {
                return not_understood("its bias does not fit its heads");
            }
            for (part, x) in [&mut q, &mut k, &mut v].into_iter().enumerate() {
                let bias = Known::from_f32(&[width], &values[part * width..(part + 1) * width])?;
                *x = self.add_value(node.name_or_output(), x, &Value::Known(bias))?;
            }
        }
        if inputs.get(4).is_some_and(Option::is_some) {
            return not_understood("it has a key padding mask");
        }
        let mask = self.score_bias(inputs, 5)?;
        self.finish_equal_heads(node, [q, k, v], heads, mask)
    }

    /// Attention of `com.microsoft` where every query head has its own key head.
    fn finish_equal_heads(
        &mut self,
        node: &NodeProto,
        [q, k, v]: [Form; 3],
        heads: usize,
        mask: Option<Rc<[f64]>>,
    ) -> Understood<Vec<Value>> {
        let width = q.shape.last().copied().unwrap_or(0);
        let def = AttentionDef {
            scale: scale_of(node, width / heads),
            q,
            k,
            v,
            heads,
            kv_heads: heads,
            softcap: None,
            window: None,
            mask,
            k_rounding: None,
            v_rounding: None,
            causal: node.int("unidirectional").unwrap_or(0) != 0,
        };
        self.finish_attention(node, def, [1, width])
    }

    /// `com.microsoft.Attention`: projection and attention in one.
    fn fused_attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Vec<Value>> {
        let (Some(Some(Value::Form(x))), Some(Some(weight))) = (inputs.first(), inputs.get(1))
        else {
            return not_understood("its input is no activation");
        };
        let x = x.clone();
        let Some(weight) = self.matrix(weight) else {
            return not_understood("its weight is no matrix");
        };
        let Some(heads) = node
            .int("num_heads")
            .and_then(|heads| usize::try_from(heads).ok())
            .filter(|n| *n > 0)
        else {
            return not_understood("it does not say how many heads there are");
        };
        if node.ints("qkv_hidden_sizes").is_some() {
            return not_understood("its query, key and value have different widths");
        }
        let mut qkv = self.linear(node.name_or_output(), &x, weight.transposed())?;
        if let Some(Some(bias)) = inputs.get(2) {
            qkv = self.add_value(node.name_or_output(), &qkv, &bias.clone())?;
        }
        let (q, k, v) = split_heads(&qkv, heads, heads)?;
        let mask = self.score_bias(inputs, 5)?;
        self.finish_equal_heads(node, [q, k, v], heads, mask)
    }

    /// `ai.onnx.Attention` (opset 23).
    fn onnx_attention(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Vec<Value>> {
        let form = |index: usize| match inputs.get(index) {
            Some(Some(Value::Form(form))) => Some(form.clone()),
            _ => None,
        };
        let (Some(q), Some(k), Some(v)) = (form(0), form(1), form(2)) else {
            return not_understood("its query, key and value are not activations");
        };
        let four = q.shape.len() == 4;
        let flatten = |x: &Form| -> (Form, usize) {
            if four {
                let heads = x.shape[1];
                let moved = x.pick(&layout::transpose(&x.shape, &[0, 2, 1, 3]));
                let shape = vec![
                    moved.shape[0],
                    moved.shape[1],
                    moved.shape[2] * moved.shape[3],
                ];
                (moved.reshape(shape), heads)
            } else {
                (x.clone(), 0)
            }
        };
        let ((q, q_heads), (k, k_heads), (v, _)) = (flatten(&q), flatten(&k), flatten(&v));
        let count = |name: &str, own: usize| {
            if own > 0 {
                Some(own)
            } else {
                node.int(name)
                    .and_then(|n| usize::try_from(n).ok())
                    .filter(|n| *n > 0)
            }
        };
        let (Some(heads), Some(kv_heads)) = (
            count("q_num_heads", q_heads),
            count("kv_num_heads", k_heads),
        ) else {
            return not_understood("it does not say how many heads there are");
        };
        // With the past concatenated outside, keys are longer than queries and start with the cache.
        let mask = self.score_bias(inputs, 3)?;
        let width = q.shape.last().copied().unwrap_or(0);
        let def = AttentionDef {
            scale: scale_of(node, width / heads),
            q,
            k,
            v,
            heads,
            kv_heads,
            softcap: node
                .float("softcap")
                .filter(|cap| *cap > 0.0)
                .map(f64::from),
            window: None,
            mask,
            k_rounding: None,
            v_rounding: None,
            causal: node.int("is_causal").unwrap_or(0) != 0,
        };
        let values = self.finish_attention(node, def, [1, width])?;
        let Some(Value::Form(y)) = values.first() else {
            return Ok(values);
        };
        if !four {
            return Ok(values);
        }
        let tokens = y.shape[1];
        let split = y.reshape(vec![1, tokens, heads, width / heads]);
        let y = split.pick(&layout::transpose(&split.shape, &[0, 2, 1, 3]));
        Ok(vec![Value::Form(y)])
    }

    /// A summand of the scores as `[tokens, total]`, the same for every head.
    fn score_bias(
        &mut self,
        inputs: &[Option<Value>],
        index: usize,
    ) -> Understood<Option<Rc<[f64]>>> {
        let Some(known) = self.known_at(inputs, index)? else {
            return Ok(None);
        };
        let total = self.lengths.tokens + self.lengths.past;
        let mut values = known.f64s()?;
        if known.is_bool() {
            for value in &mut values {
                *value = if *value != 0.0 {
                    0.0
                } else {
                    f64::NEG_INFINITY
                };
            }
        }
        let shape = [1, 1, self.lengths.tokens, total];
        if layout::broadcast(known.shape(), &shape).as_deref() != Some(&shape) {
            return not_understood("its mask differs between heads");
        }
        let spread = layout::expand(known.shape(), &shape).positions();
        Ok(Some(spread.into_iter().map(|from| values[from]).collect()))
    }

    fn finish_attention(
        &mut self,
        node: &NodeProto,
        def: AttentionDef,
        [batch, width]: [usize; 2],
    ) -> Understood<Vec<Value>> {
        let shape = [batch, self.lengths.tokens, width];
        let form = self
            .bases
            .add(node.name_or_output(), Def::Attention(Box::new(def)), &shape);
        Ok(vec![Value::Form(form)])
    }
}

fn scale_of(node: &NodeProto, head_dim: usize) -> f64 {
    match node.float("scale") {
        Some(scale) if scale != 0.0 => f64::from(scale),
        _ => 1.0 / (head_dim.max(1) as f64).sqrt(),
    }
}

/// A fused query, key and value: `heads + 2 kv_heads` runs of columns.
fn split_heads(qkv: &Form, heads: usize, kv_heads: usize) -> Understood<(Form, Form, Form)> {
    let &[1, _, width] = qkv.shape.as_slice() else {
        return not_understood("its packed input is not one text");
    };
    if !width.is_multiple_of(heads + 2 * kv_heads) {
        return not_understood("its heads do not divide its columns");
    }
    let head_dim = width / (heads + 2 * kv_heads);
    let part = |from: usize, count: usize| {
        let (start, end) = (from * head_dim, (from + count) * head_dim);
        layout::slice(&qkv.shape, 2, start as i64, end as i64, 1).map(|picks| qkv.pick(&picks))
    };
    match (
        part(0, heads),
        part(heads, kv_heads),
        part(heads + kv_heads, kv_heads),
    ) {
        (Some(q), Some(k), Some(v)) => Ok((q, k, v)),
        _ => not_understood("its heads do not divide its columns"),
    }
}

/// Cosines and sines for each new token, `[tokens, pairs]`.
struct Table {
    cos: Vec<f64>,
    sin: Vec<f64>,
    pairs: usize,
}

impl Table {
    /// From caches `[positions, pairs]`, or tables already picked by position, `[1, tokens, pairs]`.
    fn new(cos: &Known, sin: &Known, positions: &[i64]) -> Understood<Table> {
        let pairs = cos.shape().last().copied().unwrap_or(0);
        if pairs == 0 || cos.shape() != sin.shape() {
            return not_understood("its cosines and sines differ in shape");
        }
        let (cos, sin, picked) = (cos.f64s()?, sin.f64s()?, cos.shape().len() == 3);
        let rows = cos.len() / pairs;
        let mut table = Table {
            cos: vec![],
            sin: vec![],
            pairs,
        };
        for (token, &position) in positions.iter().enumerate() {
            let row = if picked {
                token
            } else {
                usize::try_from(position).unwrap_or(usize::MAX)
            };
            if row >= rows {
                return not_understood(format!("its tables end at position {rows}"));
            }
            table.cos.extend(&cos[row * pairs..(row + 1) * pairs]);
            table.sin.extend(&sin[row * pairs..(row + 1) * pairs]);
        }
        Ok(table)
    }
}

/// Rotates the heads of `[1, tokens, heads, head_dim]`.
fn rotate(x: &Form, table: &Table, interleaved: bool, rotated: Option<usize>) -> Understood<Form> {
    let &[_, tokens, _, head_dim] = x.shape.as_slice() else {
        return not_understood("it rotates no heads");
    };
    let pairs = rotated.map_or(table.pairs, |rotated| rotated / 2);
    if pairs > table.pairs || 2 * pairs > head_dim || table.cos.len() < tokens * table.pairs {
        return not_understood("its tables do not fit its heads");
    }
    if x.is_zero() {
        return Ok(x.clone());
    }
    let mut partner = Vec::with_capacity(x.len());
    let (mut own_factor, mut partner_factor) =
        (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for position in 0..x.len() {
        let column = position % head_dim;
        let token = layout::coordinates(position, &x.shape)[1];
        if column >= 2 * pairs {
            partner.push(position as i64);
            own_factor.push(1.0);
            partner_factor.push(0.0);
            continue;
        }
        let (pair, first) = if interleaved {
            (column / 2, column % 2 == 0)
        } else {
            (column % pairs, column < pairs)
        };
        let distance = if interleaved { 1 } else { pairs };
        partner.push(
            (if first {
                position + distance
            } else {
                position - distance
            }) as i64,
        );
        own_factor.push(table.cos[token * table.pairs + pair]);
        partner_factor.push(table.sin[token * table.pairs + pair] * if first { -1.0 } else { 1.0 });
    }
    let flat = x.reshape(vec![x.len()]);
    let Some(picks) = layout::gather(&flat.shape, 0, &partner, &[partner.len()]) else {
        return not_understood("its tables do not fit its heads");
    };
    let turned = flat
        .scaled_each(&own_factor)
        .plus(&flat.pick(&picks).scaled_each(&partner_factor));
    Ok(turned.reshape(x.shape.clone()))
}
