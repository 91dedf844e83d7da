//! Operators of quantized exports: block-quantized weights, dynamic int8, quantize-dequantize pairs.

use super::super::QUANTIZED_PER_BLOCK;
use super::super::base::{Def, Rounding};
use super::super::form::Form;
use super::super::matrix::{MatrixSource, ZeroPoints};
use super::super::stored::{Codes, Grid, Reals};
use super::{Interpreter, Understood, Value, not_understood};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, TensorView};

/// Bits of `MatMulNBits` and `GatherBlockQuantized`; their zero points default to the middle of the range.
fn middle(bits: u32) -> i32 {
    1 << (bits - 1)
}

impl Interpreter<'_> {
    /// The node's results when it is about quantization, `None` when it is of another kind.
    pub(super) fn quantized_operator(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let label = node.name_or_output();
        let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
        let stored = |index: usize| match inputs.get(index) {
            Some(Some(Value::Stored(view))) => Some(view.clone()),
            _ => None,
        };
        match (node.op_type(), input(0)) {
            ("MatMulNBits", Some(Value::Form(x))) => {
                let weight = n_bits_weight(node, &stored)?;
                let x = x.clone();
                let mut y = self.linear(label, &x, weight)?;
                if input(4).is_some() {
                    return not_understood("it reorders the blocks of its weight (g_idx)");
                }
                if let Some(bias) = input(5) {
                    y = self.add_value(label, &y, bias)?;
                }
                Ok(Some(vec![Value::Form(y)]))
            }
            ("GatherBlockQuantized", Some(Value::Stored(codes))) => {
                let table = block_quantized_table(node, codes, &stored)?;
                match input(1) {
                    Some(Value::Form(ids)) => {
                        let ids = ids.clone();
                        Ok(Some(vec![Value::Form(self.embed(label, table, &ids)?)]))
                    }
                    _ => not_understood("its indices are not the token ids"),
                }
            }
            ("DynamicQuantizeLinear", Some(Value::Form(x))) => {
                let x = self.rounded(label, &x.clone(), Rounding::Dynamic);
                let scale = Value::DynamicScale(vec![1.0], vec![]);
                Ok(Some(vec![Value::DynamicQuantized(x), scale.clone(), scale]))
            }
            ("QuantizeLinear", Some(Value::Form(x))) => {
                let x = x.clone();
                let rounding =
                    self.static_rounding(node, inputs, x.shape.last().copied().unwrap_or(1))?;
                Ok(Some(vec![Value::Form(self.rounded(label, &x, rounding))]))
            }
            // A known tensor (an angle, a mask) that the export rounds: without its roundings it stays what it is.
            ("QuantizeLinear", Some(Value::Known(known))) if !self.rounds => {
                Ok(Some(vec![Value::Known(known.clone())]))
            }
            ("DequantizeLinear", Some(Value::Known(known)))
                if known.tensor().datum_type().is_float() =>
            {
                Ok(Some(vec![Value::Known(known.clone())]))
            }
            ("MatMulInteger", Some(Value::Form(x))) => {
                // An integer embedding that is multiplied before it is scaled.
                let Some((table, shape)) = self.integer_embedding(x) else {
                    return not_understood(
                        "its input is neither quantized activations nor an embedding",
                    );
                };
                let Some(weight) = stored(1) else {
                    return not_understood("its weight is no constant");
                };
                let zero = match self.i64s_at(inputs, 2)?.as_deref() {
                    None => 0,
                    Some(&[zero]) => zero as i32,
                    Some(_) => return not_understood("its input has more than one zero point"),
                };
                let Some(table) = table.rescaled(1.0, zero) else {
                    return not_understood("its input is scaled already");
                };
                let weight = integer_weight(&weight, stored(3).as_ref())?;
                let x = self.bases.add(label, Def::Embed { table }, &shape);
                let y = self.linear(label, &x, weight.transposed())?;
                Ok(Some(vec![Value::Form(y)]))
            }
            ("MatMulInteger", Some(Value::DynamicQuantized(x))) => {
                let Some(weight) = stored(1) else {
                    return not_understood("its weight is no constant");
                };
                let weight = integer_weight(&weight, stored(3).as_ref())?;
                let x = x.clone();
                Ok(Some(vec![Value::Form(self.linear(
                    label,
                    &x,
                    weight.transposed(),
                )?)]))
            }
            ("DynamicQuantizeMatMul", Some(Value::Form(x))) => {
                let (Some(weight), Some(scale)) = (stored(1), stored(2)) else {
                    return not_understood("its weight is no constant");
                };
                let weight = per_column(&weight, &scale, stored(3).as_ref())?;
                let x = self.rounded(label, &x.clone(), Rounding::Dynamic);
                let mut y = self.linear(label, &x, weight.transposed())?;
                if let Some(bias) = input(4) {
                    y = self.add_value(label, &y, bias)?;
                }
                Ok(Some(vec![Value::Form(y)]))
            }
            ("MatMulIntegerToFloat", Some(Value::DynamicQuantized(x))) => {
                let (Some(weight), Some(scale)) = (stored(1), stored(3)) else {
                    return not_understood("its weight is no constant");
                };
                let weight = per_column(&weight, &scale, stored(5).as_ref())?;
                let x = x.clone();
                let mut y = self.linear(label, &x, weight.transposed())?;
                if let Some(bias) = input(6) {
                    y = self.add_value(label, &y, bias)?;
                }
                Ok(Some(vec![Value::Form(y)]))
            }
            ("Cast", Some(Value::DynamicScale(..))) => {
                Ok(inputs.first().cloned().flatten().map(|value| vec![value]))
            }
            ("DequantizeLinear", Some(Value::Stored(codes))) => {
                self.dequantize_stored(node, codes, inputs)
            }
            ("DequantizeLinear", Some(Value::Form(x))) => {
                // After QuantizeLinear this undoes it; after a Gather it scales an integer embedding table.
                let Some((table, shape)) = self.integer_embedding(x) else {
                    return Ok(Some(vec![Value::Form(x.clone())]));
                };
                let scale = self
                    .known_at(inputs, 1)?
                    .map(|scale| scale.uniform())
                    .transpose()?
                    .flatten();
                let zero = self
                    .i64s_at(inputs, 2)?
                    .and_then(|zero| zero.first().copied())
                    .unwrap_or(0);
                let table = scale.and_then(|scale| table.rescaled(scale as f32, zero as i32));
                let Some(table) = table else {
                    return not_understood("its table has more than one scale");
                };
                Ok(Some(vec![Value::Form(self.bases.add(
                    label,
                    Def::Embed { table },
                    &shape,
                ))]))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|held| held == note) {
            self.notes.push(note.to_owned());
        }
    }

    /// The table and shape of a form that is a whole embedding of integers.
    fn integer_embedding(&self, x: &Form) -> Option<(MatrixSource, Vec<usize>)> {
        let mut bases = x.bases().iter();
        let (Some(&base), None) = (bases.next(), bases.next()) else {
            return None;
        };
        match &self.bases.get(base).def {
            Def::Embed { table } if table.is_quantized() => Some((table.clone(), x.shape.clone())),
            _ => None,
        }
    }

    /// Activations as the export rounds them, when that is part of what is computed.
    pub(super) fn rounded(&mut self, label: &str, x: &Form, rounding: Rounding) -> Form {
        if !self.rounds {
            let how = match rounding {
                Rounding::Dynamic => "per call",
                Rounding::Static { .. } => "with fixed scales",
            };
            self.note(&format!(
                "activations that the export quantizes {how} {QUANTIZED_PER_BLOCK}"
            ));
            return x.clone();
        }
        let shape = x.shape.clone();
        self.bases.add(
            label,
            Def::Round {
                x: x.clone(),
                rounding,
            },
            &shape,
        )
    }

    /// The levels of a `QuantizeLinear`.
    fn static_rounding(
        &mut self,
        node: &NodeProto,
        inputs: &[Option<Value>],
        width: usize,
    ) -> Understood<Rounding> {
        let Some(scales) = self.known_at(inputs, 1)? else {
            return not_understood("it has no scale");
        };
        let scales: Vec<f32> = scales.f64s()?.iter().map(|scale| *scale as f32).collect();
        if scales.len() != 1 && scales.len() != width {
            return not_understood("its scales are neither one for all nor one for each column");
        }
        let zero = self.known_at(inputs, 2)?;
        let kind = zero.as_ref().map(|zero| zero.tensor().datum_type());
        let zero_point = match zero {
            Some(zero) => match zero.uniform()? {
                Some(value) => value as i32,
                None => return not_understood("its zero points differ"),
            },
            None => 0,
        };
        let unsigned = kind.map_or(
            node.int("output_dtype").is_none_or(|kind| kind == 2),
            |kind| kind.is_unsigned(),
        );
        let (low, high) = if unsigned { (0, 255) } else { (-128, 127) };
        Ok(Rounding::Static {
            scales,
            zero_point,
            low,
            high,
        })
    }

    /// An embedding table of integers whose scale comes later.
    pub(super) fn integer_table(view: &TensorView) -> Option<MatrixSource> {
        let &[rows, cols] = view.dims.as_slice() else {
            return None;
        };
        let codes = Codes::of_tensor(view, Grid::dense(cols), rows, cols)?;
        Some(MatrixSource::integers(
            rows,
            cols,
            codes,
            ZeroPoints::Constant(0),
        ))
    }

    /// `DequantizeLinear` of a constant: per tensor, per axis or in blocks.
    fn dequantize_stored(
        &mut self,
        node: &NodeProto,
        codes: &TensorView,
        inputs: &[Option<Value>],
    ) -> Understood<Option<Vec<Value>>> {
        let stored = |index: usize| match inputs.get(index) {
            Some(Some(Value::Stored(view))) => Some(view),
            _ => None,
        };
        let &[rows, cols] = codes.dims.as_slice() else {
            return Ok(None);
        };
        let Some(scale) = stored(1) else {
            return Ok(None);
        };
        let axis = match node.int("axis").unwrap_or(1) {
            0 | -2 => 0,
            1 | -1 => 1,
            axis => return not_understood(format!("its axis {axis} is outside a matrix")),
        };
        let block = node
            .int("block_size")
            .filter(|block| *block > 0)
            .map(|block| block as usize);
        let grid = match (block, scale.elements()) {
            (Some(block), _) if axis == 0 => Grid {
                row_stride: cols,
                col_stride: 1,
                row_block: block,
                col_block: 1,
            },
            (Some(block), _) => Grid {
                row_stride: cols.div_ceil(block),
                col_stride: 1,
                row_block: 1,
                col_block: block,
            },
            (None, 1) => Grid::scalar(),
            (None, _) if axis == 0 => Grid {
                row_stride: 1,
                ..Grid::scalar()
            },
            (None, _) => Grid {
                col_stride: 1,
                ..Grid::scalar()
            },
        };
        let (Some(held), Some(scale)) = (
            Codes::of_tensor(codes, Grid::dense(cols), rows, cols),
            Reals::new(scale, grid, rows, cols),
        ) else {
            return Ok(None);
        };
        let zero = match stored(2) {
            Some(zero) => match Codes::of_tensor(zero, grid, rows, cols) {
                Some(zero) => ZeroPoints::Codes(zero),
                None => return not_understood("its zero points do not fit its weight"),
            },
            None => ZeroPoints::Constant(0),
        };
        Ok(Some(vec![Value::Matrix(MatrixSource::quantized(
            rows, cols, held, zero, scale,
        ))]))
    }
}

