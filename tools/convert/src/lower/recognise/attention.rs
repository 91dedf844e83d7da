//! Matches attention: queries, keys and values by head, rotation, scale, cap, mask and window.

use super::super::base::{AttentionDef, Def, Rounding};
use super::super::form::{Element, Form};
use super::super::interpret::Interpretation;
use super::super::layout;
use super::columns::Selection;
use super::heads::{HeadColumns, Heads, Rotation};
use super::rope::{Observed, frequencies};
use super::scores::{Scores, combined, read_scores};
use super::{Matched, Matcher, NotMatched, mask};
use niwaki_bundle::graph::{Columns, KvLayer, Op, RopeTable};

impl<'a> Matcher<'a> {
    /// Attention spelled as two products with a softmax between them.
    pub(super) fn emit_attention_products(
        &mut self,
        name: &str,
        a: &'a Form,
        v: &'a Form,
    ) -> Matched<usize> {
        let near = self.near;
        let scores = match read_scores(near, a) {
            Ok(scores) => scores,
            Err(reason) => return self.fail(name, reason),
        };
        let (lead, tokens, total) = match scores.shape {
            [lead @ .., tokens, total] => (lead, *tokens, *total),
            _ => return self.fail(name, "its scores are not a matrix per head"),
        };
        if tokens != self.tokens() {
            return self.fail(name, "its queries are not the new tokens");
        }
        let Some(past) = total.checked_sub(tokens) else {
            return self.fail(name, "it has fewer keys than queries");
        };
        let heads: usize = lead.iter().product();
        let (Some(q), Some(k)) = (Spread::new(scores.q, lead), Spread::new(scores.k, lead)) else {
            return self.fail(name, "its heads do not fit together");
        };
        let Some(values) = Spread::new(v, lead) else {
            return self.fail(name, "its values do not fit its heads");
        };
        let (head_dim, value_dim) = (q.inner(1), values.inner(1));
        let q = Heads {
            heads,
            head_dim,
            tokens,
            at: Box::new(move |head, token, column| q.at(head, token, column)),
        };
        check_past(near, heads, past, head_dim, |head, key, column| {
            k.at(head, column, key)
        })
        .and_then(|()| {
            check_past(near, heads, past, value_dim, |head, key, column| {
                values.at(head, key, column)
            })
        })
        .or_else(|reason| self.fail(name, reason))?;
        let k = Heads {
            heads,
            head_dim,
            tokens,
            at: Box::new(move |head, token, column| k.at(head, column, past + token)),
        };
        let values = Heads {
            heads,
            head_dim: value_dim,
            tokens,
            at: Box::new(move |head, token, column| values.at(head, past + token, column)),
        };
        let window = self.mask_window(name, &scores, heads, past)?;
        let far = self.far_rotation(|far| query_heads(far, self.far_scores.get(scores.node)?));
        self.finish(
            name,
            q,
            k,
            values,
            past,
            far,
            Attention {
                k_rounding: None,
                v_rounding: None,
                scale: scores.scale,
                softcap: scores.softcap,
                window,
            },
        )
    }

