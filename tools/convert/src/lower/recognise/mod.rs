//! Turns an interpretation into the operators of a lowered graph.
//!
//! Starting from the logits, each [base](super::base) is matched with the operator that computes it. Matching
//! looks at what is computed (which columns, which function, which angles), never at names.

mod attention;
mod columns;
mod functions;
mod heads;
mod mask;
mod norms;
mod projections;
mod rope;
mod scores;
mod sums;

use super::base::{AttentionDef, Base, Def, Rounding};
use super::form::{BaseId, Form};
use super::interpret::Interpretation;
use super::parts::Parts;
use columns::{Selection, select};
use functions::Elementwise;
use niwaki_bundle::graph::{Columns, KvLayer, Levels, Node, Op, RopeTable};
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
        far_scores: far.map(scores::all_scores).unwrap_or_default(),
        far_operators: far.map(scores::all_operators).unwrap_or_default(),
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

struct Matcher<'a> {
    near: &'a Interpretation,
    far: Option<&'a Interpretation>,
    /// What `far` holds of attention, by node.
    far_scores: HashMap<&'a str, scores::Scores<'a>>,
    far_operators: HashMap<&'a str, &'a AttentionDef>,
    nodes: Vec<Node>,
    layers: Vec<KvLayer>,
    ropes: Vec<RopeTable>,
    parts: Parts,
    /// Node of each base whose value was emitted, by factor bits.
    values: HashMap<(BaseId, u64), usize>,
    projections: HashMap<projections::ProjectionKey, usize>,
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
                        input: 0,
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
}

/// The leaf of an expression: its factor is part of the expression already.
fn unscaled(selection: Selection) -> Selection {
    Selection {
        factor: 1.0,
        ..selection
    }
}
