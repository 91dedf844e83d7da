//! Recognises elementwise functions and norms by what they compute.

use super::super::base::{Bases, Def, Unary};
use super::super::form::{BaseId, Form};
use super::columns::{Selection, same_elements, select};
use niwaki_bundle::graph::{Activation, NormKind};

/// A scalar function of some leaves.
#[derive(Debug)]
enum Expression {
    Leaf(usize),
    Times(f64, Box<Expression>),
    Plus(f64, Box<Expression>),
    Sum(Box<Expression>, Box<Expression>),
    Product(Box<Expression>, Box<Expression>),
    Quotient(Box<Expression>, Box<Expression>),
    Unary(Unary, Box<Expression>),
}

impl Expression {
    fn value(&self, leaves: &[f64]) -> f64 {
        match self {
            Expression::Leaf(leaf) => leaves[*leaf],
            Expression::Times(factor, x) => factor * x.value(leaves),
            Expression::Plus(summand, x) => summand + x.value(leaves),
            Expression::Sum(a, b) => a.value(leaves) + b.value(leaves),
            Expression::Product(a, b) => a.value(leaves) * b.value(leaves),
            Expression::Quotient(a, b) => a.value(leaves) / b.value(leaves),
            Expression::Unary(function, x) => function.apply(x.value(leaves)),
        }
    }
}

/// An elementwise function that an operator of the lowered graph computes.
#[derive(Debug)]
pub(super) enum Elementwise {
    /// `activation(x)`.
    Activation {
        activation: Activation,
        x: Selection,
    },
    /// `activation(gate) * up`.
    Gate {
        activation: Activation,
        gate: Selection,
        up: Selection,
    },
    /// `cap * tanh(x / cap)`.
    Softcap { cap: f64, x: Selection },
}

/// A norm, without its factors and summands.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) kind: NormKind,
    pub(super) x: Form,
    pub(super) epsilon: f32,
    pub(super) group: usize,
}

/// How far a function may be from the one it is taken for: exports round their constants.
const TOLERANCE: f64 = 2e-4;

type Candidate = (Activation, fn(f64) -> f64);

const ACTIVATIONS: [Candidate; 6] = [
    (Activation::Silu, |x| Unary::QuickGelu(1.0).apply(x)),
    (Activation::GeluErf, |x| Unary::GeluErf.apply(x)),
    (Activation::GeluTanh, |x| Unary::GeluTanh.apply(x)),
    (Activation::GeluSigmoid, |x| {
        Unary::QuickGelu(1.702).apply(x)
    }),
    (Activation::Relu, |x| x.max(0.0)),
    (Activation::ReluSquared, |x| x.max(0.0) * x.max(0.0)),
];

fn probes() -> impl Iterator<Item = f64> {
    (-40..=40).map(|i| f64::from(i) * 0.1 + 0.013)
}

/// Builds expressions down to leaves that are columns of values computed otherwise.
struct Builder<'a> {
    bases: &'a Bases,
    tokens: usize,
    leaves: Vec<Selection>,
    /// Expressions that may still be built: a value used twice at each of many levels would double them every time.
    left: usize,
}

/// Most operators of one function; GELU's polynomial has ten.
const OPERATORS_MAX: usize = 64;

impl<'a> Builder<'a> {
    fn new(bases: &'a Bases, tokens: usize) -> Builder<'a> {
        Builder {
            bases,
            tokens,
            leaves: vec![],
            left: OPERATORS_MAX,
        }
    }
}

impl Builder<'_> {
    fn of_form(&mut self, form: &Form, depth: usize) -> Option<Expression> {
        self.left = self.left.checked_sub(1)?;
        let selection = select(form, self.bases, self.tokens)?;
        let factor = selection.factor;
        let whole = selection.run() == Some(0);
        let inside = if whole && depth < 16 {
            self.of_base(selection.base, depth + 1)
        } else {
            None
        };
        let expression = match inside {
            Some(expression) => expression,
            None => {
                let same = |leaf: &Selection| {
                    leaf.base == selection.base && leaf.columns == selection.columns
                };
                let leaf = self.leaves.iter().position(same).unwrap_or_else(|| {
                    self.leaves.push(selection);
                    self.leaves.len() - 1
                });
                Expression::Leaf(leaf)
            }
        };
        Some(if factor == 1.0 {
            expression
        } else {
            Expression::Times(factor, expression.into())
        })
    }