    /// Attention spelled as one operator.
    pub(super) fn emit_attention_operator(
        &mut self,
        name: &str,
        def: &'a AttentionDef,
    ) -> Matched<usize> {
        let tokens = self.tokens();
        let (q, k, v) = (
            columns_of_heads(&def.q, def.heads),
            columns_of_heads(&def.k, def.kv_heads),
            columns_of_heads(&def.v, def.kv_heads),
        );
        let (Some((q, q_tokens, head_dim)), Some((k, k_tokens, k_dim)), Some((v, v_tokens, v_dim))) =
            (q, k, v)
        else {
            return self.fail(name, "its inputs are not heads side by side");
        };
        if q_tokens != tokens || k_tokens < tokens || v_tokens != k_tokens || k_dim != head_dim {
            return self.fail(name, "its inputs differ in length or head size");
        }
        if !def.heads.is_multiple_of(def.kv_heads) {
            return self.fail(name, "its key heads do not divide its query heads");
        }
        let (group, outside) = (def.heads / def.kv_heads, k_tokens - tokens);
        let past = self.near.lengths.past;
        let q = Heads {
            heads: def.heads,
            head_dim,
            tokens,
            at: q,
        };
        let (k_at, v_at) = (k, v);
        check_past(self.near, def.kv_heads, outside, head_dim, &k_at)
            .and_then(|()| check_past(self.near, def.kv_heads, outside, v_dim, &v_at))
            .or_else(|reason| self.fail(name, reason))?;
        let k = Heads {
            heads: def.heads,
            head_dim,
            tokens,
            at: Box::new(move |head, token, column| k_at(head / group, outside + token, column)),
        };
        let v = Heads {
            heads: def.heads,
            head_dim: v_dim,
            tokens,
            at: Box::new(move |head, token, column| v_at(head / group, outside + token, column)),
        };
        let mut window = def.window;
        if let Some(held) = &def.mask {
            let total = held.len() / tokens;
            let far = self.far.zip(self.far_operators.get(name));
            window = match self.windows(
                held,
                total,
                far.and_then(|(far, def)| {
                    def.mask
                        .as_deref()
                        .map(|mask| (mask, far.lengths.tokens + far.lengths.past))
                }),
            ) {
                Ok(None) => window,
                Ok(found) => found,
                Err(reason) => {
                    return self.fail(name, format!("its mask is not supported: {reason}"));
                }
            };
        } else if !def.causal {
            return self.fail(name, "it shows each query the tokens after it");
        }
        let far = self.far_rotation(|_| {
            let def = *self.far_operators.get(name)?;
            let (at, tokens, head_dim) = columns_of_heads(&def.q, def.heads)?;
            Some(Heads {
                heads: def.heads,
                head_dim,
                tokens,
                at,
            })
        });
        self.finish(
            name,
            q,
            k,
            v,
            past,
            far,
            Attention {
                k_rounding: def.k_rounding.as_ref(),
                v_rounding: def.v_rounding.as_ref(),
                scale: def.scale,
                softcap: def.softcap,
                window,
            },
        )
    }

