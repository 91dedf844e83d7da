//! Turns an interpretation into the operators of a lowered graph.
//!
//! Starting from the logits, each [base](super::base) is matched with the operator that computes it. Matching
//! looks at what is computed (which columns, which function, which angles), never at names.

mod attention;
mod columns;
mod functions;
mod heads;
mod mask;
mod rope;

use super::base::{AttentionDef, Base, Def, NormDef, Rounding, TableRows};
use super::form::{BaseId, Form};
use super::interpret::Interpretation;
use super::matrix::MatrixSource;
use super::parts::Parts;
use columns::{Selection, select};
use functions::Elementwise;
use niwaki::graph::{Columns, KvLayer, Levels, Node, NormKind, Op, RopeTable};
use std::collections::{HashMap, HashSet};

/// Why a value could not be matched: the base's node and the reason.
#[derive(Debug)]
pub(super) struct NotMatched {
    pub(super) node: String,
    pub(super) reason: String,
    /// What was seen at a long past does not fit what was seen at a short one: the export may be usable up to some
    /// length.
    pub(super) varies_with_length: bool,
}

type Matched<T> = Result<T, NotMatched>;

fn not_matched<T>(node: &str, reason: impl Into<String>) -> Matched<T> {
    Err(NotMatched {
        node: node.to_owned(),
        reason: reason.into(),
        varies_with_length: false,
    })
}

/// Most values between the logits and the token ids, one computed from the next: a thousand layers have fewer.
/// [`super::STACK_BYTES`] holds as many calls.
const DEPTH_MAX: usize = 20_000;

/// The recognised operators, before fusion.
pub(super) struct Recognised {
    pub(super) nodes: Vec<Node>,
    pub(super) layers: Vec<KvLayer>,
    pub(super) ropes: Vec<RopeTable>,
    pub(super) logits: usize,
    pub(super) vocabulary: usize,
    pub(super) parts: Parts,
}

/// Matches everything the logits depend on. `near` is interpreted at a short past whose elements are tracked,
/// `far` at a long one, to see windows and far angles.
pub(super) fn recognise(
    near: &Interpretation,
    far: Option<&Interpretation>,
) -> Matched<Recognised> {
    let Some(logits) = &near.logits else {
        return not_matched("logits", "they depend on nodes that are not understood");
    };
    let mut matcher = Matcher {
        near,
        far,
        far_scores: far.map(attention::all_scores).unwrap_or_default(),
        far_operators: far.map(attention::all_operators).unwrap_or_default(),
        nodes: vec![],
        layers: vec![],
        ropes: vec![],
        parts: Parts::default(),
        values: HashMap::new(),
        projections: HashMap::new(),
        active: HashSet::new(),
        depth: 0,
    };
    let columns = matcher.columns(logits, "logits")?;
    let vocabulary = columns.width;
    let whole = columns.offset == 0 && matcher.nodes[columns.node].width == columns.width;
    if !whole {
        return not_matched("logits", "they are part of a wider value");
    }
    let Matcher {
        nodes,
        layers,
        ropes,
        parts,
        ..
    } = matcher;
    Ok(Recognised {
        nodes,
        layers,
        ropes,
        logits: columns.node,
        vocabulary,
        parts,
    })
}

/// A linear projection with its bias, seen through the nodes that add it.
struct Projection<'a> {
    x: &'a Form,
    node: &'a str,
    base: BaseId,
    weight: &'a MatrixSource,
    /// Column `i` of the value is this row of the weight.
    rows: Vec<usize>,
    /// Factor on each column, before the bias.
    factors: Option<Vec<f64>>,
    bias: Option<Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ProjectionKey {
    base: BaseId,
    rows: Vec<usize>,
    factors: Vec<u64>,
    bias: Vec<u64>,
}

struct Matcher<'a> {
    near: &'a Interpretation,
    far: Option<&'a Interpretation>,
    /// What `far` holds of attention, by node.
    far_scores: HashMap<&'a str, attention::Scores<'a>>,
    far_operators: HashMap<&'a str, &'a AttentionDef>,
    nodes: Vec<Node>,
    layers: Vec<KvLayer>,
    ropes: Vec<RopeTable>,
    parts: Parts,
    /// Node of each base whose value was emitted, by factor bits.
    values: HashMap<(BaseId, u64), usize>,
    projections: HashMap<ProjectionKey, usize>,
    /// Bases being matched: guards against values that depend on themselves.
    active: HashSet<BaseId>,
    /// Values that are being matched for one another.
    depth: usize,
}

