//! Linear projections, seen through the nodes that scale them or add their bias.

use super::super::base::Def;
use super::super::form::{BaseId, Form};
use super::super::matrix::MatrixSource;
use super::columns::{Selection, select};
use super::{Matched, Matcher};
use niwaki_bundle::graph::{Columns, Op};

/// A linear projection with its bias, seen through the nodes that add it.
pub(super) struct Projection<'a> {
    x: &'a Form,
    node: &'a str,
    base: BaseId,
    weight: &'a MatrixSource,
    /// Column `i` of the value is this row of the weight.
    pub(super) rows: Vec<usize>,
    /// Factor on each column, before the bias.
    factors: Option<Vec<f64>>,
    pub(super) bias: Option<Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProjectionKey {
    base: BaseId,
    rows: Vec<usize>,
    factors: Vec<u64>,
    bias: Vec<u64>,
}

impl<'a> Matcher<'a> {
    /// A selection as rows of a projection, when that is what it is.
    pub(super) fn projection(&self, selection: &Selection) -> Option<Projection<'a>> {
        let base = self.base(selection.base);
        if selection.factor != 1.0 {
            return None;
        }
        match &base.def {
            Def::Linear { x, weight } => Some(Projection {
                x,
                node: &base.node,
                base: selection.base,
                weight,
                rows: selection.columns.clone(),
                factors: None,
                bias: None,
            }),
            Def::AddKnown {
                x,
                known: own,
                table: None,
            }
            | Def::ScaleColumns { x, factors: own } => {
                let own = self.per_column(base, own)?;
                let own: Vec<f64> = selection
                    .columns
                    .iter()
                    .map(|column| own[*column])
                    .collect();
                let inner = select(x, &self.near.bases, self.tokens())?;
                let factor = inner.factor;
                let mut projection = self.projection(&Selection {
                    base: inner.base,
                    columns: selection
                        .columns
                        .iter()
                        .map(|column| inner.columns[*column])
                        .collect(),
                    factor: 1.0,
                })?;
                let scale = |values: &mut Option<Vec<f64>>,
                             by: &dyn Fn(usize) -> f64,
                             missing: Option<f64>| {
                    if values.is_none() {
                        *values = missing.map(|value| vec![value; own.len()]);
                    }
                    values
                        .iter_mut()
                        .flatten()
                        .enumerate()
                        .for_each(|(i, value)| *value *= by(i));
                };
                if factor != 1.0 {
                    scale(&mut projection.factors, &|_| factor, Some(1.0));
                    scale(&mut projection.bias, &|_| factor, None);
                }
                if matches!(base.def, Def::ScaleColumns { .. }) {
                    scale(&mut projection.factors, &|i| own[i], Some(1.0));
                    scale(&mut projection.bias, &|i| own[i], None);
                } else {
                    let bias = projection.bias.get_or_insert_with(|| vec![0.0; own.len()]);
                    bias.iter_mut()
                        .zip(&own)
                        .for_each(|(bias, own)| *bias += own);
                }
                Some(projection)
            }
            _ => None,
        }
    }

    pub(super) fn emit_projection(&mut self, projection: Projection<'a>) -> Matched<Columns> {
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect();
        let factors = projection.factors;
        let key = ProjectionKey {
            base: projection.base,
            rows: projection.rows.clone(),
            factors: factors.as_deref().map(bits).unwrap_or_default(),
            bias: projection.bias.as_deref().map(bits).unwrap_or_default(),
        };
        if let Some(&node) = self.projections.get(&key) {
            return Ok(self.whole(node));
        }
        let x = self.columns(projection.x, projection.node)?;
        let all = projection.rows.iter().enumerate().all(|(i, &row)| i == row)
            && projection.rows.len() == projection.weight.rows();
        let weight = if all && factors.is_none() {
            projection.weight.clone()
        } else {
            let factors: Option<Vec<f32>> =
                factors.map(|factors| factors.iter().map(|factor| *factor as f32).collect());
            projection
                .weight
                .with_rows(&projection.rows, factors.as_deref())
        };
        if x.width != weight.cols() {
            return self.fail(projection.node, "its input is not as wide as its weight");
        }
        let width = weight.rows();
        let weight = self.parts.matrix(projection.node, &weight);
        let bias = projection.bias.map(|bias| {
            let bias = bias.iter().map(|value| *value as f32).collect();
            self.parts
                .vector(&format!("{}/bias", projection.node), bias)
        });
        let node = self.push(projection.node, Op::Linear { weight, bias }, vec![x], width);
        self.projections.insert(key, node);
        Ok(self.whole(node))
    }
}