    /// `None` when the base is no elementwise function: then it is a leaf.
    fn of_base(&mut self, base: BaseId, depth: usize) -> Option<Expression> {
        if norm(self.bases, base, self.tokens).is_some() {
            return None;
        }
        let held = self.leaves.len();
        let expression = match &self.bases.get(base).def {
            Def::Unary { function, x } => {
                Some(Expression::Unary(*function, self.of_form(x, depth)?.into()))
            }
            Def::Mul { a, b } if a.shape == b.shape => Some(Expression::Product(
                self.of_form(a, depth)?.into(),
                self.of_form(b, depth)?.into(),
            )),
            Def::Div { a, b } if a.shape == b.shape => Some(Expression::Quotient(
                self.of_form(a, depth)?.into(),
                self.of_form(b, depth)?.into(),
            )),
            Def::Add { a, b }
                if a.shape == b.shape && self.elementwise(a) && self.elementwise(b) =>
            {
                Some(Expression::Sum(
                    self.of_form(a, depth)?.into(),
                    self.of_form(b, depth)?.into(),
                ))
            }
            Def::AddKnown { x, known, .. } => {
                let first = *known.first()?;
                match known.iter().all(|value| *value == first) {
                    true => Some(Expression::Plus(first, self.of_form(x, depth)?.into())),
                    false => None,
                }
            }
            _ => None,
        };
        if expression.is_none() {
            self.leaves.truncate(held);
        }
        expression
    }

    /// A sum is part of a function (as in GELU's polynomial) only when both sides are functions of one value.
    fn elementwise(&self, form: &Form) -> bool {
        select(form, self.bases, self.tokens).is_some_and(|selection| {
            matches!(
                self.bases.get(selection.base).def,
                Def::Unary { .. }
                    | Def::Mul { .. }
                    | Def::Div { .. }
                    | Def::Linear { .. }
                    | Def::AddKnown { .. }
            )
        })
    }
}

fn closest(function: impl Fn(f64) -> f64) -> Option<Activation> {
    let distance = |candidate: fn(f64) -> f64| {
        probes()
            .map(|x| (function(x) - candidate(x)).abs())
            .fold(
                0.0,
                |worst: f64, d| if d.is_nan() { f64::MAX } else { worst.max(d) },
            )
    };
    let (activation, distance) = ACTIVATIONS
        .iter()
        .map(|(activation, candidate)| (*activation, distance(*candidate)))
        .min_by(|a, b| a.1.total_cmp(&b.1))?;
    (distance < TOLERANCE).then_some(activation)
}

/// The elementwise function that a base times `factor` computes.
pub(super) fn elementwise(
    bases: &Bases,
    base: BaseId,
    factor: f64,
    tokens: usize,
) -> Option<Elementwise> {
    let mut builder = Builder::new(bases, tokens);
    let expression = Expression::Times(factor, builder.of_base(base, 0)?.into());
    let mut leaves = builder.leaves.into_iter();
    match (leaves.next(), leaves.next(), leaves.next()) {
        (Some(x), None, _) => {
            let function = |at: f64| expression.value(&[at]);
            if let Some(activation) = closest(function) {
                return Some(Elementwise::Activation { activation, x });
            }
            let cap = function(1e9);
            let capped = cap > 0.0
                && probes().all(|at| {
                    let at = at * cap;
                    (function(at) - cap * (at / cap).tanh()).abs() < TOLERANCE * cap
                });
            capped.then_some(Elementwise::Softcap { cap, x })
        }
        (Some(first), Some(second), None) => {
            let bilinear = |in_second: bool| {
                let at = |gate: f64, up: f64| {
                    expression.value(&if in_second { [gate, up] } else { [up, gate] })
                };
                let activation = closest(|gate| at(gate, 1.0))?;
                let linear =
                    probes().all(|gate| (at(gate, -2.5) + 2.5 * at(gate, 1.0)).abs() < TOLERANCE);
                linear.then_some(activation)
            };
            if let Some(activation) = bilinear(true) {
                return Some(Elementwise::Gate {
                    activation,
                    gate: first,
                    up: second,
                });
            }
            bilinear(false).map(|activation| Elementwise::Gate {
                activation,
                gate: second,
                up: first,
            })
        }
        _ => None,
    }
}