    /// The rotation of the same queries at a long past.
    fn far_rotation(
        &self,
        query: impl FnOnce(&'a Interpretation) -> Option<Heads<'a>>,
    ) -> Option<(usize, Rotation)> {
        let far = self.far?;
        let heads = query(far)?;
        let rotation = heads.read(&far.bases).ok()?.rotation?;
        Some((far.lengths.past, rotation))
    }

    fn windows(
        &self,
        near: &[f64],
        total: usize,
        far: Option<(&[f64], usize)>,
    ) -> Result<Option<usize>, String> {
        let tokens = self.tokens();
        let seen_near = mask::window(near, tokens, total)?;
        let seen_far = match far {
            Some((values, total)) => mask::window(values, tokens, total)?,
            None => None,
        };
        match (seen_near, seen_far) {
            (Some(a), Some(b)) if a != b => {
                Err("its window changes with the length of the past".into())
            }
            (a, b) => Ok(a.or(b)),
        }
    }

    fn mask_window(
        &self,
        name: &str,
        scores: &Scores<'_>,
        heads: usize,
        past: usize,
    ) -> Matched<Option<usize>> {
        let tokens = self.tokens();
        let near = match combined(&scores.masks, heads, tokens, past + tokens) {
            Ok(mask) => mask,
            Err(reason) => return self.fail(name, reason),
        };
        let Some(near) = near else {
            return self.fail(
                name,
                "it has no mask: each query would see the tokens after it",
            );
        };
        let far = self.far.and_then(|far| {
            let total = far.lengths.tokens + far.lengths.past;
            let scores = self.far_scores.get(scores.node)?;
            let mask = combined(&scores.masks, heads, tokens, total).ok()??;
            Some((mask, total))
        });
        match self.windows(
            &near,
            past + tokens,
            far.as_ref().map(|(mask, total)| (mask.as_slice(), *total)),
        ) {
            Ok(window) => Ok(window),
            Err(reason) => self.fail(name, format!("its mask is not supported: {reason}")),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one attention")]
    fn finish(
        &mut self,
        name: &str,
        q: Heads<'_>,
        k: Heads<'_>,
        v: Heads<'_>,
        past: usize,
        far: Option<(usize, Rotation)>,
        attention: Attention<'_>,
    ) -> Matched<usize> {
        let bases = &self.near.bases;
        let read = |what: &str, heads: &Heads<'_>| {
            heads
                .read(bases)
                .map_err(|reason| format!("its {what}: {reason}"))
        };
        let parts = read("query", &q).and_then(|q| Ok((q, read("key", &k)?, read("value", &v)?)));
        let (query, key, value) = match parts {
            Ok(parts) => parts,
            Err(reason) => return self.fail(name, reason),
        };
        if value.rotation.is_some() || v.head_dim != k.head_dim {
            return self.fail(
                name,
                "its values are rotated or of another size than its keys",
            );
        }
        let (heads, head_dim) = (q.heads, q.head_dim);
        let key_heads = match distinct_heads(&key, &value, heads, head_dim) {
            Ok(kept) => kept,
            Err(reason) => return self.fail(name, reason),
        };
        let (key_columns, value_columns, kv_heads) = key_heads;
        let rope = match (&query.rotation, &key.rotation) {
            (None, None) => None,
            (Some(a), Some(b)) if a.agrees(b) => Some(self.rope(name, a, past, far)?),
            _ => return self.fail(name, "its queries and keys turn by different angles"),
        };
        // A fully rotated head may carry its magnitude in the scale; a partly rotated one must keep it.
        let mut scale = attention.scale * query.factor * key.factor;
        let mut magnitude = 1.0;
        if let (Some(q), Some(k)) = (&query.rotation, &key.rotation) {
            if q.rotated == head_dim {
                scale *= q.magnitude * k.magnitude;
            } else {
                magnitude = (q.magnitude + k.magnitude) / 2.0;
            }
        }
        let emit = |matcher: &mut Self, base, columns, factor: f64| {
            let selection = Selection {
                base,
                columns,
                factor,
            };
            matcher.selected(&selection, name)
        };
        let mut q_columns = emit(self, query.base, query.columns.clone(), 1.0)?;
        let mut k_columns = emit(self, key.base, key_columns, 1.0)?;
        let mut v_columns = emit(self, value.base, value_columns, value.factor)?;
        if let Some(mut table) = rope {
            if (magnitude - 1.0).abs() > 1e-4 {
                table.magnitude = magnitude as f32;
            }
            let table = self
                .ropes
                .iter()
                .position(|held| *held == table)
                .unwrap_or_else(|| {
                    self.ropes.push(table);
                    self.ropes.len() - 1
                });
            let turn = |matcher: &mut Self, columns: Columns, what: &str| {
                let op = Op::Rope { table, head_dim };
                let node = matcher.push(
                    &format!("{name}/{what}_rope"),
                    op,
                    vec![columns],
                    columns.width,
                );
                matcher.whole(node)
            };
            q_columns = turn(self, q_columns, "q");
            k_columns = turn(self, k_columns, "k");
        }
        if let Some(rounding) = attention.k_rounding {
            let node = self.emit_round(&format!("{name}/k_cache"), k_columns, rounding)?;
            k_columns = self.whole(node);
        }
        if let Some(rounding) = attention.v_rounding {
            let node = self.emit_round(&format!("{name}/v_cache"), v_columns, rounding)?;
            v_columns = self.whole(node);
        }
        self.layers.push(KvLayer {
            window: attention.window,
            ..KvLayer::decoder(kv_heads, head_dim)
        });
        let op = Op::Attention {
            layer: self.layers.len() - 1,
            heads,
            scale: scale as f32,
            softcap: attention.softcap.map(|cap| cap as f32),
        };
        Ok(self.push(
            name,
            op,
            vec![q_columns, k_columns, v_columns],
            heads * head_dim,
        ))
    }

    fn rope(
        &self,
        name: &str,
        near: &Rotation,
        past: usize,
        far: Option<(usize, Rotation)>,
    ) -> Matched<RopeTable> {
        let mut observed = vec![Observed {
            first_position: past,
            angles: &near.angles,
        }];
        if let Some((past, far)) = &far {
            observed.push(Observed {
                first_position: *past,
                angles: &far.angles,
            });
        }
        match frequencies(&observed, &self.near.frequencies, self.near.precision) {
            Ok(inverse_frequencies) => Ok(RopeTable {
                inverse_frequencies,
                pairs: near.pairs,
                magnitude: 1.0,
            }),
            Err(reason) => Err(NotMatched {
                node: name.to_owned(),
                reason: format!("its rotary embedding is not supported: {reason}"),
                varies_with_length: far.is_some(),
            }),
        }
    }
}

struct Attention<'a> {
    k_rounding: Option<&'a Rounding>,
    v_rounding: Option<&'a Rounding>,
    scale: f64,
    softcap: Option<f64>,
    window: Option<usize>,
}

/// A stack of matrices whose leading dimensions are spread over the heads.
struct Spread<'a> {
    form: &'a Form,
    /// Matrix of each head.
    matrices: Vec<usize>,
    inner: [usize; 2],
}

