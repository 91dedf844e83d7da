//! Matrix products and embedding look-ups, and the constant matrices they read.

use super::super::base::Def;
use super::super::form::Form;
use super::super::known::Known;
use super::super::layout;
use super::super::matrix::MatrixSource;
use super::{Interpreter, Understood, Value, not_understood};
use crate::onnx::proto::NodeProto;

impl Interpreter<'_> {
    /// Operators on large constants that are only noted down: the file is not read.
    pub(super) fn constant_matrix(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let Some(Some(first)) = inputs.first() else {
            return Ok(None);
        };
        let lazy = match first {
            Value::Matrix(_) => true,
            Value::Stored(view) => view.dims.len() >= 2,
            _ => false,
        };
        if !lazy {
            return Ok(None);
        }
        let value = match (node.op_type(), first) {
            ("Identity" | "Cast" | "Dropout", _) if self.matrix(first).is_some() => first.clone(),
            ("Transpose", _) => match self.matrix(first) {
                Some(matrix) => Value::Matrix(matrix.transposed()),
                None => return Ok(None),
            },
            ("Reshape", Value::Stored(view)) => {
                let Some(wanted) = self.i64s_at(inputs, 1)? else {
                    return Ok(None);
                };
                let Some(dims) =
                    layout::reshaped(&view.dims, &wanted, node.int("allowzero") == Some(1))
                else {
                    return not_understood("a constant cannot take its shape");
                };
                let mut view = view.clone();
                view.dims = dims;
                Value::Stored(view)
            }
            _ => return Ok(None),
        };
        Ok(Some(vec![value]))
    }

    /// The node's results when it is a matrix product or an embedding, `None` when it is of another kind.
    pub(super) fn product(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let label = node.name_or_output();
        let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
        let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
        let result = match (node.op_type(), input(0), input(1)) {
            (
                "Gather",
                Some(table @ (Value::Stored(_) | Value::Matrix(_))),
                Some(Value::Form(ids)),
            ) => {
                if node.int("axis").unwrap_or(0) != 0 {
                    return not_understood("it picks columns of a table, not rows");
                }
                let integers = match table {
                    Value::Stored(view) => Self::integer_table(view),
                    _ => None,
                };
                let Some(table) = integers.or_else(|| self.matrix(table)) else {
                    return not_understood("its table is not a matrix of numbers");
                };
                self.embed(label, table, ids)?
            }
            ("MatMul", Some(Value::Form(a)), Some(Value::Form(b))) => self.contract(label, a, b)?,
            ("MatMul", Some(Value::Form(x)), Some(weight)) => {
                let Some(weight) = self.matrix_or_known(weight)? else {
                    return not_understood("its weight is not a matrix");
                };
                self.linear(label, x, weight.transposed())?
            }
            ("FusedMatMul", Some(Value::Form(a)), Some(b)) => {
                if flag("transBatchA") || flag("transBatchB") {
                    return not_understood("it transposes batches");
                }
                let alpha = f64::from(node.float("alpha").unwrap_or(1.0));
                let a = if flag("transA") {
                    swapped(a)
                } else {
                    a.clone()
                };
                match b {
                    Value::Form(b) => {
                        let b = if flag("transB") {
                            swapped(b)
                        } else {
                            b.clone()
                        };
                        self.contract(label, &a, &b)?.scaled(alpha)
                    }
                    weight => {
                        let Some(weight) = self.matrix_or_known(weight)? else {
                            return not_understood("its weight is not a matrix");
                        };
                        let weight = if flag("transB") {
                            weight
                        } else {
                            weight.transposed()
                        };
                        self.linear(label, &a, weight)?.scaled(alpha)
                    }
                }
            }
            ("Gemm", Some(Value::Form(x)), Some(weight)) => {
                let Some(weight) = self.matrix_or_known(weight)? else {
                    return not_understood("its weight is not a constant matrix");
                };
                let x = if flag("transA") {
                    swapped(x)
                } else {
                    x.clone()
                };
                let weight = if flag("transB") {
                    weight
                } else {
                    weight.transposed()
                };
                let alpha = f64::from(node.float("alpha").unwrap_or(1.0));
                let product = self.linear(label, &x, weight)?.scaled(alpha);
                match input(2) {
                    Some(bias) => {
                        if node.float("beta").unwrap_or(1.0) != 1.0 {
                            return not_understood("it scales its bias");
                        }
                        self.add_value(label, &product, bias)?
                    }
                    None => product,
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(vec![Value::Form(result)]))
    }

    /// A matrix, also when it was computed from small constants.
    fn matrix_or_known(&mut self, value: &Value) -> Understood<Option<MatrixSource>> {
        if let Some(matrix) = self.matrix(value) {
            return Ok(Some(matrix));
        }
        match value {
            Value::Known(known) => matrix_of_known(known),
            _ => Ok(None),
        }
    }

    /// `x W^T` for `weight` with one row per output.
    pub(super) fn linear(
        &mut self,
        label: &str,
        x: &Form,
        weight: MatrixSource,
    ) -> Understood<Form> {
        let Some((&width, lead)) = x.shape.split_last() else {
            return not_understood("its input is a scalar");
        };
        if width != weight.cols() {
            return not_understood(format!(
                "an input of {width} columns meets a weight of {}",
                weight.cols()
            ));
        }
        let shape = sized([lead, &[weight.rows()]].concat())?;
        if x.is_zero() {
            return Ok(Form::zeros(&shape));
        }
        Ok(self.bases.add(
            label,
            Def::Linear {
                x: x.clone(),
                weight,
            },
            &shape,
        ))
    }

    pub(super) fn embed(
        &mut self,
        label: &str,
        table: MatrixSource,
        ids: &Form,
    ) -> Understood<Form> {
        let direct = ids
            .bases()
            .iter()
            .all(|&base| matches!(self.bases.get(base).def, Def::Ids))
            && (0..ids.len()).all(|at| {
                ids.only(at)
                    .is_some_and(|(element, factor)| element.index == at && factor == 1.0)
            });
        if !direct {
            return not_understood("its indices are not the token ids");
        }
        let shape = sized([ids.shape.as_slice(), &[table.cols()]].concat())?;
        Ok(self.bases.add(label, Def::Embed { table }, &shape))
    }

    fn contract(&mut self, label: &str, a: &Form, b: &Form) -> Understood<Form> {
        let (Some(a_lead), Some(b_lead)) =
            (a.shape.len().checked_sub(2), b.shape.len().checked_sub(2))
        else {
            return not_understood("a product of activations that are not matrices");
        };
        if a.shape[a_lead + 1] != b.shape[b_lead] {
            return not_understood(format!(
                "shapes {:?} and {:?} cannot be multiplied",
                a.shape, b.shape
            ));
        }
        let mut shape = Self::broadcast(&a.shape[..a_lead], &b.shape[..b_lead])?;
        shape.extend([a.shape[a_lead], b.shape[b_lead + 1]]);
        let shape = sized(shape)?;
        Ok(self.bases.add(
            label,
            Def::Contract {
                a: a.clone(),
                b: b.clone(),
            },
            &shape,
        ))
    }
}

/// The shape, unless no real decoder has a value of that size.
fn sized(shape: Vec<usize>) -> Understood<Vec<usize>> {
    if layout::element_count(&shape).is_some() {
        Ok(shape)
    } else {
        not_understood(format!("its result of shape {shape:?} is absurdly large"))
    }
}

fn swapped(x: &Form) -> Form {
    let rank = x.shape.len();
    let mut order: Vec<usize> = (0..rank).collect();
    if rank >= 2 {
        order.swap(rank - 2, rank - 1);
    }
    x.pick(&layout::transpose(&x.shape, &order))
}

fn matrix_of_known(known: &Known) -> Understood<Option<MatrixSource>> {
    let &[rows, cols] = known.shape() else {
        return Ok(None);
    };
    let values: Vec<f32> = known.f64s()?.iter().map(|value| *value as f32).collect();
    Ok(Some(MatrixSource::of_values(rows, cols, &values)))
}
