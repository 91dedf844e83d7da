//! The tensors of the new nodes, on disk until the model is written.

use super::candidates::{Candidate, Use};
use super::operators::{pack_gather_row, pack_matmul_row};
use super::{
    BLOCK, Code, KeepLattice, QuantizeError, Quantizer, ScaleGrid, Target, on_lattice,
    quantize_in_reach,
};
use crate::calibrate::Statistics;
use crate::onnx::FloatRows;
use crate::onnx::{
    DataType, Spool,
    proto::{GraphProto, TensorProto},
};
use crate::panels::each_panel;
use half::{bf16, f16};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Smaller scales are less than 16 times the smallest f16: rounded to one, they would be wrong by more than 3 %.
const COARSE_SCALE: f32 = 1.0 / (1 << 20) as f32;

/// A quantized matrix among the new initializers.
#[derive(Clone)]
pub(super) struct QuantizedTensors {
    pub(super) integers: Stored,
    pub(super) scales: Stored,
    /// The type of the scales, and of what is computed with them: f32 where that of the model is another but does not
    /// reach all weights.
    pub(super) scale_type: DataType,
    /// Root mean square of the error over that of the weights.
    pub(super) relative_error: f64,
}

#[derive(Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dims: Vec<i64>,
}

/// A new initializer.
struct Tensor {
    name: String,
    dims: Vec<i64>,
    data_type: DataType,
    range: Range<usize>,
}

/// What a quantized matrix is made of: the graph and the tensor, how it is read, the width of its integers, and how they are
/// packed.
type Made = (usize, (String, usize, u32, Vec<DataType>), usize, bool);

/// The new initializers; equal contents are stored once.
pub(super) struct Store {
    spool: Spool,
    tensors: Vec<Tensor>,
    /// By type, content and first dimension: that, too, has to be the same for one tensor to be used for two.
    by_content: HashMap<(DataType, blake3::Hash, i64), Stored>,
    made: HashMap<Made, QuantizedTensors>,
    names: HashSet<String>,
}

