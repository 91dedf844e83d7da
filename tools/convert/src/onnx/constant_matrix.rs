//! The constant matrix behind a node's input.

use std::{collections::HashMap, ops::Range};

use half::{bf16, f16};

use super::{
    DataType, OnnxError, OnnxModel, TensorView,
    map::release,
    proto::{GraphProto, NodeProto, TensorProto},
};
use crate::onnx::FloatRows;

/// Longer chains of casts and transposes than any exporter writes.
const MAX_CHAIN: usize = 64;

/// The graph's values by the node that computes them.
pub(crate) struct Producers<'a>(HashMap<&'a str, &'a NodeProto>);

impl<'a> Producers<'a> {
    pub(crate) fn of(graph: &'a GraphProto) -> Self {
        let outputs = |node: &'a NodeProto| {
            node.output
                .iter()
                .map(move |output| (output.as_str(), node))
        };
        Self(graph.node.iter().flat_map(outputs).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a NodeProto> {
        self.0.get(name).copied()
    }
}

/// What a name stands for.
pub(crate) enum Definition<'a> {
    /// A stored tensor.
    Initializer(&'a TensorProto),
    /// What a node computes.
    Node(&'a NodeProto),
}

/// Which constants are taken for a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixShape {
    /// Those of two dimensions.
    TwoDimensions,
    /// Kernels of a convolution: a row is all that one output channel is computed with, `[channels, ..]`.
    Kernels,
}

/// A constant matrix of floats: a stored tensor, transposed and cast on its way to the node.
pub(crate) struct Matrix {
    /// The value that holds the stored tensor: an initializer, or what a `Constant` gives.
    value: String,
    stored: TensorView,
    transposed: bool,
    /// The types that it is cast to, in order.
    casts: Vec<DataType>,
}

impl Matrix {
    /// The matrix behind the value `name`: an initializer or `Constant`, through `Transpose`, `Cast` and `Identity`.
    /// `None` for anything else, and for constants that are not 2-D or not of a 16- or 32-bit float type.
    pub(crate) fn behind(
        model: &OnnxModel,
        producers: &Producers<'_>,
        name: &str,
    ) -> Result<Option<Self>, OnnxError> {
        let definition = |name: &str| match model.initializer(name) {
            Some(tensor) => Some(Definition::Initializer(tensor)),
            None => producers.get(name).map(Definition::Node),
        };
        let matrix = Self::defined(model, definition, name, MatrixShape::TwoDimensions)?;
        Ok(matrix.filter(|matrix| !matrix.is_double()))
    }

    /// As [`behind`](Self::behind), of f64 too, where `definition` says what a name stands for: in the body of an `If`, also
    /// what the graphs around it define.
    pub(crate) fn defined<'a>(
        model: &OnnxModel,
        definition: impl Fn(&str) -> Option<Definition<'a>>,
        name: &str,
        shape: MatrixShape,
    ) -> Result<Option<Self>, OnnxError> {
        let (mut name, mut transposed, mut casts) = (name.to_owned(), false, Vec::new());
        for _ in 0..MAX_CHAIN {
            let tensor = match definition(&name) {
                Some(Definition::Initializer(tensor)) => tensor,
                None => return Ok(None),
                Some(Definition::Node(node)) => {
                    match (node.op_type(), node.tensor("value"), node.input_name(0)) {
                        _ if !node.is_onnx() => return Ok(None),
                        ("Constant", Some(tensor), _) => tensor,
                        ("Identity", _, Some(input)) => {
                            name = input.to_owned();
                            continue;
                        }
                        ("Transpose", _, Some(input))
                            if matches!(node.ints("perm"), None | Some([1, 0])) =>
                        {
                            transposed = !transposed;
                            name = input.to_owned();
                            continue;
                        }
                        ("Cast", _, Some(input)) => {
                            let to = node.int("to").and_then(|code| i32::try_from(code).ok());
                            casts.push(
                                to.and_then(|code| DataType::try_from(code).ok())
                                    .unwrap_or_default(),
                            );
                            name = input.to_owned();
                            continue;
                        }
                        _ => return Ok(None),
                    }
                }
            };
            let fits = match shape {
                MatrixShape::TwoDimensions => tensor.dims.len() == 2,
                MatrixShape::Kernels => tensor.dims.len() > 2 && !transposed,
            };
            if !fits || !is_float(DataType::try_from(tensor.data_type()).unwrap_or_default()) {
                return Ok(None);
            }
            if !casts.iter().copied().all(is_float) {
                return Ok(None);
            }
            casts.reverse();
            let mut stored = model.view(tensor)?;
            if shape == MatrixShape::Kernels {
                let channels = stored.dims.first().copied().unwrap_or(0);
                let weights = stored.elements().checked_div(channels).unwrap_or(0);
                stored.dims = vec![channels, weights];
            }
            return Ok(Some(Self {
                value: name,
                stored,
                transposed,
                casts,
            }));
        }
        Ok(None)
    }

