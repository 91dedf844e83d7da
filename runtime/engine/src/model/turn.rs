//! What the operators of one session share while a run of tokens passes through them.

use super::operator::ModelError;
use super::profile::Profile;
use super::value_pool::ValuePool;
use crate::engine::Cancellation;
use crate::kv::KvCache;
use niwaki_bundle::graph::{Columns, Graph, RopeTable};
use niwaki_kernels::{AttentionScratch, QuantizedRows, RopeTables, Rows, rope_angles};

/// The session's cache, and what is computed once per run and not once per operator.
pub(crate) struct Turn {
    pub(crate) cache: KvCache,
    /// Logits are wanted of this many rows, the last ones.
    pub(crate) wanted_rows: usize,
    /// The input of the last quantized matrix product: the next one often reads the same.
    pub(crate) quantized: QuantizedRows,
    /// Which columns those are, if they are of this run.
    pub(crate) quantized_columns: Option<Columns>,
    /// Chunks of the attention at hand.
    pub(crate) attention: AttentionScratch,
    pub(crate) values: ValuePool,
    /// Filled while it is there.
    pub(crate) profile: Option<Profile>,
    /// What can stop the run before its next operator.
    pub(crate) cancellation: Option<Cancellation>,
    angles: Vec<Angles>,
}

/// Cosines and sines of one rotary table, `[tokens, pairs]`.
struct Angles {
    pairs: usize,
    tokens: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turn {
    pub(super) fn new(graph: &Graph, cache: KvCache, values: ValuePool) -> Turn {
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
            cache,
            wanted_rows: 0,
            quantized: QuantizedRows::new(),
            quantized_columns: None,
            attention: AttentionScratch::new(),
            values,
            profile: None,
            cancellation: None,
            angles,
        }
    }

    /// Prepares a run of `tokens` tokens after those in the cache.
    pub(crate) fn begin(
        &mut self,
        ropes: &[RopeTable],
        tokens: usize,
        wanted_rows: usize,
    ) -> Result<(), ModelError> {
        self.wanted_rows = wanted_rows;
        self.quantized_columns = None;
        self.values.prepare(tokens, wanted_rows.min(tokens))?;
        let first = self.cache.len();
        for (angles, rope) in self.angles.iter_mut().zip(ropes) {
            angles.compute(rope, first, tokens);
        }
        Ok(())
    }

    /// The angles of one rotary table at the positions of this run.
    pub(crate) fn rope(&self, table: usize) -> Option<RopeTables<'_>> {
        let angles = self.angles.get(table)?;
        Some(RopeTables {
            cos: Rows::contiguous(&angles.cos, angles.tokens, angles.pairs),
            sin: Rows::contiguous(&angles.sin, angles.tokens, angles.pairs),
        })
    }
}

impl Angles {
    fn compute(&mut self, rope: &RopeTable, first: usize, tokens: usize) {
        self.tokens = tokens;
        self.cos.resize(tokens * self.pairs, 0.0);
        self.sin.resize(tokens * self.pairs, 0.0);
        let rows = self
            .cos
            .chunks_mut(self.pairs)
            .zip(self.sin.chunks_mut(self.pairs));
        for (row, (cos, sin)) in rows.enumerate() {
            rope_angles(
                first + row,
                &rope.inverse_frequencies,
                rope.magnitude,
                cos,
                sin,
            );
        }
    }
}
