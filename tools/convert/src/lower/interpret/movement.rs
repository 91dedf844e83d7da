//! Operators that move activations without computing: reshapes, transposes, slices, joins.

use super::super::form::Form;
use super::super::known::Known;
use super::super::layout::{self, Picks};
use super::{Interpreter, Understood, Value, not_understood};
use crate::onnx::proto::NodeProto;

impl Interpreter<'_> {
    /// The node's results when it only moves elements, `None` when it is of another kind.
    pub(super) fn movement(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let Some(Some(first)) = inputs.first() else {
            return Ok(None);
        };
        let shape = match Self::shape_of(first) {
            Some(shape) => shape,
            None => return Ok(None),
        };
        let rank = shape.len();
        let one = |value: Value| Ok(Some(vec![value]));
        match node.op_type() {
            "Shape" => {
                let clamp = |at: i64| {
                    (if at < 0 { at + rank as i64 } else { at }).clamp(0, rank as i64) as usize
                };
                let (start, end) = (
                    clamp(node.int("start").unwrap_or(0)),
                    node.int("end").map_or(rank, clamp),
                );
                let sizes: Vec<i64> = shape
                    .get(start..end)
                    .unwrap_or(&[])
                    .iter()
                    .map(|&size| size as i64)
                    .collect();
                one(Value::Known(Known::from_i64(&[sizes.len()], &sizes)?))
            }
            "Size" => one(Value::Known(Known::from_i64(
                &[],
                &[shape.iter().product::<usize>() as i64],
            )?)),
            "Identity" | "Cast" | "CastLike" | "Dropout" => one(first.clone()),
            "Reshape" => {
                let Some(wanted) = self.i64s_at(inputs, 1)? else {
                    return not_understood("it has no shape");
                };
                match layout::reshaped(&shape, &wanted, node.int("allowzero") == Some(1)) {
                    Some(shape) => one(reshape(first, shape)?),
                    None => not_understood(format!("{shape:?} cannot take the shape {wanted:?}")),
                }
            }
            "Flatten" => {
                let axis = node.int("axis").unwrap_or(1);
                let at = if axis == rank as i64 {
                    Some(rank)
                } else {
                    layout::axis(axis, rank)
                };
                let Some(at) = at else {
                    return not_understood("its axis is outside the tensor");
                };
                one(reshape(
                    first,
                    vec![shape[..at].iter().product(), shape[at..].iter().product()],
                )?)
            }
            "Squeeze" => {
                let axes = self.axes(node, inputs)?;
                let drop: Vec<usize> = match axes {
                    Some(axes) => axes
                        .iter()
                        .filter_map(|&axis| layout::axis(axis, rank))
                        .collect(),
                    None => (0..rank).filter(|&axis| shape[axis] == 1).collect(),
                };
                let kept = (0..rank)
                    .filter(|axis| !drop.contains(axis))
                    .map(|axis| shape[axis])
                    .collect();
                one(reshape(first, kept)?)
            }
            "Unsqueeze" => {
                let Some(axes) = self.axes(node, inputs)? else {
                    return not_understood("it has no axes");
                };
                let rank = rank + axes.len();
                let new: Vec<usize> = axes
                    .iter()
                    .filter_map(|&axis| layout::axis(axis, rank))
                    .collect();
                let mut old = shape.iter();
                let result = (0..rank)
                    .map(|axis| {
                        if new.contains(&axis) {
                            1
                        } else {
                            old.next().copied().unwrap_or(1)
                        }
                    })
                    .collect();
                one(reshape(first, result)?)
            }
            "Transpose" => {
                let order: Option<Vec<usize>> = match node.ints("perm") {
                    Some(order) => order.iter().map(|&axis| layout::axis(axis, rank)).collect(),
                    None => Some((0..rank).rev().collect()),
                };
                let permutes = |order: &Vec<usize>| {
                    order.len() == rank && (0..rank).all(|axis| order.contains(&axis))
                };
                let Some(order) = order.filter(permutes) else {
                    return not_understood("its permutation does not fit the tensor");
                };
                one(pick(first, &layout::transpose(&shape, &order))?)
            }
            "Expand" => {
                let Some(wanted) = self.i64s_at(inputs, 1)? else {
                    return not_understood("it has no shape");
                };
                let wanted: Vec<usize> = wanted.iter().map(|&size| size.max(0) as usize).collect();
                let result = Self::broadcast(&shape, &wanted)?;
                one(pick(first, &layout::expand(&shape, &result))?)
            }
            "Tile" => {
                let Some(repeats) = self.i64s_at(inputs, 1)? else {
                    return not_understood("it has no repeats");
                };
                if repeats.len() != rank {
                    return not_understood("it does not say how often each axis repeats");
                }
                let mut value = first.clone();
                let mut result = shape;
                for (axis, &repeat) in repeats.iter().enumerate() {
                    if repeat == 1 {
                        continue;
                    }
                    let size = result[axis] as i64;
                    let indices: Option<Vec<i64>> = size
                        .checked_mul(repeat.max(0))
                        .filter(|count| *count <= 1 << 24)
                        .map(|count| (0..count).map(|at| at % size.max(1)).collect());
                    let picks = indices.and_then(|indices| {
                        layout::gather(&result, axis, &indices, &[indices.len()])
                    });
                    let Some(picks) = picks else {
                        return not_understood("its result would be absurdly large");
                    };
                    value = pick(&value, &picks)?;
                    result = picks.shape;
                }
                one(value)
            }
            "Slice" => self
                .slice(node, inputs, first, &shape)
                .map(|value| Some(vec![value])),
            "Gather" => {
                let Some(indices) = self.index_input(inputs)? else {
                    return Ok(None);
                };
                let Some(axis) = layout::axis(node.int("axis").unwrap_or(0), rank) else {
                    return not_understood("its axis is outside the tensor");
                };
                match layout::gather(&shape, axis, &indices.i64s()?, indices.shape()) {
                    Some(picks) => one(pick(first, &picks)?),
                    None => not_understood("it reads outside of the tensor"),
                }
            }
            "Split" => self.split(node, inputs, first, &shape).map(Some),
            "Concat" => {
                let Some(axis) = layout::axis(node.int("axis").unwrap_or(0), rank) else {
                    return not_understood("its axis is outside the tensor");
                };
                let parts: Vec<Value> = inputs.iter().flatten().cloned().collect();
                one(concat(&parts, axis, self.lengths.track_past)?)
            }
            _ => Ok(None),
        }
    }

    fn index_input(&mut self, inputs: &[Option<Value>]) -> Understood<Option<Known>> {
        match inputs.get(1) {
            Some(Some(value @ (Value::Known(_) | Value::Stored(_)))) => {
                Ok(Some(self.known(value)?))
            }
            _ => Ok(None),
        }
    }

    /// Axes as an attribute (before opset 13) or an input.
    fn axes(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Understood<Option<Vec<i64>>> {
        match node.ints("axes") {
            Some(axes) => Ok(Some(axes.to_vec())),
            None => self.i64s_at(inputs, 1),
        }
    }

    fn slice(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        value: &Value,
        shape: &[usize],
    ) -> Understood<Value> {
        let from_attribute = |name: &str| node.ints(name).map(<[i64]>::to_vec);
        let (starts, ends, axes) = if node.input.len() > 1 {
            (
                self.i64s_at(inputs, 1)?,
                self.i64s_at(inputs, 2)?,
                self.i64s_at(inputs, 3)?,
            )
        } else {
            (
                from_attribute("starts"),
                from_attribute("ends"),
                from_attribute("axes"),
            )
        };
        let steps = self.i64s_at(inputs, 4)?;
        let (Some(starts), Some(ends)) = (starts, ends) else {
            return not_understood("it has no range");
        };
        let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return not_understood("its range has parts of different lengths");
        }
        let (mut value, mut shape) = (value.clone(), shape.to_vec());
        for i in 0..starts.len() {
            let picks = layout::axis(axes[i], shape.len())
                .and_then(|axis| layout::slice(&shape, axis, starts[i], ends[i], steps[i]));
            let Some(picks) = picks else {
                return not_understood("its range does not fit the tensor");
            };
            value = pick(&value, &picks)?;
            shape = picks.shape;
        }
        Ok(value)
    }

    fn split(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        value: &Value,
        shape: &[usize],
    ) -> Understood<Vec<Value>> {
        let Some(axis) = layout::axis(node.int("axis").unwrap_or(0), shape.len()) else {
            return not_understood("its axis is outside the tensor");
        };
        let sizes = match node.ints("split") {
            Some(sizes) => Some(sizes.to_vec()),
            None => self.i64s_at(inputs, 1)?,
        };
        let sizes = sizes.unwrap_or_else(|| {
            let parts = node.output.len().max(1);
            let size = shape[axis].div_ceil(parts);
            (0..parts)
                .map(|i| size.min(shape[axis].saturating_sub(i * size)) as i64)
                .collect()
        });
        let mut start = 0i64;
        let mut values = vec![];
        for size in sizes {
            let Some(picks) =
                layout::slice(shape, axis, start, start.saturating_add(size.max(0)), 1)
            else {
                return not_understood("its parts do not fit the tensor");
            };
            values.push(pick(value, &picks)?);
            start = start.saturating_add(size.max(0));
        }
        Ok(values)
    }
}

