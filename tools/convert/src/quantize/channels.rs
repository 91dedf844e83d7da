//! Tensors of any shape as 8-bit integers with one scale for each channel, as `DequantizeLinear` takes them.

use super::QuantizeError;
use super::store::{Store, Stored};
use crate::onnx::{DataType, TensorView, release};

/// The largest integer.
const LARGEST: f32 = 127.0;
/// Elements that are in memory as floats at a time.
const PIECE: usize = 1 << 18;

/// A quantized tensor among the new initializers.
pub(super) struct ChannelTensors {
    pub(super) integers: Stored,
    /// f32: a list where one axis counts the channels, else of a shape that spreads over the tensor.
    pub(super) scales: Stored,
    /// The axis of the list.
    pub(super) axis: Option<usize>,
    /// Root mean square of the error over that of the weights.
    pub(super) relative_error: f64,
}

/// Which elements of a tensor share a scale.
pub(super) struct Channels {
    /// Of each axis that counts channels: how far apart its elements are, how many, and how far apart their channels.
    axes: Vec<(usize, usize, usize)>,
    count: usize,
}

impl Channels {
    pub(super) fn new(dims: &[usize], axes: &[usize]) -> Channels {
        let mut channels = Channels {
            axes: vec![],
            count: 1,
        };
        for &axis in axes.iter().rev() {
            let size = dims.get(axis).copied().unwrap_or(1);
            let inside = dims.iter().skip(axis + 1);
            let apart = inside.fold(1usize, |product, dim| product.saturating_mul(*dim));
            channels.axes.push((apart, size, channels.count));
            channels.count = channels.count.saturating_mul(size);
        }
        channels
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn of(&self, element: usize) -> usize {
        let parts = self.axes.iter();
        parts
            .map(|(apart, size, step)| element / apart % size * step)
            .sum()
    }
}

/// Quantizes a tensor, to the nearest integer, or says why that cannot be. `axes` count its channels; with `as_list` the scales
/// along a single one are a list.
///
/// # Errors
/// When it cannot be read, or holds what is no number.
pub(super) fn quantize(
    store: &mut Store,
    tensor: &TensorView,
    axes: &[usize],
    as_list: bool,
) -> Result<Result<ChannelTensors, &'static str>, QuantizeError> {
    let channels = Channels::new(&tensor.dims, axes);
    let mut largest = vec![0.0f32; channels.count()];
    let mut broken = None;
    each_piece(tensor, |first, values| {
        for (index, value) in values.iter().enumerate() {
            let channel = channels.of(first + index);
            if !value.is_finite() {
                broken = broken.or(Some(channel));
            }
            largest[channel] = largest[channel].max(value.abs());
        }
        Ok(())
    })?;
    match broken {
        None => {}
        Some(_) if tensor.data_type == DataType::Double => {
            return Ok(Err("it holds numbers that f32 does not reach"));
        }
        Some(row) => {
            let matrix = tensor.name().to_owned();
            return Err(QuantizeError::NotFinite { matrix, row });
        }
    }
    let scales: Vec<f32> = largest.iter().map(|largest| largest / LARGEST).collect();
    let is_lost = |(largest, scale): (&f32, &f32)| *largest > 0.0 && *scale < f32::MIN_POSITIVE;
    if largest.iter().zip(&scales).any(is_lost) {
        return Ok(Err(TOO_SMALL));
    }
    let (mut error, mut power) = (0.0f64, 0.0f64);
    let start = store.spooled();
    each_piece(tensor, |first, values| {
        let mut integers = Vec::with_capacity(values.len());
        for (index, &value) in values.iter().enumerate() {
            let scale = scales[channels.of(first + index)];
            let integer = if scale == 0.0 {
                0.0
            } else {
                (value / scale).round_ties_even().clamp(-LARGEST, LARGEST)
            };
            integers.push(integer as i8 as u8);
            let difference = f64::from(value) - f64::from(integer) * f64::from(scale);
            error += difference * difference;
            power += f64::from(value) * f64::from(value);
        }
        store.spool(&integers)
    })?;
    let name = format!("{}_Q8", tensor.name());
    let dims = tensor.dims.iter().map(|dim| *dim as i64).collect();
    let scale_bytes: Vec<u8> = scales
        .iter()
        .flat_map(|scale| scale.to_le_bytes())
        .collect();
    let size = |axis: usize| tensor.dims[axis] as i64;
    let (axis, scale_dims) = match axes {
        [axis] if as_list => (Some(*axis), vec![size(*axis)]),
        _ => {
            let spread = |axis: usize| if axes.contains(&axis) { size(axis) } else { 1 };
            (None, (0..tensor.dims.len()).map(spread).collect())
        }
    };
    let scales_name = format!("{name}_scales");
    Ok(Ok(ChannelTensors {
        integers: store.keep_spooled(&name, DataType::Int8, dims, start),
        scales: store.add_apart(&scales_name, DataType::Float, scale_dims, &scale_bytes)?,
        axis,
        relative_error: if power > 0.0 {
            (error / power).sqrt()
        } else {
            0.0
        },
    }))
}

/// What is said of floats that stay because of their size.
pub(super) const TOO_SMALL: &str =
    "it holds numbers too small for a scale, which would become zero";

/// Calls `work` with runs of elements and the place of their first.
fn each_piece(
    tensor: &TensorView,
    mut work: impl FnMut(usize, &[f32]) -> Result<(), QuantizeError>,
) -> Result<(), QuantizeError> {
    let mut values = vec![0.0; PIECE.min(tensor.elements())];
    for first in (0..tensor.elements()).step_by(PIECE) {
        let end = tensor.elements().min(first + PIECE);
        let values = &mut values[..end - first];
        tensor.read_rounded(first..end, values)?;
        work(first, values)?;
    }
    release(&tensor.data);
    Ok(())
}
