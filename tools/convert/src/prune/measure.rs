//! What is measured of each projection's input, when all before it is pruned, and what follows for its weights.

use super::error_feedback::{DAMPING, Feedback};
use super::selection::{Pattern, prune_rows};
use super::{Method, PruneError};
use crate::calibrate::{
    Calibration, Follow, Gram, MatrixInput, Observer, Origin, Pass, Replacements, SquareSums,
};
use crate::cholesky::Cholesky;
use crate::lower::{Lowered, Matrix};
use crate::onnx::{ChannelRows, DataType, FloatRows, OnnxError, Spool};
use crate::plan::kinds;
use bytes::Bytes;
use half::{bf16, f16};
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The projections inside the layers: the ONNX nodes that each matrix comes from.
pub(super) struct Projections<'a> {
    lowered: &'a Lowered,
    nodes: BTreeMap<MatrixId, Vec<Origin>>,
}

/// What becomes of a projection's weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Those of the least magnitude become zero.
    Magnitude,
    /// Those of the least magnitude times the norm of the column that they meet become zero.
    Driven(Vec<f32>),
    /// They become these.
    Updated(UpdatedRows),
    /// They are left: a text was given, and this is why it does not tell.
    Unknown(&'static str),
}

/// New weights of a projection, on disk.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UpdatedRows {
    name: String,
    columns: usize,
    /// Row-major `f32`s.
    bytes: Bytes,
}

/// The tensors that the projections multiply by, by their nodes.
pub(super) type StoredRows<'a> = BTreeMap<&'a str, &'a ChannelRows>;

const NOT_MEASURED: &str = "what it is multiplied with was not measured";
const OTHER_ROWS: &str = "the graph multiplies by other weights than it stores";

impl<'a> Projections<'a> {
    pub(super) fn of(lowered: &'a Lowered) -> Projections<'a> {
        let kinds = kinds(&lowered.graph);
        let mut nodes: BTreeMap<MatrixId, Vec<Origin>> = BTreeMap::new();
        for node in &lowered.graph.nodes {
            let Op::Linear { weight, .. } = node.op else {
                continue;
            };
            if !kinds
                .get(&weight)
                .is_some_and(|kind| kind.is_inside_layers())
            {
                continue;
            }
            let origins = Origin::of(&node.name, &lowered.parts.matrices[weight]);
            nodes.entry(weight).or_default().extend(origins);
        }
        Projections { lowered, nodes }
    }

    /// The matrices.
    #[cfg(test)]
    pub(super) fn matrices(&self) -> BTreeSet<MatrixId> {
        self.nodes.keys().copied().collect()
    }

    /// The ONNX nodes that a matrix comes from.
    #[cfg(test)]
    pub(super) fn names(&self, matrix: MatrixId) -> impl Iterator<Item = &str> {
        self.nodes[&matrix]
            .iter()
            .map(|origin| origin.node.as_str())
    }

    /// The same for all of them.
    pub(super) fn all(&self, verdict: &Verdict) -> BTreeMap<String, Verdict> {
        let origins = self.nodes.values().flatten();
        origins
            .map(|origin| (origin.node.clone(), verdict.clone()))
            .collect()
    }

    /// Feeds the text through layer by layer; each is pruned by what was measured of it before it feeds the next.
    pub(super) fn measure(
        &self,
        calibration: Calibration<'_>,
        pattern: Pattern,
        method: Method,
        stored: &StoredRows<'_>,
        progress: &mut (dyn FnMut(f64) + Send),
    ) -> Result<BTreeMap<String, Verdict>, PruneError> {
        let matrices = &self.lowered.parts.matrices;
        let floats: BTreeSet<MatrixId> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| !matrices[*id].is_quantized())
            .collect();
        let mut verdicts = self.all(&Verdict::Unknown(NOT_MEASURED));
        let pass = Pass {
            lowered: self.lowered,
            calibration,
            matrices: &floats,
            follow: Follow::ReplacedMatrices,
        };
        let mut prune = |input: MatrixInput, measured: Measured| {
            let matrix = &matrices[input.matrix];
            let origins = &self.nodes[&input.matrix];
            let new: Box<dyn FloatRows> = match measured {
                Measured::SquareSums(sums) => {
                    let norms = sums.norms();
                    for origin in origins {
                        verdicts.insert(origin.node.clone(), Verdict::Driven(norms.clone()));
                    }
                    Box::new(Pruned {
                        matrix,
                        norms,
                        pattern,
                    })
                }
                Measured::Gram(gram) => {
                    let Some(factor) = factor(&gram) else {
                        return Err(PruneError::NotPositive {
                            matrix: matrix.name.clone(),
                        });
                    };
                    drop(gram);
                    let feedback = Feedback::of(&factor);
                    let mut parts = vec![];
                    for origin in origins {
                        let part = updated(matrix, origin, &feedback, pattern, stored)?;
                        let verdict = match &part {
                            Some(rows) => Verdict::Updated(rows.clone()),
                            None => Verdict::Unknown(OTHER_ROWS),
                        };
                        verdicts.insert(origin.node.clone(), verdict);
                        parts.extend(part.map(|rows| (origin.rows.clone(), rows)));
                    }
                    Box::new(Patched { matrix, parts })
                }
            };
            Ok(new)
        };
        pass.run(
            |input| Measured::wanted(method, input),
            |seen| {
                let mut pruned = Replacements::new();
                for (input, measured) in seen {
                    pruned.insert(input.matrix, prune(input, measured)?);
                }
                Ok(pruned)
            },
            progress,
        )?;
        Ok(verdicts)
    }
}