fn reshape(value: &Value, shape: Vec<usize>) -> Understood<Value> {
    Ok(match value {
        Value::Form(form) => Value::Form(form.reshape(shape)),
        Value::DynamicQuantized(form) => Value::DynamicQuantized(form.reshape(shape)),
        Value::DynamicScale(factors, _) => Value::DynamicScale(factors.clone(), shape),
        Value::NeverTrue(_) => Value::NeverTrue(shape),
        _ => return not_understood("its input is not an activation"),
    })
}

fn pick(value: &Value, picks: &Picks) -> Understood<Value> {
    Ok(match value {
        Value::Form(form) => Value::Form(form.pick(picks)),
        Value::DynamicQuantized(form) => Value::DynamicQuantized(form.pick(picks)),
        Value::NeverTrue(_) => Value::NeverTrue(picks.shape.clone()),
        _ => return not_understood("its input is not an activation"),
    })
}

/// Joins activations. Where the past is not tracked, what it is joined to is not tracked either.
fn concat(parts: &[Value], axis: usize, track_past: bool) -> Understood<Value> {
    let mut forms = Vec::with_capacity(parts.len());
    for part in parts {
        forms.push(match part {
            Value::Form(form) => form.clone(),
            Value::Known(known) if known.uniform()?.is_none_or(|value| value == 0.0) => {
                let values = known.f64s()?;
                if values.iter().any(|value| *value != 0.0) {
                    return not_understood("it joins activations with constants");
                }
                Form::zeros(known.shape())
            }
            _ => return not_understood("it joins activations with constants"),
        });
    }
    let Some(first) = forms.first() else {
        return not_understood("it has no inputs");
    };
    let fits = forms.iter().all(|form| {
        form.shape.len() == first.shape.len()
            && form
                .shape
                .iter()
                .zip(&first.shape)
                .enumerate()
                .all(|(at, (a, b))| at == axis || a == b)
    });
    if !fits {
        return not_understood("the tensors it joins have different shapes");
    }
    let mut shape = first.shape.clone();
    shape[axis] = forms.iter().map(|form| form.shape[axis]).sum();
    if layout::element_count(&shape).is_none() {
        return not_understood("its result would be absurdly large");
    }
    if !track_past && forms.iter().any(|form| form.is_zero() && form.len() > 0) {
        return Ok(Value::Form(Form::zeros(&shape)));
    }
    Ok(Value::Form(Form::concat(&forms, axis)))
}