/// The weight of `com.microsoft.MatMulNBits`, `[N, K]`.
fn n_bits_weight(
    node: &NodeProto,
    stored: &dyn Fn(usize) -> Option<TensorView>,
) -> Understood<MatrixSource> {
    let size = |name: &str| {
        node.int(name)
            .and_then(|value| usize::try_from(value).ok())
            .filter(|size| *size > 0)
    };
    let (Some(rows), Some(cols), Some(block)) = (size("N"), size("K"), size("block_size")) else {
        return not_understood("it lacks N, K or block_size");
    };
    let bits = node.int("bits").unwrap_or(4) as u32;
    if !matches!(bits, 2 | 4 | 8) || block < 16 || !block.is_power_of_two() {
        return not_understood(format!(
            "{bits} bits in blocks of {block} are not supported"
        ));
    }
    let (Some(codes), Some(scale)) = (stored(1), stored(2)) else {
        return not_understood("its weight is no constant");
    };
    let blocks = cols.div_ceil(block);
    let per_byte = 8 / bits as usize;
    let grid = Grid {
        row_stride: blocks * block,
        ..Grid::dense(cols)
    };
    let by_block = |row_stride: usize| Grid {
        row_stride,
        col_stride: 1,
        row_block: 1,
        col_block: block,
    };
    let zero = match stored(3) {
        None => Some(ZeroPoints::Constant(middle(bits))),
        Some(zero) if zero.data_type == DataType::Uint8 => {
            let grid = by_block(blocks.div_ceil(per_byte) * per_byte);
            Codes::new(&zero.data, bits, false, grid, rows, cols).map(ZeroPoints::Codes)
        }
        Some(zero) => Reals::new(&zero, by_block(blocks), rows, cols).map(ZeroPoints::Real),
    };
    let codes = Codes::new(&codes.data, bits, false, grid, rows, cols);
    let scale = Reals::new(&scale, by_block(blocks), rows, cols);
    match (codes, zero, scale) {
        (Some(codes), Some(zero), Some(scale)) => {
            Ok(MatrixSource::quantized(rows, cols, codes, zero, scale))
        }
        _ => not_understood("its weight is smaller than N, K and block_size say"),
    }
}

