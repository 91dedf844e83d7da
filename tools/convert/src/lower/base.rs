//! Bases: the values of a graph that are really computed, and what computes them.

use super::form::{BaseId, Form};
use super::matrix::MatrixSource;
use std::rc::Rc;

/// A value that is more than a rearrangement of earlier ones.
#[derive(Debug)]
pub(super) struct Base {
    /// The ONNX node it comes from.
    pub(super) node: String,
    /// How it is computed.
    pub(super) def: Def,
    /// Its shape in the graph at the probed lengths.
    pub(super) shape: Vec<usize>,
}

/// What computes a base.
#[derive(Debug)]
pub(super) enum Def {
    /// The token ids, `[1, tokens]`.
    Ids,
    /// Cached keys or values that the graph takes as an input.
    Past,
    /// Rows of a matrix picked by the token ids.
    Embed { table: MatrixSource },
    /// `x W^T`, on the last axis.
    Linear { x: Form, weight: MatrixSource },
    /// Something plus a tensor that does not depend on activations: a bias, a mask, a position embedding, an epsilon.
    AddKnown {
        x: Form,
        known: Rc<[f64]>,
        table: Option<TableRows>,
    },
    /// Something whose columns are scaled one by one: a norm's weight, the scales of an integer projection.
    ScaleColumns { x: Form, factors: Rc<[f64]> },
    /// Activations rounded as the export rounds them.
    Round { x: Form, rounding: Rounding },
    /// The sum of two different values.
    Add { a: Form, b: Form },
    /// Elementwise product, with broadcasting.
    Mul { a: Form, b: Form },
    /// Elementwise quotient, with broadcasting.
    Div { a: Form, b: Form },
    /// An elementwise function.
    Unary { function: Unary, x: Form },
    /// Mean over the last axis.
    Mean { x: Form },
    /// Batched matrix product of two activations.
    Contract { a: Form, b: Form },
    /// Softmax over the last axis.
    Softmax { x: Form },
    /// A norm that the export spells as one operator, over the last `group` elements.
    Norm(NormDef),
    /// Attention that the export spells as one operator.
    Attention(Box<AttentionDef>),
}

/// How an export rounds activations.
#[derive(Clone, Debug)]
pub(super) enum Rounding {
    /// `DynamicQuantizeLinear`.
    Dynamic,
    /// `QuantizeLinear` with one scale for all columns, or one for each.
    Static {
        scales: Vec<f32>,
        zero_point: i32,
        low: i32,
        high: i32,
    },
}

/// A fused norm operator.
#[derive(Debug)]
pub(super) struct NormDef {
    pub(super) x: Form,
    pub(super) layer: bool,
    pub(super) weight: Option<Vec<f32>>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) epsilon: f32,
    pub(super) group: usize,
}

/// A fused attention operator; heads of `q`, `k` and `v` are consecutive runs of columns.
#[derive(Debug)]
pub(super) struct AttentionDef {
    /// `[1, tokens, heads * head_dim]`, rotated.
    pub(super) q: Form,
    /// `[1, tokens, kv_heads * head_dim]`, rotated, without the past.
    pub(super) k: Form,
    pub(super) v: Form,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) scale: f64,
    pub(super) softcap: Option<f64>,
    pub(super) window: Option<usize>,
    /// Additional summand of the scores, `[tokens, total]`, if the export passes one.
    pub(super) mask: Option<Rc<[f64]>>,
    /// How the cache rounds keys and values.
    pub(super) k_rounding: Option<Rounding>,
    pub(super) v_rounding: Option<Rounding>,
    /// The operator itself hides the future.
    pub(super) causal: bool,
}

/// Rows of a table picked by positions: a learned position embedding.
#[derive(Clone, Debug)]
pub(super) struct TableRows {
    pub(super) table: MatrixSource,
    pub(super) rows: Rc<[usize]>,
}

/// Elementwise functions of one argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unary {
    Sqrt,
    Reciprocal,
    Exp,
    Erf,
    Tanh,
    Sigmoid,
    Relu,
    Abs,
    Pow(f64),
    /// `x * sigmoid(alpha * x)`.
    QuickGelu(f64),
    GeluErf,
    GeluTanh,
}

impl Unary {
    /// The function's value.
    pub(super) fn apply(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Unary::Sqrt => x.sqrt(),
            Unary::Reciprocal => 1.0 / x,
            Unary::Exp => x.exp(),
            Unary::Erf => erf(x),
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => sigmoid(x),
            Unary::Relu => x.max(0.0),
            Unary::Abs => x.abs(),
            Unary::Pow(power) => x.powf(power),
            Unary::QuickGelu(alpha) => x * sigmoid(alpha * x),
            Unary::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Unary::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

/// Error function by its Taylor series, which cancels beyond |x| = 4.5; there it is 1 to ten digits.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// All bases of one interpretation, in the order they are computed.
#[derive(Default)]
pub(super) struct Bases(Vec<Base>);

impl Bases {
    /// Adds a base and returns it as a form.
    pub(super) fn add(&mut self, node: &str, def: Def, shape: &[usize]) -> Form {
        self.0.push(Base {
            node: node.to_owned(),
            def,
            shape: shape.to_vec(),
        });
        Form::identity(self.0.len() - 1, shape)
    }

    pub(super) fn get(&self, id: BaseId) -> &Base {
        &self.0[id]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BaseId, &Base)> {
        self.0.iter().enumerate()
    }
}

#[cfg(test)]
mod tests {
    use super::erf;

    #[test]
    fn erf_agrees_with_tables() {
        assert!((erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-12);
        assert!((erf(-2.0) + 0.995_322_265_018_952_7).abs() < 1e-12);
        assert!((erf(9.0) - 1.0).abs() < 1e-6);
    }
}
