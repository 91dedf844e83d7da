//! Norms, with the factors and summands that follow them.

use super::super::base::{Def, NormDef};
use super::super::form::BaseId;
use super::{Matched, Matcher, functions};
use niwaki_bundle::graph::{NormKind, Op};

impl Matcher<'_> {
    /// The norm a base computes, with factors and summands per column; `None` when it is no norm.
    pub(super) fn norm_with(
        &mut self,
        id: BaseId,
        factors: Option<&[f64]>,
        bias: Option<&[f64]>,
    ) -> Matched<Option<usize>> {
        let base = self.base(id);
        let name = &base.node;
        let (kind, x, epsilon, group, weight, own_bias) = match &base.def {
            Def::Norm(NormDef {
                x,
                layer,
                weight,
                bias,
                epsilon,
                group,
            }) => {
                let kind = if *layer {
                    NormKind::Layer
                } else {
                    NormKind::Rms
                };
                (
                    kind,
                    x.clone(),
                    *epsilon,
                    *group,
                    weight.clone(),
                    bias.clone(),
                )
            }
            Def::Mul { .. } | Def::Div { .. } => {
                match functions::norm(&self.near.bases, id, self.tokens()) {
                    Some(norm) => (norm.kind, norm.x, norm.epsilon, norm.group, None, None),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let x = self.columns(&x, name)?;
        let narrow = |values: &[f64]| -> Vec<f32> {
            let all: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let repeats = all.chunks(group).all(|chunk| chunk == &all[..chunk.len()]);
            if repeats {
                all[..group.min(all.len())].to_vec()
            } else {
                all
            }
        };
        let factors = factors
            .filter(|factors| factors.iter().any(|factor| *factor != 1.0))
            .map(narrow);
        let added = bias.map(narrow);
        let (weight, bias) = match (weight, own_bias, factors, added) {
            (weight, own_bias, None, None) => (weight, own_bias),
            (None, None, factors, added) => (factors, added),
            (Some(weight), None, None, added) => (Some(weight), added),
            _ => return self.fail(name, "its factors are scaled again"),
        };
        let weight = weight.map(|weight| self.parts.vector(&format!("{name}/weight"), weight));
        let bias = bias.map(|bias| self.parts.vector(&format!("{name}/bias"), bias));
        let op = Op::Norm {
            kind,
            epsilon,
            group,
            weight,
            bias,
        };
        Ok(Some(self.push(name, op, vec![x], x.width)))
    }
}