/// The table of `com.microsoft.GatherBlockQuantized`, `[vocabulary, width]`.
fn block_quantized_table(
    node: &NodeProto,
    data: &TensorView,
    stored: &dyn Fn(usize) -> Option<TensorView>,
) -> Understood<MatrixSource> {
    let bits = match data.data_type {
        DataType::Uint8 => node.int("bits").unwrap_or(4) as u32,
        DataType::Int4 | DataType::Uint4 => 4,
        _ => return not_understood("its data are not 4- or 8-bit integers"),
    };
    let &[rows, stored_cols] = data.dims.as_slice() else {
        return not_understood("its data are no matrix");
    };
    let packed = data.data_type == DataType::Uint8 && matches!(bits, 2 | 4);
    let cols = if packed {
        stored_cols * (8 / bits as usize)
    } else {
        stored_cols
    };
    let quantize_axis = node.int("quantize_axis").unwrap_or(1);
    if node.int("gather_axis").unwrap_or(0) != 0 || !matches!(quantize_axis, 1 | -1) {
        return not_understood("it does not gather rows quantized along their columns");
    }
    let block = node
        .int("block_size")
        .and_then(|block| usize::try_from(block).ok())
        .unwrap_or(128)
        .max(1);
    let Some(scale) = stored(2) else {
        return not_understood("its scales are no constant");
    };
    let blocks = cols.div_ceil(block);
    let by_block = |row_stride: usize| Grid {
        row_stride,
        col_stride: 1,
        row_block: 1,
        col_block: block,
    };
    let codes = match data.data_type {
        DataType::Uint8 => Codes::new(&data.data, bits, false, Grid::dense(cols), rows, cols),
        _ => Codes::of_tensor(data, Grid::dense(cols), rows, cols),
    };
    let zero = match stored(3) {
        None if data.data_type == DataType::Uint8 => Some(ZeroPoints::Constant(middle(bits))),
        None => Some(ZeroPoints::Constant(0)),
        Some(zero) if packed => {
            let per_byte = 8 / bits as usize;
            let grid = by_block(blocks.div_ceil(per_byte) * per_byte);
            Codes::new(&zero.data, bits, false, grid, rows, cols).map(ZeroPoints::Codes)
        }
        Some(zero) => Codes::of_tensor(&zero, by_block(blocks), rows, cols).map(ZeroPoints::Codes),
    };
    let scale = Reals::new(&scale, by_block(blocks), rows, cols);
    match (codes, zero, scale) {
        (Some(codes), Some(zero), Some(scale)) => {
            Ok(MatrixSource::quantized(rows, cols, codes, zero, scale))
        }
        _ => not_understood("its data are smaller than its shapes say"),
    }
}