impl<'a> Matcher<'a> {
    fn base(&self, id: BaseId) -> &'a Base {
        self.near.bases.get(id)
    }

    fn tokens(&self) -> usize {
        self.near.lengths.tokens
    }

    fn fail<T>(&self, node: &str, reason: impl Into<String>) -> Matched<T> {
        not_matched(node, reason)
    }

    /// The id of an operator on these inputs; an equal one is used again.
    fn push(&mut self, name: &str, op: Op, inputs: Vec<Columns>, width: usize) -> usize {
        if let Some(held) = self
            .nodes
            .iter()
            .position(|node| node.op == op && node.inputs == inputs)
        {
            return held;
        }
        self.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs,
            width,
        });
        self.nodes.len() - 1
    }

    fn whole(&self, node: usize) -> Columns {
        Columns {
            node,
            offset: 0,
            width: self.nodes[node].width,
        }
    }

    fn select(&self, form: &Form, reader: &str) -> Matched<Selection> {
        match select(form, &self.near.bases, self.tokens()) {
            Some(selection) => Ok(selection),
            None => self.fail(
                reader,
                "an input is not a selection of one value's columns, token by token",
            ),
        }
    }

    /// The columns a form stands for, scaled as it says.
    fn columns(&mut self, form: &Form, reader: &str) -> Matched<Columns> {
        let selection = self.select(form, reader)?;
        self.selected(&selection, reader)
    }

    /// The columns a form stands for without its factor, and that factor.
    fn columns_and_factor(&mut self, form: &Form, reader: &str) -> Matched<(Columns, f64)> {
        let selection = self.select(form, reader)?;
        if matches!(self.base(selection.base).def, Def::Embed { .. }) {
            return Ok((self.selected(&selection, reader)?, 1.0));
        }
        let factor = selection.factor;
        Ok((
            self.selected(
                &Selection {
                    factor: 1.0,
                    ..selection
                },
                reader,
            )?,
            factor,
        ))
    }

    fn selected(&mut self, selection: &Selection, reader: &str) -> Matched<Columns> {
        if self.depth >= DEPTH_MAX {
            return self.fail(reader, "it lies deeper than any decoder's layers");
        }
        self.depth += 1;
        let columns = self.emit_selected(selection, reader);
        self.depth -= 1;
        columns
    }

    fn emit_selected(&mut self, selection: &Selection, reader: &str) -> Matched<Columns> {
        if let Some(projection) = self.projection(selection) {
            return self.emit_projection(projection);
        }
        let base = self.base(selection.base);
        let Some(offset) = selection.run() else {
            return self.fail(
                reader,
                format!("it reads scattered columns of {}", base.node),
            );
        };
        let width = selection.columns.len();
        // An embedding and a function can carry a factor themselves.
        let inside = match &base.def {
            Def::Embed { .. } => true,
            Def::Mul { .. } | Def::Div { .. } | Def::Unary { .. } => {
                selection.factor != 1.0
                    && functions::elementwise(
                        &self.near.bases,
                        selection.base,
                        selection.factor,
                        self.tokens(),
                    )
                    .is_some()
            }
            _ => false,
        };
        let node = self.value(selection.base, if inside { selection.factor } else { 1.0 })?;
        let columns = Columns {
            node,
            offset,
            width,
        };
        if inside || selection.factor == 1.0 {
            return Ok(columns);
        }
        let scaled = self.push(
            &base.node,
            Op::Scale {
                factor: selection.factor as f32,
            },
            vec![columns],
            width,
        );
        Ok(self.whole(scaled))
    }

    /// The node that computes a base's whole value, times `factor` (1 but for embeddings and functions).
    fn value(&mut self, id: BaseId, factor: f64) -> Matched<usize> {
        if let Some(&node) = self.values.get(&(id, factor.to_bits())) {
            return Ok(node);
        }
        let base = self.base(id);
        if !self.active.insert(id) {
            return self.fail(&base.node, "its value depends on itself");
        }
        let node = self.emit(id, base, factor)?;
        self.active.remove(&id);
        self.values.insert((id, factor.to_bits()), node);
        Ok(node)
    }

    fn emit(&mut self, id: BaseId, base: &'a Base, factor: f64) -> Matched<usize> {
        let name = &base.node;
        if let Some(node) = self.norm_with(id, None, None)? {
            return Ok(node);
        }
        match &base.def {
            Def::Embed { table } => {
                let width = table.cols();
                let table = self.parts.matrix(name, table);
                Ok(self.push(
                    name,
                    Op::Embed {
                        table,
                        scale: factor as f32,
                    },
                    vec![],
                    width,
                ))
            }
            Def::Linear { .. } => {
                let count = select(
                    &Form::identity(id, &base.shape),
                    &self.near.bases,
                    self.tokens(),
                );
                match count.and_then(|selection| self.projection(&selection)) {
                    Some(projection) => Ok(self.emit_projection(projection)?.node),
                    None => self.fail(name, "its tokens cannot be told from its columns"),
                }
            }
            Def::AddKnown { x, known, table } => {
                self.emit_known_sum(base, x, known, table.as_ref())
            }
            Def::ScaleColumns { x, factors } => {
                let selection = self.select(x, name)?;
                let factors = self
                    .per_column(base, factors)
                    .filter(|_| selection.run() == Some(0));
                let Some(factors) = factors else {
                    return self.fail(name, "it scales values token by token");
                };
                let factors: Vec<f64> = factors
                    .iter()
                    .map(|factor| factor * selection.factor)
                    .collect();
                match self.norm_with(selection.base, Some(&factors), None)? {
                    Some(node) => Ok(node),
                    None => self.fail(
                        name,
                        "it scales the columns of a value that is neither a projection nor a norm",
                    ),
                }
            }
            Def::Round { x, rounding } => {
                let x = self.columns(x, name)?;
                self.emit_round(name, x, rounding)
            }
            Def::Add { a, b } => {
                let ((a, a_factor), (b, b_factor)) = (
                    self.columns_and_factor(a, name)?,
                    self.columns_and_factor(b, name)?,
                );
                let (a, b, scale) = match (a_factor, b_factor) {
                    (1.0, scale) => (a, b, scale),
                    (scale, 1.0) => (b, a, scale),
                    _ => return self.fail(name, "both sides of a sum are scaled"),
                };
                if a.width != b.width {
                    return self.fail(name, "the sides of a sum differ in width");
                }
                Ok(self.push(
                    name,
                    Op::Add {
                        scale: scale as f32,
                    },
                    vec![a, b],
                    a.width,
                ))
            }
            Def::Mul { .. } | Def::Div { .. } | Def::Unary { .. } => {
                match functions::elementwise(&self.near.bases, id, factor, self.tokens()) {
                    Some(function) => self.emit_function(name, function),
                    None => self.fail(name, "it is no known activation, gate or norm"),
                }
            }
            Def::Contract { a, b } => self.emit_attention_products(name, a, b),
            Def::Attention(def) => self.emit_attention_operator(name, def),
            Def::Norm(_) => self.fail(name, "its input is not one value's columns"),
            Def::Mean { .. } => self.fail(name, "a mean outside of a norm"),
            Def::Softmax { .. } => self.fail(name, "a softmax outside of attention"),
            Def::Ids => self.fail(name, "the token ids are used as numbers"),
            Def::Past => self.fail(name, "the cache is used outside of attention"),
        }
    }

    fn emit_round(&mut self, name: &str, x: Columns, rounding: &Rounding) -> Matched<usize> {
        let levels = match rounding {
            Rounding::Dynamic => Levels::Dynamic,
            Rounding::Static {
                scales,
                zero_point,
                low,
                high,
            } => Levels::Static {
                scale: self.parts.vector(&format!("{name}/scale"), scales.clone()),
                zero_point: *zero_point,
                low: *low,
                high: *high,
            },
        };
        Ok(self.push(name, Op::Round { levels }, vec![x], x.width))
    }

    fn emit_function(&mut self, name: &str, function: Elementwise) -> Matched<usize> {
        match function {
            Elementwise::Activation { activation, x } => {
                let x = self.selected(&unscaled(x), name)?;
                Ok(self.push(name, Op::Activate { activation }, vec![x], x.width))
            }
            Elementwise::Gate {
                activation,
                gate,
                up,
            } => {
                let (gate, up) = (
                    self.selected(&unscaled(gate), name)?,
                    self.selected(&unscaled(up), name)?,
                );
                if gate.width != up.width {
                    return self.fail(name, "gate and up differ in width");
                }
                Ok(self.push(name, Op::Gate { activation }, vec![gate, up], gate.width))
            }
            Elementwise::Softcap { cap, x } => {
                let x = self.selected(&unscaled(x), name)?;
                Ok(self.push(name, Op::Softcap { cap: cap as f32 }, vec![x], x.width))
            }
        }
    }

    /// A sum with known numbers that is no bias: a norm's bias or a position embedding.
    fn emit_known_sum(
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
    fn emit_biased_side(
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
    fn per_column(&self, base: &Base, known: &[f64]) -> Option<Vec<f64>> {
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

    /// The norm a base computes, with factors and summands per column; `None` when it is no norm.
    fn norm_with(
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

    /// A selection as rows of a projection, when that is what it is.
    fn projection(&self, selection: &Selection) -> Option<Projection<'a>> {
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

    fn emit_projection(&mut self, projection: Projection<'a>) -> Matched<Columns> {
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

/// The leaf of an expression: its factor is part of the expression already.
fn unscaled(selection: Selection) -> Selection {
    Selection {
        factor: 1.0,
        ..selection
    }
}