/// The norm a base computes: something times (or over) a root of its mean square.
pub(super) fn norm(bases: &Bases, base: BaseId, tokens: usize) -> Option<Norm> {
    let (numerator, root, over) = match &bases.get(base).def {
        Def::Mul { a, b } if b.shape.last() == Some(&1) => (a, b, false),
        Def::Mul { a, b } if a.shape.last() == Some(&1) => (b, a, false),
        Def::Div { a, b } if b.shape.last() == Some(&1) => (a, b, true),
        _ => return None,
    };
    let group = *numerator.shape.last()?;
    if group <= 1 {
        return None;
    }
    let mut builder = Builder::new(bases, tokens);
    let expression = builder.of_scale(root)?;
    let [leaf] = builder.leaves.as_slice() else {
        return None;
    };
    let Def::Mean { x: square } = &bases.get(leaf.base).def else {
        return None;
    };
    let (square_base, square_factor) = same_elements(square)?;
    let squared = match &bases.get(square_base).def {
        Def::Unary {
            function: Unary::Pow(power),
            x,
        } if *power == 2.0 => x,
        Def::Mul { a, b } if same_form(a, b) => a,
        _ => return None,
    };
    if !same_form(squared, numerator) || squared.shape.last() != Some(&group) {
        return None;
    }
    let scale = |mean: f64| {
        let value = expression.value(&[mean * square_factor]);
        if over { 1.0 / value } else { value }
    };
    let epsilon = scale(0.0).powi(-2);
    let is_root = [1e-6, 0.01, 0.5, 1.0, 30.0, 1e4]
        .iter()
        .all(|&mean| (scale(mean) * (mean + epsilon).sqrt() - 1.0).abs() < 1e-9);
    if !is_root {
        return None;
    }
    let (kind, x) = match centred(bases, squared) {
        Some(x) => (NormKind::Layer, x),
        None => (NormKind::Rms, squared.clone()),
    };
    Some(Norm {
        kind,
        x,
        epsilon: epsilon as f32,
        group,
    })
}

impl Builder<'_> {
    /// The expression of a `[.., 1]` tensor down to a mean.
    fn of_scale(&mut self, form: &Form) -> Option<Expression> {
        self.left = self.left.checked_sub(1)?;
        let (base, factor) = same_elements(form)?;
        let expression = match &self.bases.get(base).def {
            Def::Mean { .. } => {
                self.leaves.push(Selection {
                    base,
                    columns: vec![0],
                    factor: 1.0,
                });
                Expression::Leaf(0)
            }
            Def::Unary { function, x } => Expression::Unary(*function, self.of_scale(x)?.into()),
            Def::AddKnown { x, known, .. } => {
                let first = *known.first()?;
                if known.iter().any(|value| *value != first) {
                    return None;
                }
                Expression::Plus(first, self.of_scale(x)?.into())
            }
            _ => return None,
        };
        Some(if factor == 1.0 {
            expression
        } else {
            Expression::Times(factor, expression.into())
        })
    }
}

/// Two forms with the same elements and factors.
fn same_form(a: &Form, b: &Form) -> bool {
    a.len() == b.len()
        && a.bases() == b.bases()
        && (0..a.len()).all(|position| a.summands(position).eq(b.summands(position)))
}

/// For `x - mean(x)`: `x`.
fn centred(bases: &Bases, form: &Form) -> Option<Form> {
    let (base, factor) = same_elements(form)?;
    let Def::Add { a, b } = &bases.get(base).def else {
        return None;
    };
    let (mean_base, mean_factor) = same_elements(b)?;
    let Def::Mean { x } = &bases.get(mean_base).def else {
        return None;
    };
    (factor == 1.0 && mean_factor == -1.0 && same_form(a, x)).then(|| a.clone())
}
