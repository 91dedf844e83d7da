//! What the operators of one run share while rows pass through them.

use super::profile::Profile;
use super::value_pool::ValuePool;
use crate::cancellation::Cancellation;
use crate::kv::KvCache;
use niwaki_bundle::graph::{Columns, Graph, RopeTable, RowSet};
use niwaki_kernels::{AttentionScratch, QuantizedRows, RopeTables, rope_angles};
use std::ops::Range;

/// The sequences of a run, and what is computed once per run and not once per operator.
pub(crate) struct Turn {
    /// The sequences of the run, in the order of their rows.
    pub(crate) sequences: Vec<Sequence>,
    /// The input of the last quantized matrix product: the next one often reads the same.
    pub(crate) quantized: QuantizedRows,
    /// Which columns those are, if they are of this run, and how many of their blocks have second terms.
    pub(crate) quantized_input: Option<(Columns, usize)>,
    /// Chunks of the attention at hand.
    pub(crate) attention: AttentionScratch,
    pub(crate) values: ValuePool,
    /// Filled while it is there.
    pub(crate) profile: Option<Profile>,
    /// What can stop the run before its next operator.
    pub(crate) cancellation: Option<Cancellation>,
    angles: Vec<Angles>,
}

/// One sequence's part of a run.
pub(crate) struct Sequence {
    pub(crate) cache: KvCache,
    /// Its rows among those of all tokens of the run.
    pub(crate) rows: Range<usize>,
    /// Results are wanted of this many rows, the last ones.
    pub(crate) wanted: usize,
}

impl Sequence {
    /// How many rows of a value are its.
    pub(crate) fn count(&self, rows: RowSet) -> usize {
        match rows {
            RowSet::Tokens => self.rows.len(),
            RowSet::Wanted => self.wanted,
            RowSet::Sequences => 1,
        }
    }
}

/// Numbers of rows in a run, by the kind of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) tokens: usize,
    pub(crate) wanted: usize,
    pub(crate) sequences: usize,
}

impl Rows {
    pub(crate) fn of(&self, rows: RowSet) -> usize {
        match rows {
            RowSet::Tokens => self.tokens,
            RowSet::Wanted => self.wanted,
            RowSet::Sequences => self.sequences,
        }
    }
}

/// Cosines and sines of one rotary table, `[tokens, pairs]`.
struct Angles {
    pairs: usize,
    tokens: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turn {
    pub(super) fn new(graph: &Graph, values: ValuePool) -> Turn {
        let angles = graph
            .ropes
            .iter()
            .map(|rope| Angles {
                pairs: rope.inverse_frequencies.len(),
                tokens: 0,
                cos: Vec::new(),
                sin: Vec::new(),
            })
            .collect();
        Turn {
            sequences: Vec::new(),
            quantized: QuantizedRows::new(),
            quantized_input: None,
            attention: AttentionScratch::new(),
            values,
            profile: None,
            cancellation: None,
            angles,
        }
    }

    /// Prepares a run of the sequences that are there, each after the positions in its cache.
    pub(super) fn begin(&mut self, ropes: &[RopeTable]) -> Result<(), super::ModelError> {
        self.quantized_input = None;
        let rows = self.rows();
        self.values.prepare(rows)?;
        for (angles, rope) in self.angles.iter_mut().zip(ropes) {
            angles.compute(rope, &self.sequences, rows.tokens);
        }
        Ok(())
    }

    /// How many rows this run has.
    pub(crate) fn rows(&self) -> Rows {
        Rows {
            tokens: self.sequences.last().map_or(0, |last| last.rows.end),
            wanted: self.sequences.iter().map(|sequence| sequence.wanted).sum(),
            sequences: self.sequences.len(),
        }
    }

    /// Each sequence's rows among those of a value.
    pub(super) fn ranges(&self, rows: RowSet) -> impl Iterator<Item = Range<usize>> {
        let mut first = 0;
        self.sequences.iter().map(move |sequence| {
            let range = first..first + sequence.count(rows);
            first = range.end;
            range
        })
    }

    /// The angles of one rotary table at the positions of this run.
    pub(super) fn rope(&self, table: usize) -> Option<RopeTables<'_>> {
        let angles = self.angles.get(table)?;
        let rows = |values| niwaki_kernels::Rows::contiguous(values, angles.tokens, angles.pairs);
        Some(RopeTables {
            cos: rows(&angles.cos),
            sin: rows(&angles.sin),
        })
    }
}

impl Angles {
    fn compute(&mut self, rope: &RopeTable, sequences: &[Sequence], tokens: usize) {
        self.tokens = tokens;
        self.cos.resize(tokens * self.pairs, 0.0);
        self.sin.resize(tokens * self.pairs, 0.0);
        let positions = sequences.iter().flat_map(|sequence| {
            let first = sequence.cache.len();
            first..first + sequence.rows.len()
        });
        let rows = self
            .cos
            .chunks_mut(self.pairs)
            .zip(self.sin.chunks_mut(self.pairs));
        for (position, (cos, sin)) in positions.zip(rows) {
            rope_angles(
                position,
                &rope.inverse_frequencies,
                rope.magnitude,
                cos,
                sin,
            );
        }
    }
}
