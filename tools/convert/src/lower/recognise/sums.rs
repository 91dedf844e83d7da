//! Sums with known numbers: biases, a norm's bias, position embeddings.

use super::super::base::{Base, Def, TableRows};
use super::super::form::Form;
use super::columns;
use super::{Matched, Matcher};
use niwaki_bundle::graph::Op;

impl<'a> Matcher<'a> {
    /// A sum with known numbers that is no bias: a norm's bias or a position embedding.
    pub(super) fn emit_known_sum(
        &mut self,
        base: &'a Base,
        x: &'a Form,
        known: &[f64],
        table: Option<&TableRows>,
    ) -> Matched<usize> {
        let name = &base.node;
        if let Some(rows) = table {
            let first = rows.rows.first().copied().unwrap_or(0);
            let past = self.near.lengths.past;
            let consecutive = rows.rows.len() == self.tokens()
                && rows
                    .rows
                    .iter()
                    .enumerate()
                    .all(|(token, &row)| row == first + token);
            if consecutive && first >= past {
                let (x, scale) = self.columns_and_factor(x, name)?;
                let width = rows.table.cols();
                let table = self.parts.matrix(&format!("{name}/positions"), &rows.table);
                let op = Op::PositionEmbed {
                    table,
                    offset: first - past,
                };
                let positions = self.push(&format!("{name}/positions"), op, vec![], width);
                let positions = self.whole(positions);
                return Ok(self.push(
                    name,
                    Op::Add {
                        scale: scale as f32,
                    },
                    vec![positions, x],
                    width,
                ));
            }
        }
        let selection = self.select(x, name)?;
        if let Some(bias) = self.per_column(base, known)
            && selection.run() == Some(0)
        {
            let (norm, factors) = match &self.base(selection.base).def {
                Def::ScaleColumns { x, factors } => {
                    let inner = self.select(x, name)?;
                    let factors = self.per_column(self.base(selection.base), factors);
                    (
                        inner,
                        factors.map(|factors| {
                            factors
                                .iter()
                                .map(|factor| factor * selection.factor)
                                .collect()
                        }),
                    )
                }
                _ => (
                    selection.clone(),
                    Some(vec![selection.factor; selection.columns.len()]),
                ),
            };
            let factors: Option<Vec<f64>> =
                factors.map(|factors| factors.iter().map(|factor| factor * norm.factor).collect());
            if norm.run() == Some(0)
                && let Some(factors) = factors
                && let Some(node) = self.norm_with(norm.base, Some(&factors), Some(&bias))?
            {
                return Ok(node);
            }
        }
        if let Some(bias) = self.per_column(base, known)
            && selection.run() == Some(0)
            && selection.factor == 1.0
            && let Def::Add { a, b } = &self.base(selection.base).def
        {
            for (side, other) in [(b, a), (a, b)] {
                if let Some(node) = self.emit_biased_side(name, side, other, &bias)? {
                    return Ok(node);
                }
            }
        }
        self.fail(name, "it adds known numbers to a value that is neither a projection, a norm nor an embedding")
    }

    /// `side + other + bias`, where `side` is a projection that can take the bias.
    pub(super) fn emit_biased_side(
        &mut self,
        name: &str,
        side: &'a Form,
        other: &'a Form,
        bias: &[f64],
    ) -> Matched<Option<usize>> {
        let selection = self.select(side, name)?;
        let Some(mut projection) = self.projection(&selection) else {
            return Ok(None);
        };
        if projection.rows.len() != bias.len() {
            return Ok(None);
        }
        let own = projection.bias.get_or_insert_with(|| vec![0.0; bias.len()]);
        own.iter_mut()
            .zip(bias)
            .for_each(|(own, bias)| *own += bias);
        let (other, factor) = self.columns_and_factor(other, name)?;
        let side = self.emit_projection(projection)?;
        if side.width != other.width {
            return self.fail(name, "the sides of a sum differ in width");
        }
        let op = Op::Add {
            scale: factor as f32,
        };
        Ok(Some(self.push(name, op, vec![side, other], side.width)))
    }

    /// Known numbers that are the same for every token: one per column.
    pub(super) fn per_column(&self, base: &Base, known: &[f64]) -> Option<Vec<f64>> {
        let rows = columns::Rows::of(&base.shape, self.tokens())?;
        let width = match rows {
            columns::Rows::Tokens { .. } => known.len() / self.tokens(),
            columns::Rows::Last => known.len(),
        };
        let mut values = vec![None; width];
        for (index, &value) in known.iter().enumerate() {
            let (_, column) = rows.place(index, self.tokens());
            match values[column] {
                None => values[column] = Some(value),
                Some(held) if held == value => {}
                Some(_) => return None,
            }
        }
        values.into_iter().collect()
    }
}