/// The `[K, N]` weight of `MatMulInteger`; its scale is applied by later nodes.
fn integer_weight(weight: &TensorView, zero: Option<&TensorView>) -> Understood<MatrixSource> {
    let &[rows, cols] = weight.dims.as_slice() else {
        return not_understood("its weight is no matrix");
    };
    let codes = Codes::of_tensor(weight, Grid::dense(cols), rows, cols);
    let zero = match zero {
        None => Some(ZeroPoints::Constant(0)),
        Some(zero) => column_zero(zero, rows, cols),
    };
    match (codes, zero) {
        (Some(codes), Some(zero)) => Ok(MatrixSource::integers(rows, cols, codes, zero)),
        _ => not_understood("its weight or zero points have an unexpected type or size"),
    }
}

/// A `[K, N]` weight with a scale per tensor or per column.
fn per_column(
    weight: &TensorView,
    scale: &TensorView,
    zero: Option<&TensorView>,
) -> Understood<MatrixSource> {
    let &[rows, cols] = weight.dims.as_slice() else {
        return not_understood("its weight is no matrix");
    };
    let codes = Codes::of_tensor(weight, Grid::dense(cols), rows, cols);
    let zero = match zero {
        None => Some(ZeroPoints::Constant(0)),
        Some(zero) => column_zero(zero, rows, cols),
    };
    let scale = Reals::new(scale, column_grid(scale), rows, cols);
    match (codes, zero, scale) {
        (Some(codes), Some(zero), Some(scale)) => {
            Ok(MatrixSource::quantized(rows, cols, codes, zero, scale))
        }
        _ => not_understood("its weight, scales or zero points have an unexpected type or size"),
    }
}

fn column_grid(values: &TensorView) -> Grid {
    if values.elements() == 1 {
        Grid::scalar()
    } else {
        Grid {
            col_stride: 1,
            ..Grid::scalar()
        }
    }
}

fn column_zero(zero: &TensorView, rows: usize, cols: usize) -> Option<ZeroPoints> {
    Codes::of_tensor(zero, column_grid(zero), rows, cols).map(ZeroPoints::Codes)
}