impl Store {
    /// For a model of these graphs.
    pub(super) fn new<'a>(
        graphs: impl Iterator<Item = &'a GraphProto>,
    ) -> Result<Self, QuantizeError> {
        let mut names = HashSet::new();
        for graph in graphs {
            let values = graph
                .node
                .iter()
                .flat_map(|node| node.output.iter().chain(&node.input));
            names.extend(values.cloned());
            names.extend(
                graph
                    .initializer
                    .iter()
                    .map(|tensor| tensor.name().to_owned()),
            );
            names.extend(graph.input.iter().map(|input| input.name().to_owned()));
        }
        Ok(Self {
            spool: Spool::new().map_err(QuantizeError::Spool)?,
            tensors: Vec::new(),
            by_content: HashMap::new(),
            made: HashMap::new(),
            names,
        })
    }

    /// A name that nothing in the graphs has.
    pub(super) fn unused_name(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}_{count}");
        }
        name
    }

    pub(super) fn add(
        &mut self,
        wanted: &str,
        data_type: DataType,
        dims: Vec<i64>,
        data: &[u8],
    ) -> Result<Stored, QuantizeError> {
        let range = self.spool.append(data).map_err(QuantizeError::Spool)?;
        Ok(self.keep(wanted, data_type, dims, blake3::hash(data), range))
    }

    /// Makes a tensor of what was appended, unless one of the same content is there.
    fn keep(
        &mut self,
        wanted: &str,
        data_type: DataType,
        dims: Vec<i64>,
        hash: blake3::Hash,
        range: Range<usize>,
    ) -> Stored {
        let content = (data_type, hash, dims.first().copied().unwrap_or(0));
        if let Some(stored) = self.by_content.get(&content) {
            return stored.clone();
        }
        let stored = self.list(wanted, data_type, dims, range);
        self.by_content.insert(content, stored.clone());
        stored
    }

    fn list(
        &mut self,
        wanted: &str,
        data_type: DataType,
        dims: Vec<i64>,
        range: Range<usize>,
    ) -> Stored {
        let stored = Stored {
            name: self.unused_name(wanted),
            dims,
        };
        self.tensors.push(Tensor {
            name: stored.name.clone(),
            dims: stored.dims.clone(),
            data_type,
            range,
        });
        stored
    }

    /// As [`add`](Self::add), for a tensor whose shape matters: it is no other of the same content.
    pub(super) fn add_apart(
        &mut self,
        wanted: &str,
        data_type: DataType,
        dims: Vec<i64>,
        data: &[u8],
    ) -> Result<Stored, QuantizeError> {
        let start = self.spooled();
        self.spool(data)?;
        Ok(self.keep_spooled(wanted, data_type, dims, start))
    }

    /// How many bytes were spooled.
    pub(super) fn spooled(&self) -> usize {
        self.spool.len()
    }

    /// Appends bytes of a tensor.
    pub(super) fn spool(&mut self, data: &[u8]) -> Result<(), QuantizeError> {
        let appended = self.spool.append(data).map(|_| ());
        appended.map_err(QuantizeError::Spool)
    }

    /// Makes a tensor of all that was spooled since.
    pub(super) fn keep_spooled(
        &mut self,
        wanted: &str,
        data_type: DataType,
        dims: Vec<i64>,
        start: usize,
    ) -> Stored {
        self.list(wanted, data_type, dims, start..self.spool.len())
    }

    /// Quantizes a matrix, unless it was before.
    pub(super) fn quantize(
        &mut self,
        quantizer: &dyn Quantizer,
        candidate: &Candidate<'_>,
        code: Code,
        statistics: Option<&Statistics>,
    ) -> Result<QuantizedTensors, QuantizeError> {
        let rows = &candidate.rows;
        // Rows of whole blocks are packed alike for both uses.
        let ragged_lookup = candidate.use_of.is_lookup() && !rows.columns().is_multiple_of(BLOCK);
        let graph = candidate.place.graph;
        let made = (graph, rows.identity(), code.bits(), ragged_lookup);
        if let Some(tensors) = self.made.get(&made) {
            return Ok(tensors.clone());
        }
        let tensors = self.quantize_anew(quantizer, candidate, code, statistics)?;
        rows.release(0..rows.rows());
        self.made.insert(made, tensors.clone());
        Ok(tensors)
    }

    fn quantize_anew(
        &mut self,
        quantizer: &dyn Quantizer,
        Candidate { rows, use_of, .. }: &Candidate<'_>,
        code: Code,
        statistics: Option<&Statistics>,
    ) -> Result<QuantizedTensors, QuantizeError> {
        let (count, columns) = (rows.rows(), rows.columns());
        let blocks = columns.div_ceil(BLOCK);
        let data_type = rows.matrix.data_type();
        let grid = if data_type == DataType::Bfloat16 {
            ScaleGrid::Bf16
        } else {
            ScaleGrid::F16
        };
        let target = Target { code, grid };
        let quantizer = match on_lattice(rows)? {
            Some(_) => &KeepLattice,
            None => quantizer,
        };
        let (mut quantized, mut reached) = quantize_in_reach(quantizer, rows, statistics, target)?;
        let is_coarse = |scale: &f32| *scale != 0.0 && scale.abs() < COARSE_SCALE;
        if reached.grid != ScaleGrid::F32 && quantized.scales.iter().any(is_coarse) {
            reached = target.with_wide_scales();
            quantized = quantizer.quantize(rows, statistics, reached)?;
        }
        let scale_type = match (reached.grid, data_type) {
            (ScaleGrid::F16 | ScaleGrid::Bf16, DataType::Float16 | DataType::Bfloat16) => data_type,
            _ => DataType::Float,
        };
        let pack = |panel: Range<usize>| {
            let mut values = vec![0.0; panel.len() * columns];
            rows.read(panel.clone(), &mut values)?;
            rows.release(panel.clone());
            let (integers, scales) = quantized.rows(panel, columns);
            let mut packed = Panel::default();
            for ((values, row), row_scales) in values
                .chunks(columns)
                .zip(integers.chunks(columns))
                .zip(scales.chunks(blocks))
            {
                match use_of {
                    Use::Product { .. } => pack_matmul_row(row, code, &mut packed.integers),
                    Use::Lookup => pack_gather_row(row, code, &mut packed.integers),
                }
                packed.measure(values, row, row_scales);
                append_scales(row_scales, scale_type, &mut packed.scales);
            }
            Ok::<_, QuantizeError>(packed)
        };
        // Integers go to the disk as they come; what else there is of a matrix is small.
        let start = self.spool.len();
        let mut hasher = blake3::Hasher::new();
        let mut rest = Panel::default();
        let take = |mut panel: Panel| {
            let integers = std::mem::take(&mut panel.integers);
            hasher.update(&integers);
            self.spool.append(&integers).map_err(QuantizeError::Spool)?;
            rest.extend(panel);
            Ok(())
        };
        each_panel(count, pack, take, &mut |_| ())?;
        let integers = start..self.spool.len();
        let name = format!("{}_Q{}", rows.matrix.name(), code.bits());
        let dims = match use_of {
            Use::Product { .. } => vec![
                count as i64,
                blocks as i64,
                (BLOCK * code.bits() / 8) as i64,
            ],
            Use::Lookup => vec![count as i64, (columns * code.bits() / 8) as i64],
        };
        Ok(QuantizedTensors {
            integers: self.keep(&name, DataType::Uint8, dims, hasher.finalize(), integers),
            scales: self.add(
                &format!("{name}_scales"),
                scale_type,
                vec![count as i64, blocks as i64],
                &rest.scales,
            )?,
            scale_type,
            relative_error: rest.relative_error(),
        })
    }

    /// The messages of all that was added.
    pub(super) fn finish(self) -> Result<Vec<TensorProto>, QuantizeError> {
        let data = self.spool.finish().map_err(QuantizeError::Spool)?;
        let tensors = self.tensors.into_iter().map(|tensor| TensorProto {
            name: Some(tensor.name),
            dims: tensor.dims,
            data_type: Some(tensor.data_type as i32),
            raw_data: Some(data.slice(tensor.range)),
            ..TensorProto::default()
        });
        Ok(tensors.collect())
    }
}

