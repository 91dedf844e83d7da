//! How strongly each input of each projection is driven, when all before it is pruned.

use super::PruneError;
use super::selection::{Pattern, prune_rows};
use crate::calibrate::{Calibration, Follow, Pass, Replacements, SquareSums};
use crate::lower::{Lowered, Matrix};
use crate::onnx::FloatRows;
use crate::onnx::OnnxError;
use crate::plan::kinds;
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The projections inside the layers: the ONNX nodes that each matrix comes from.
pub(super) struct Projections<'a> {
    lowered: &'a Lowered,
    nodes: BTreeMap<MatrixId, Vec<String>>,
}

/// What the weights of a projection count by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Importance {
    /// Their magnitude.
    Magnitude,
    /// Their magnitude times the norm of the column that they meet.
    Driven(Vec<f32>),
    /// A text was given, and nothing could be measured of this projection.
    Unknown,
}

/// What weights count by, by the ONNX node.
pub(super) type Importances = BTreeMap<String, Importance>;

impl<'a> Projections<'a> {
    pub(super) fn of(lowered: &'a Lowered) -> Projections<'a> {
        let kinds = kinds(&lowered.graph);
        let mut nodes: BTreeMap<MatrixId, Vec<String>> = BTreeMap::new();
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
            let names = nodes.entry(weight).or_default();
            match lowered.parts.matrices[weight].origins.as_slice() {
                [] => names.push(node.name.clone()),
                origins => names.extend(origins.iter().map(|origin| origin.node.clone())),
            }
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
    pub(super) fn names(&self, matrix: MatrixId) -> &[String] {
        &self.nodes[&matrix]
    }

    /// All of them by magnitude.
    pub(super) fn by_magnitude(&self) -> Importances {
        self.all(Importance::Magnitude)
    }

    fn all(&self, importance: Importance) -> Importances {
        let names = self.nodes.values().flatten();
        names
            .map(|name| (name.clone(), importance.clone()))
            .collect()
    }

    /// Feeds the text through layer by layer; each is pruned by what was measured of it before it feeds the next.
    pub(super) fn measure(
        &self,
        calibration: Calibration<'_>,
        pattern: Pattern,
        progress: &mut (dyn FnMut(f64) + Send),
    ) -> Result<Importances, PruneError> {
        let matrices = &self.lowered.parts.matrices;
        let floats: BTreeSet<MatrixId> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| !matrices[*id].is_quantized())
            .collect();
        let mut importances = self.all(Importance::Unknown);
        let pass = Pass {
            lowered: self.lowered,
            calibration,
            matrices: &floats,
            follow: Follow::ReplacedMatrices,
        };
        pass.run(
            |input| Ok::<_, PruneError>(SquareSums::new(input.columns)),
            |seen| {
                let mut pruned = Replacements::new();
                for (input, sums) in seen {
                    let norms = sums.norms();
                    for name in &self.nodes[&input.matrix] {
                        importances.insert(name.clone(), Importance::Driven(norms.clone()));
                    }
                    let matrix = Pruned {
                        matrix: &matrices[input.matrix],
                        norms,
                        pattern,
                    };
                    pruned.insert(input.matrix, Box::new(matrix));
                }
                Ok(pruned)
            },
            progress,
        )?;
        Ok(importances)
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
