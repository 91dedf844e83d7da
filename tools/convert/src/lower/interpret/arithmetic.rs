//! Elementwise operators, reductions and norms.

use super::super::base::{Def, NormDef, TableRows, Unary};
use super::super::form::Form;
use super::super::known::Known;
use super::super::layout;
use super::{Interpreter, Understood, Value, not_understood};
use crate::onnx::proto::NodeProto;

impl Interpreter<'_> {
    /// The node's results when it is elementwise, a reduction or a norm; `None` when it is of another kind.
    pub(super) fn arithmetic(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let label = node.name_or_output();
        let one = |form: Form| Ok(Some(vec![Value::Form(form)]));
        let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
        let form = |index: usize| match input(index) {
            Some(Value::Form(form)) => Some(form.clone()),
            _ => None,
        };
        let function = match node.op_type() {
            "Sqrt" => Some(Unary::Sqrt),
            "Reciprocal" => Some(Unary::Reciprocal),
            "Exp" => Some(Unary::Exp),
            "Erf" => Some(Unary::Erf),
            "Tanh" => Some(Unary::Tanh),
            "Sigmoid" => Some(Unary::Sigmoid),
            "Relu" => Some(Unary::Relu),
            "Abs" => Some(Unary::Abs),
            "QuickGelu" => Some(Unary::QuickGelu(f64::from(
                node.float("alpha").unwrap_or(1.702),
            ))),
            "Swish" => Some(Unary::QuickGelu(f64::from(
                node.float("alpha").unwrap_or(1.0),
            ))),
            "Gelu" if node.string("approximate") == Some("tanh") => Some(Unary::GeluTanh),
            "Gelu" | "BiasGelu" => Some(Unary::GeluErf),
            "FastGelu" => Some(Unary::GeluTanh),
            _ => None,
        };
        if let (Some(function), Some(mut x)) = (function, form(0)) {
            if let Some(bias) = input(1) {
                x = self.add_value(label, &x, bias)?;
            }
            let shape = x.shape.clone();
            return one(self.bases.add(label, Def::Unary { function, x }, &shape));
        }
        match node.op_type() {
            "Neg" => match form(0) {
                Some(x) => one(x.scaled(-1.0)),
                None => Ok(None),
            },
            "Add" | "Sub" => {
                let sign = if node.op_type() == "Sub" { -1.0 } else { 1.0 };
                match (input(0), input(1)) {
                    (Some(Value::Form(a)), Some(Value::Form(b))) => {
                        one(self.add_forms(label, a, &b.scaled(sign))?)
                    }
                    (Some(Value::Form(a)), Some(b)) => {
                        let b = self.negated(b, sign)?;
                        one(self.add_value(label, a, &b)?)
                    }
                    (Some(a), Some(Value::Form(b))) => {
                        one(self.add_value(label, &b.scaled(sign), a)?)
                    }
                    _ => Ok(None),
                }
            }
            "Sum" => {
                let Some(mut sum) = form(0) else {
                    return not_understood("it sums constants first");
                };
                for value in inputs.iter().skip(1).flatten() {
                    sum = match value {
                        Value::Form(other) => self.add_forms(label, &sum, other)?,
                        other => self.add_value(label, &sum, other)?,
                    };
                }
                one(sum)
            }
            "Mul" => match (input(0), input(1)) {
                (Some(Value::DynamicScale(factors, shape)), Some(other))
                | (Some(other), Some(Value::DynamicScale(factors, shape))) => self
                    .scale_dynamic(label, factors, shape, other)
                    .map(|value| Some(vec![value])),
                (Some(Value::Form(a)), Some(Value::Form(b))) => {
                    let shape = Self::broadcast(&a.shape, &b.shape)?;
                    one(self.bases.add(
                        label,
                        Def::Mul {
                            a: a.clone(),
                            b: b.clone(),
                        },
                        &shape,
                    ))
                }
                (Some(Value::Form(x)), Some(factor)) | (Some(factor), Some(Value::Form(x))) => {
                    let factor = self.known(factor)?;
                    one(self.scale_known(label, x, &factor, |factor| factor)?)
                }
                _ => Ok(None),
            },
            "Div" => match (input(0), input(1)) {
                (Some(Value::Form(a)), Some(Value::Form(b))) => {
                    let shape = Self::broadcast(&a.shape, &b.shape)?;
                    one(self.bases.add(
                        label,
                        Def::Div {
                            a: a.clone(),
                            b: b.clone(),
                        },
                        &shape,
                    ))
                }
                (Some(Value::Form(x)), Some(divisor)) => {
                    let divisor = self.known(divisor)?;
                    one(self.scale_known(label, x, &divisor, |divisor| 1.0 / divisor)?)
                }
                (Some(numerator), Some(Value::Form(x))) => {
                    let numerator = self.known(numerator)?;
                    let shape = x.shape.clone();
                    let def = Def::Unary {
                        function: Unary::Reciprocal,
                        x: x.clone(),
                    };
                    let reciprocal = self.bases.add(label, def, &shape);
                    one(self.scale_known(label, &reciprocal, &numerator, |factor| factor)?)
                }
                _ => Ok(None),
            },
            "Pow" => match (form(0), input(1)) {
                (Some(x), Some(exponent)) => {
                    let Some(power) = self.known(exponent)?.uniform()? else {
                        return not_understood("its exponents differ");
                    };
                    let shape = x.shape.clone();
                    one(self.bases.add(
                        label,
                        Def::Unary {
                            function: Unary::Pow(power),
                            x,
                        },
                        &shape,
                    ))
                }
                _ => Ok(None),
            },
            "IsNaN" | "IsInf" => match form(0) {
                Some(x) => Ok(Some(vec![Value::NeverTrue(x.shape)])),
                None => Ok(None),
            },
            "Where" => self.choose(label, inputs),
            "ReduceMean" | "ReduceSum" => match form(0) {
                Some(x) => self.reduce(node, inputs, x).map(Some),
                None => Ok(None),
            },
            "Softmax" => match form(0) {
                Some(x) => {
                    let axis = node
                        .int("axis")
                        .unwrap_or(if self.opset < 13 { 1 } else { -1 });
                    if layout::axis(axis, x.shape.len()) != x.shape.len().checked_sub(1) {
                        return not_understood("it is not over the last axis");
                    }
                    let shape = x.shape.clone();
                    one(self.bases.add(label, Def::Softmax { x }, &shape))
                }
                None => Ok(None),
            },
            "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" => {
                match form(0) {
                    Some(x) => {
                        let rank = x.shape.len();
                        if layout::axis(node.int("axis").unwrap_or(-1), rank) != rank.checked_sub(1)
                        {
                            return not_understood("it is not over the last axis alone");
                        }
                        self.norm(
                            node,
                            inputs,
                            x,
                            node.op_type() == "LayerNormalization",
                            1,
                            2,
                        )
                        .map(|y| Some(vec![y]))
                    }
                    None => Ok(None),
                }
            }
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
                let (x, skip) = match (input(0), input(1)) {
                    (Some(Value::Form(x)), Some(skip)) | (Some(skip), Some(Value::Form(x))) => {
                        (x.clone(), skip)
                    }
                    _ => return Ok(None),
                };
                let layer = node.op_type() == "SkipLayerNormalization";
                let (bias, skip_bias) = if layer { (3, 4) } else { (usize::MAX, 3) };
                let mut sum = match skip {
                    Value::Form(skip) => self.add_forms(label, &x, skip)?,
                    skip => self.add_value(label, &x, skip)?,
                };
                if let Some(value) = input(skip_bias) {
                    sum = self.add_value(label, &sum, value)?;
                }
                let y = self.norm(node, inputs, sum.clone(), layer, 2, bias)?;
                Ok(Some(vec![
                    y,
                    Value::Unknown,
                    Value::Unknown,
                    Value::Form(sum),
                ]))
            }
            _ => Ok(None),
        }
    }

    /// `a + b` for two activations: one form when both rearrange the same values, else a base of its own.
    pub(super) fn add_forms(&mut self, label: &str, a: &Form, b: &Form) -> Understood<Form> {
        let shape = Self::broadcast(&a.shape, &b.shape)?;
        let same = a.bases() == b.bases() && a.shape == b.shape;
        if same && !a.is_zero() {
            return Ok(a.plus(b));
        }
        if a.is_zero() && a.shape == shape && b.shape == shape {
            return Ok(b.clone());
        }
        if b.is_zero() && a.shape == shape && b.shape == shape {
            return Ok(a.clone());
        }
        Ok(self.bases.add(
            label,
            Def::Add {
                a: a.clone(),
                b: b.clone(),
            },
            &shape,
        ))
    }

    /// An activation plus something that depends on no activation.
    pub(super) fn add_value(&mut self, label: &str, x: &Form, value: &Value) -> Understood<Form> {
        let known = self.known(value)?;
        let shape = Self::broadcast(&x.shape, known.shape())?;
        if x.is_zero() {
            return Ok(Form::zeros(&shape));
        }
        let held = known.f64s()?;
        if held.iter().all(|value| *value == 0.0) && shape == x.shape {
            return Ok(x.clone());
        }
        let table = match value {
            Value::TableRows(rows, _) => Some(TableRows {
                table: rows.table.clone(),
                rows: rows.rows.clone(),
            }),
            _ => None,
        };
        let spread = layout::expand(known.shape(), &shape)
            .positions()
            .into_iter()
            .map(|from| held[from])
            .collect();
        let x = if x.shape == shape {
            x.clone()
        } else {
            x.pick(&layout::expand(&x.shape, &shape))
        };
        Ok(self.bases.add(
            label,
            Def::AddKnown {
                x,
                known: spread,
                table,
            },
            &shape,
        ))
    }

    fn negated(&mut self, value: &Value, sign: f64) -> Understood<Value> {
        if sign > 0.0 {
            return Ok(value.clone());
        }
        let known = self.known(value)?;
        let values: Vec<f32> = known.f64s()?.iter().map(|value| -value as f32).collect();
        Ok(Value::Known(Known::from_f32(known.shape(), &values)?))
    }

    /// `Where`: a mask on scores, or a guard against values that do not occur.
    fn choose(&mut self, label: &str, inputs: &[Option<Value>]) -> Understood<Option<Vec<Value>>> {
        let [Some(condition), Some(then), Some(otherwise)] = inputs else {
            return Ok(None);
        };
        if let Value::NeverTrue(_) = condition {
            return Ok(Some(vec![otherwise.clone()]));
        }
        let condition = self.known(condition)?;
        let holds: Vec<bool> = condition.i64s()?.iter().map(|value| *value != 0).collect();
        let (x, fill, x_where) = match (then, otherwise) {
            (Value::Form(x), fill) if !matches!(fill, Value::Form(_)) => (x, fill, true),
            (fill, Value::Form(x)) if !matches!(fill, Value::Form(_)) => (x, fill, false),
            _ => return not_understood("it chooses between two activations"),
        };
        let Some(fill) = self.known(fill)?.uniform()? else {
            return not_understood("it fills in different values");
        };
        if fill > -1e4 && holds.iter().any(|holds| *holds != x_where) {
            return not_understood(format!("it fills in {fill}, which is no mask"));
        }
        let mask: Vec<f32> = holds
            .iter()
            .map(|holds| {
                if *holds == x_where {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
            .collect();
        let mask = Value::Known(Known::from_f32(condition.shape(), &mask)?);
        Ok(Some(vec![Value::Form(self.add_value(label, x, &mask)?)]))
    }

    fn reduce(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        x: Form,
    ) -> Understood<Vec<Value>> {
        let axes = match node.ints("axes") {
            Some(axes) => Some(axes.to_vec()),
            None => self.i64s_at(inputs, 1)?,
        };
        let rank = x.shape.len();
        let last = rank.checked_sub(1);
        if axes.is_none_or(|axes| axes.len() != 1 || layout::axis(axes[0], rank) != last) {
            return not_understood("it is not over the last axis alone");
        }
        let count = x.shape.last().copied().unwrap_or(1);
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        let kept = node.int("keepdims").unwrap_or(1) != 0;
        let mut mean = self
            .bases
            .add(node.name_or_output(), Def::Mean { x }, &shape);
        if node.op_type() == "ReduceSum" {
            mean = mean.scaled(count as f64);
        }
        if !kept {
            shape.pop();
            mean = mean.reshape(shape);
        }
        Ok(vec![Value::Form(mean)])
    }

    fn norm(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        x: Form,
        layer: bool,
        weight: usize,
        bias: usize,
    ) -> Understood<Value> {
        let group = x.shape.last().copied().unwrap_or(1);
        let mut vector = |index: usize| -> Understood<Option<Vec<f32>>> {
            let Some(known) = self.known_at(inputs, index)? else {
                return Ok(None);
            };
            let values: Vec<f32> = known.f64s()?.iter().map(|value| *value as f32).collect();
            match values.len() {
                length if length == group => Ok(Some(values)),
                1 => Ok(Some(vec![values[0]; group])),
                length => {
                    not_understood(format!("its {length} factors do not fit {group} columns"))
                }
            }
        };
        let (weight, bias) = (vector(weight)?, vector(bias)?);
        let epsilon = node
            .float("epsilon")
            .unwrap_or(if node.op_type().starts_with("Skip") {
                1e-12
            } else {
                1e-5
            });
        let shape = x.shape.clone();
        let def = Def::Norm(NormDef {
            x,
            layer,
            weight,
            bias,
            epsilon,
            group,
        });
        Ok(Value::Form(self.bases.add(
            node.name_or_output(),
            def,
            &shape,
        )))
    }

    /// The product with a dynamic scale: more known factors, or the accumulators they were waiting for.
    fn scale_dynamic(
        &mut self,
        label: &str,
        factors: &[f64],
        shape: &[usize],
        other: &Value,
    ) -> Understood<Value> {
        match other {
            Value::Form(x) => {
                let result = Self::broadcast(&x.shape, shape)?;
                if result != x.shape {
                    return not_understood("its scales do not fit its products");
                }
                let factors = layout::expand(shape, &result)
                    .positions()
                    .into_iter()
                    .map(|from| factors[from])
                    .collect();
                Ok(Value::Form(self.bases.add(
                    label,
                    Def::ScaleColumns {
                        x: x.clone(),
                        factors,
                    },
                    &result,
                )))
            }
            other => {
                let known = self.known(other)?;
                let result = Self::broadcast(shape, known.shape())?;
                let held = known.f64s()?;
                let mine = layout::expand(shape, &result).positions();
                let theirs = layout::expand(known.shape(), &result).positions();
                let product = mine
                    .into_iter()
                    .zip(theirs)
                    .map(|(a, b)| factors[a] * held[b])
                    .collect();
                Ok(Value::DynamicScale(product, result))
            }
        }
    }

    /// `x` times a function of known factors, with broadcasting. Factors that differ from token to token (a rotary
    /// embedding's) become part of the form; factors per column are a value of their own.
    fn scale_known(
        &mut self,
        label: &str,
        x: &Form,
        factor: &Known,
        function: impl Fn(f64) -> f64,
    ) -> Understood<Form> {
        let shape = Self::broadcast(&x.shape, factor.shape())?;
        let x = if shape == x.shape {
            x.clone()
        } else {
            x.pick(&layout::expand(&x.shape, &shape))
        };
        if let Some(factor) = factor.uniform()? {
            return Ok(x.scaled(function(factor)));
        }
        if x.is_zero() {
            return Ok(x);
        }
        let held: Vec<f64> = factor.f64s()?.into_iter().map(function).collect();
        let each: Vec<f64> = layout::expand(factor.shape(), &shape)
            .positions()
            .into_iter()
            .map(|from| held[from])
            .collect();
        if factor.shape().contains(&self.lengths.tokens) {
            return Ok(x.scaled_each(&each));
        }
        Ok(self.bases.add(
            label,
            Def::ScaleColumns {
                x,
                factors: each.into(),
            },
            &shape,
        ))
    }
}