/// Packed rows.
#[derive(Default)]
struct Panel {
    integers: Vec<u8>,
    scales: Vec<u8>,
    /// Sums of squares: of the errors, and of the weights.
    error: f64,
    power: f64,
}

impl Panel {
    fn measure(&mut self, values: &[f32], integers: &[i8], scales: &[f32]) {
        for (column, (&value, &integer)) in values.iter().zip(integers).enumerate() {
            let difference =
                f64::from(value) - f64::from(integer) * f64::from(scales[column / BLOCK]);
            self.error += difference * difference;
            self.power += f64::from(value) * f64::from(value);
        }
    }

    /// Adds scales and sums.
    fn extend(&mut self, next: Panel) {
        self.scales.extend(next.scales);
        self.error += next.error;
        self.power += next.power;
    }

    fn relative_error(&self) -> f64 {
        if self.power > 0.0 {
            (self.error / self.power).sqrt()
        } else {
            0.0
        }
    }
}

fn append_scales(scales: &[f32], data_type: DataType, out: &mut Vec<u8>) {
    match data_type {
        DataType::Float16 => out.extend(
            scales
                .iter()
                .flat_map(|&scale| f16::from_f32(scale).to_le_bytes()),
        ),
        DataType::Bfloat16 => out.extend(
            scales
                .iter()
                .flat_map(|&scale| bf16::from_f32(scale).to_le_bytes()),
        ),
        _ => out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes())),
    }
}