    /// The name of the stored tensor.
    pub(crate) fn name(&self) -> &str {
        self.stored.name()
    }

    /// The value that holds the stored tensor: an initializer, or what a `Constant` gives.
    pub(crate) fn value(&self) -> &str {
        &self.value
    }

    /// The stored tensor.
    pub(crate) fn stored(&self) -> &TensorView {
        &self.stored
    }

    /// The element type that the node sees.
    pub(crate) fn data_type(&self) -> DataType {
        self.casts.last().copied().unwrap_or(self.stored.data_type)
    }

    /// Whether it is of f64 anywhere on its way.
    pub(crate) fn is_double(&self) -> bool {
        self.stored.data_type == DataType::Double || self.casts.contains(&DataType::Double)
    }
}

/// Whether weights of this type can be read.
pub(crate) fn is_float(data_type: DataType) -> bool {
    matches!(
        data_type,
        DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double
    )
}

/// A matrix with its output channels as rows.
pub(crate) struct ChannelRows {
    pub(crate) matrix: Matrix,
    /// Which axis of the stored tensor counts the output channels.
    channel_axis: usize,
    /// What the values are multiplied by (the `alpha` of `Gemm`).
    factor: f32,
}

impl ChannelRows {
    /// For a matrix whose axis `channel_axis`, as the node sees it, counts the output channels.
    pub(crate) fn new(matrix: Matrix, channel_axis: usize, factor: f32) -> Self {
        let channel_axis = if matrix.transposed {
            1 - channel_axis
        } else {
            channel_axis
        };
        Self {
            matrix,
            channel_axis,
            factor,
        }
    }

    /// Whether the stored tensor holds the weights of an output channel side by side.
    pub(crate) fn channels_first(&self) -> bool {
        self.channel_axis == 0
    }

    /// Where the stored tensor holds the weight from input channel `column` to output channel `row`.
    pub(crate) fn stored_index(&self, row: usize, column: usize) -> usize {
        if self.channel_axis == 0 {
            row * self.columns() + column
        } else {
            column * self.rows() + row
        }
    }

    /// What of the file it is: equal for two that are the same tensor, read in the same way.
    pub(crate) fn identity(&self) -> (String, usize, u32, Vec<DataType>) {
        (
            self.matrix.value.clone(),
            self.channel_axis,
            self.factor.to_bits(),
            self.matrix.casts.clone(),
        )
    }
}

impl FloatRows for ChannelRows {
    fn name(&self) -> &str {
        self.matrix.name()
    }

    fn rows(&self) -> usize {
        self.matrix.stored.dims[self.channel_axis]
    }

    fn columns(&self) -> usize {
        self.matrix.stored.dims[1 - self.channel_axis]
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        let (rows, columns) = (self.rows(), self.columns());
        if self.channel_axis == 0 {
            self.matrix
                .stored
                .read_rounded(range.start * columns..range.end * columns, out)?;
        } else {
            let mut of_column = vec![0.0; range.len()];
            for column in 0..columns {
                let start = column * rows;
                self.matrix
                    .stored
                    .read_rounded(start + range.start..start + range.end, &mut of_column)?;
                for (row, &value) in of_column.iter().enumerate() {
                    out[row * columns + column] = value;
                }
            }
        }
        for cast in &self.matrix.casts {
            match cast {
                DataType::Float16 => out
                    .iter_mut()
                    .for_each(|value| *value = f16::from_f32(*value).to_f32()),
                DataType::Bfloat16 => out
                    .iter_mut()
                    .for_each(|value| *value = bf16::from_f32(*value).to_f32()),
                _ => {}
            }
        }
        if self.factor != 1.0 {
            // The product would be multiplied where its weights are too small to be.
            out.iter_mut().for_each(|value| {
                let product = *value * self.factor;
                *value = if product == 0.0 && *value != 0.0 && self.factor != 0.0 {
                    f32::from_bits(1).copysign(product)
                } else {
                    product
                };
            });
        }
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        let data = &self.matrix.stored.data;
        if range == (0..self.rows()) {
            release(data);
        } else if self.channel_axis == 0 {
            let row_bytes = data.len() / self.rows().max(1);
            let rows = range.start * row_bytes..range.end * row_bytes;
            release(data.get(rows).unwrap_or_default());
        }
    }
}
