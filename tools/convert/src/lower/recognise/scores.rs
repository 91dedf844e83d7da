//! Attention scores: what lies between the product of queries and keys and the probabilities.

use super::super::base::{AttentionDef, Def, Unary};
use super::super::form::Form;
use super::super::interpret::Interpretation;
use super::columns::same_elements;
use std::collections::HashMap;

/// Attention as products: what lies between the query and the weighted values.
pub(super) struct Scores<'a> {
    pub(super) q: &'a Form,
    pub(super) k: &'a Form,
    pub(super) scale: f64,
    pub(super) softcap: Option<f64>,
    /// Summands of the scores, `[.., tokens, total]`, one array per node that adds one.
    pub(super) masks: Vec<&'a [f64]>,
    /// Shape of the scores.
    pub(super) shape: &'a [usize],
    /// The node of the product, to find it in another interpretation.
    pub(super) node: &'a str,
}

/// Follows the probabilities back to the product of queries and keys.
pub(super) fn read_scores<'a>(
    run: &'a Interpretation,
    probabilities: &Form,
) -> Result<Scores<'a>, String> {
    let softmax = same_elements(probabilities).filter(|(_, factor)| *factor == 1.0);
    let Some(Def::Softmax { x }) = softmax.map(|(base, _)| &run.bases.get(base).def) else {
        return Err("it is a product of activations but no attention: no softmax feeds it".into());
    };
    let mut masks: Vec<&'a [f64]> = vec![];
    let (mut outer, mut softcap) = (1.0, None);
    let mut form = x;
    loop {
        let Some((base, factor)) = same_elements(form) else {
            return Err("its scores are rearranged between product and softmax".into());
        };
        let base = run.bases.get(base);
        match &base.def {
            Def::AddKnown { x, known, .. }
                if factor == 1.0 && softcap.is_none() && outer == 1.0 =>
            {
                masks.push(known);
                form = x;
            }
            Def::Unary {
                function: Unary::Tanh,
                x,
            } if softcap.is_none() => {
                softcap = Some(outer * factor);
                outer = 1.0;
                form = x;
            }
            Def::Contract { a, b } => {
                let inner = outer * factor;
                let scale = softcap.map_or(inner, |cap| inner * cap);
                return Ok(Scores {
                    q: a,
                    k: b,
                    scale,
                    softcap,
                    masks,
                    shape: &base.shape,
                    node: &base.node,
                });
            }
            Def::AddKnown { .. } => return Err("its mask is scaled".into()),
            _ => {
                return Err(format!(
                    "its scores pass through {}, which is not understood",
                    base.node
                ));
            }
        }
    }
}

/// The sum of the masks as `[tokens, total]`, the same for every head.
pub(super) fn combined(
    masks: &[&[f64]],
    heads: usize,
    tokens: usize,
    total: usize,
) -> Result<Option<Vec<f64>>, String> {
    let size = tokens * total;
    let mut sum: Option<Vec<f64>> = None;
    for mask in masks {
        if mask.len() != heads * size || mask.chunks_exact(size).any(|head| head != &mask[..size]) {
            return Err("its mask differs between heads (ALiBi and relative position biases are not supported)".into());
        }
        match &mut sum {
            Some(sum) => sum
                .iter_mut()
                .zip(*mask)
                .for_each(|(sum, value)| *sum += value),
            None => sum = Some(mask[..size].to_vec()),
        }
    }
    Ok(sum)
}

/// Attention scores of a run by the node of their product.
pub(super) fn all_scores(run: &Interpretation) -> HashMap<&str, Scores<'_>> {
    run.bases
        .iter()
        .filter_map(|(id, base)| match &base.def {
            Def::Softmax { .. } => read_scores(run, &Form::identity(id, &base.shape)).ok(),
            _ => None,
        })
        .map(|scores| (scores.node, scores))
        .collect()
}

/// Attention that a run holds as one operator, by its node.
pub(super) fn all_operators(run: &Interpretation) -> HashMap<&str, &AttentionDef> {
    run.bases
        .iter()
        .filter_map(|(_, base)| match &base.def {
            Def::Attention(def) => Some((base.node.as_str(), def.as_ref())),
            _ => None,
        })
        .collect()
}