/// What a method wants to know of a projection's input.
enum Measured {
    SquareSums(SquareSums),
    Gram(Box<Gram>),
}

impl Measured {
    fn wanted(method: Method, input: MatrixInput) -> Result<Measured, PruneError> {
        Ok(match method {
            Method::Magnitude | Method::Wanda => {
                Measured::SquareSums(SquareSums::new(input.columns))
            }
            Method::SparseGpt => Measured::Gram(Box::new(Gram::new(input.columns)?)),
        })
    }
}

impl Observer for Measured {
    fn observe(&mut self, rows: &[f32]) {
        match self {
            Measured::SquareSums(sums) => sums.observe(rows),
            Measured::Gram(gram) => gram.observe(rows),
        }
    }

    fn finish(&mut self) {
        match self {
            Measured::SquareSums(sums) => sums.finish(),
            Measured::Gram(gram) => gram.finish(),
        }
    }
}

/// The triangle of a Gram matrix, damped.
fn factor(gram: &Gram) -> Option<Cholesky> {
    let order = gram.columns();
    let trace: f64 = (0..order).map(|column| gram.at(column, column)).sum();
    let damping = DAMPING * trace / order.max(1) as f64;
    // What is never active at all can be anything.
    let damping = if damping > 0.0 { damping } else { 1.0 };
    let mut matrix = vec![0.0; order * order];
    for row in 0..order {
        for column in 0..=row {
            matrix[row * order + column] = gram.at(row, column);
        }
        matrix[row * order + row] += damping;
    }
    Cholesky::of(matrix, order)
}

/// The new weights of a node; `None` where the graph does not multiply by the rows that it stores.
fn updated(
    matrix: &Matrix,
    origin: &Origin,
    feedback: &Feedback,
    pattern: Pattern,
    stored: &StoredRows<'_>,
) -> Result<Option<UpdatedRows>, PruneError> {
    let Some(stored) = stored.get(origin.node.as_str()) else {
        return Ok(None);
    };
    let columns = matrix.cols();
    if (stored.rows(), stored.columns()) != (origin.rows.len(), columns) {
        return Ok(None);
    }
    let mut values = vec![0.0; origin.rows.len() * columns];
    let mut same = values.clone();
    matrix.read(origin.rows.clone(), &mut values)?;
    matrix.release(origin.rows.clone());
    stored.read(0..origin.rows.len(), &mut same)?;
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    if bits(&values) != bits(&same) {
        return Ok(None);
    }
    drop(same);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(PruneError::NotFinite {
            matrix: stored.matrix.name().to_owned(),
            row: at / columns.max(1),
        });
    }
    feedback.prune(&mut values, pattern);
    // What follows meets what is stored.
    round(&mut values, stored.matrix.stored().data_type);
    let rows = UpdatedRows::of(stored.matrix.name(), columns, &values)?;
    Ok(Some(rows))
}

impl UpdatedRows {
    /// Writes row-major weights to the disk.
    pub(super) fn of(
        name: &str,
        columns: usize,
        values: &[f32],
    ) -> Result<UpdatedRows, PruneError> {
        let mut spool = Spool::new().map_err(PruneError::Spool)?;
        for row in values.chunks(columns.max(1)) {
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
            spool.append(&bytes).map_err(PruneError::Spool)?;
        }
        Ok(UpdatedRows {
            name: name.to_owned(),
            columns,
            bytes: spool.finish().map_err(PruneError::Spool)?,
        })
    }
}

/// Rounds to what a type holds.
pub(super) fn round(values: &mut [f32], data_type: DataType) {
    match data_type {
        DataType::Float16 => values
            .iter_mut()
            .for_each(|value| *value = f16::from_f32(*value).to_f32()),
        DataType::Bfloat16 => values
            .iter_mut()
            .for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        _ => {}
    }
}

impl FloatRows for UpdatedRows {
    fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.bytes.len() / 4 / self.columns.max(1)
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        let bytes = &self.bytes[4 * range.start * self.columns..4 * range.end * self.columns];
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        crate::onnx::release(
            &self.bytes[4 * range.start * self.columns..4 * range.end * self.columns],
        );
    }
}

/// A matrix of which some rows are others.
struct Patched<'a> {
    matrix: &'a Matrix,
    parts: Vec<(Range<usize>, UpdatedRows)>,
}

impl FloatRows for Patched<'_> {
    fn name(&self) -> &str {
        &self.matrix.name
    }

    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    fn columns(&self) -> usize {
        self.matrix.cols()
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        self.matrix.read(range.clone(), out)?;
        let columns = self.columns();
        for (rows, part) in &self.parts {
            let (start, end) = (rows.start.max(range.start), rows.end.min(range.end));
            if start < end {
                let out = &mut out[(start - range.start) * columns..(end - range.start) * columns];
                part.read(start - rows.start..end - rows.start, out)?;
            }
        }
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        self.matrix.release(range);
    }
}

/// A matrix as Wanda leaves it.
struct Pruned<'a> {
    matrix: &'a Matrix,
    norms: Vec<f32>,
    pattern: Pattern,
}

impl FloatRows for Pruned<'_> {
    fn name(&self) -> &str {
        &self.matrix.name
    }

    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    fn columns(&self) -> usize {
        self.matrix.cols()
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), OnnxError> {
        self.matrix.read(range, out)?;
        prune_rows(out, &self.norms, self.pattern);
        Ok(())
    }

    fn release(&self, range: Range<usize>) {
        self.matrix.release(range);
    }
}
