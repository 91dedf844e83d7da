//! Which weights an operator reads: said here and nowhere else.

use super::{Levels, MatrixId, Op, VectorId};

/// A weight of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightId {
    /// A packed matrix.
    Matrix(MatrixId),
    /// A vector.
    Vector(VectorId),
}

/// A weight of an operator, to be replaced by another.
#[derive(Debug, PartialEq, Eq)]
pub enum WeightMut<'a> {
    /// A packed matrix.
    Matrix(&'a mut MatrixId),
    /// A vector.
    Vector(&'a mut VectorId),
}

impl Op {
    /// The weights that the operator reads, each as often as it reads it.
    ///
    /// ```
    /// use niwaki_bundle::graph::{Op, WeightId};
    ///
    /// let linear = Op::Linear { weight: 7, bias: Some(2) };
    /// assert_eq!(linear.weights(), [WeightId::Matrix(7), WeightId::Vector(2)]);
    /// ```
    pub fn weights(&self) -> Vec<WeightId> {
        // One list serves reading and replacing: a weight cannot be in one and not in the other.
        let mut op = self.clone();
        let weights = op.weights_mut().into_iter();
        weights
            .map(|weight| match weight {
                WeightMut::Matrix(id) => WeightId::Matrix(*id),
                WeightMut::Vector(id) => WeightId::Vector(*id),
            })
            .collect()
    }

    /// The same, to be replaced.
    pub fn weights_mut(&mut self) -> Vec<WeightMut<'_>> {
        use WeightMut::{Matrix, Vector};
        let optional = |id| Option::map(id, Vector);
        match self {
            Op::Embed { table, .. } | Op::PositionEmbed { table, .. } => vec![Matrix(table)],
            Op::Linear { weight, bias } => [Some(Matrix(weight)), optional(bias.as_mut())]
                .into_iter()
                .flatten()
                .collect(),
            Op::Norm { weight, bias, .. } => [optional(weight.as_mut()), optional(bias.as_mut())]
                .into_iter()
                .flatten()
                .collect(),
            Op::Round { levels } => match levels {
                Levels::Dynamic => vec![],
                Levels::Static { scale, .. } => vec![Vector(scale)],
            },
            Op::Rows { .. }
            | Op::Rope { .. }
            | Op::Attention { .. }
            | Op::Gate { .. }
            | Op::Activate { .. }
            | Op::Add { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::LastRows
            | Op::Pool { .. } => vec![],
        }
    }

    /// The matrices that the operator reads.
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> {
        self.weights()
            .into_iter()
            .filter_map(|weight| match weight {
                WeightId::Matrix(id) => Some(id),
                WeightId::Vector(_) => None,
            })
    }
}