impl<'a> Spread<'a> {
    fn new(form: &'a Form, lead: &[usize]) -> Option<Spread<'a>> {
        let [own @ .., rows, cols] = form.shape.as_slice() else {
            return None;
        };
        (layout::broadcast(own, lead)? == lead).then(|| Spread {
            form,
            matrices: layout::expand(own, lead).positions(),
            inner: [*rows, *cols],
        })
    }

    fn inner(&self, axis: usize) -> usize {
        self.inner[axis]
    }

    fn at(&self, head: usize, row: usize, col: usize) -> Vec<(Element, f64)> {
        let position = (self.matrices[head] * self.inner[0] + row) * self.inner[1] + col;
        self.form
            .summands(position)
            .filter(|(_, factor)| *factor != 0.0)
            .collect()
    }
}

type At<'a> = Box<dyn Fn(usize, usize, usize) -> Vec<(Element, f64)> + 'a>;

/// `[1, tokens, heads * head_dim]` as (head, token, column), with tokens and head size.
fn columns_of_heads(form: &Form, heads: usize) -> Option<(At<'_>, usize, usize)> {
    let &[1, tokens, width] = form.shape.as_slice() else {
        return None;
    };
    if heads == 0 || !width.is_multiple_of(heads) {
        return None;
    }
    let head_dim = width / heads;
    let at = move |head: usize, token: usize, column: usize| {
        form.summands(token * width + head * head_dim + column)
            .filter(|(_, factor)| *factor != 0.0)
            .collect()
    };
    Some((Box::new(at), tokens, head_dim))
}

/// Checks that the first `past` keys are the cache, in order.
fn check_past(
    near: &Interpretation,
    heads: usize,
    past: usize,
    head_dim: usize,
    at: impl Fn(usize, usize, usize) -> Vec<(Element, f64)>,
) -> Result<(), String> {
    let mut scale = None;
    for head in 0..heads {
        for key in 0..past {
            for column in 0..head_dim {
                let summands = at(head, key, column);
                let [(element, factor)] = summands.as_slice() else {
                    return Err("its earlier keys are not the cache".into());
                };
                // Some exports scale keys after reading the cache, old and new ones alike.
                if scale.is_some_and(|scale| scale != *factor) {
                    return Err("its earlier keys are scaled one by one".into());
                }
                scale = Some(*factor);
                let base = near.bases.get(element.base);
                let in_order = matches!(base.def, Def::Past)
                    && base
                        .shape
                        .iter()
                        .zip(layout::coordinates(element.index, &base.shape))
                        .any(|(size, place)| *size == past && place == key);
                if !in_order {
                    return Err("its earlier keys are not the cache in order".into());
                }
            }
        }
    }
    Ok(())
}

fn query_heads<'a>(far: &Interpretation, scores: &Scores<'a>) -> Option<Heads<'a>> {
    let [lead @ .., _, _] = scores.shape else {
        return None;
    };
    let q = Spread::new(scores.q, lead)?;
    Some(Heads {
        heads: lead.iter().product(),
        head_dim: q.inner(1),
        tokens: far.lengths.tokens,
        at: Box::new(move |head, token, column| q.at(head, token, column)),
    })
}

/// Keys and values without the repetition over query heads: columns of each, and how many heads are left.
fn distinct_heads(
    key: &HeadColumns,
    value: &HeadColumns,
    heads: usize,
    head_dim: usize,
) -> Result<(Vec<usize>, Vec<usize>, usize), String> {
    let pairs: Vec<(&[usize], &[usize])> = key
        .columns
        .chunks_exact(head_dim)
        .zip(value.columns.chunks_exact(head_dim))
        .collect();
    let mut kept: Vec<(&[usize], &[usize])> = vec![];
    for pair in &pairs {
        if !kept.contains(pair) {
            kept.push(*pair);
        }
    }
    let group = heads / kept.len().max(1);
    let in_order = kept.len() * group == heads
        && pairs
            .iter()
            .enumerate()
            .all(|(head, pair)| kept[head / group] == *pair);
    if !in_order {
        return Err("its query heads are not grouped in order over the key heads".into());
    }
    let keys = kept
        .iter()
        .flat_map(|(keys, _)| keys.iter().copied())
        .collect();
    let values = kept
        .iter()
        .flat_map(|(_, values)| values.iter().copied())
        .collect();
    Ok((keys, values, kept.len()))
}
