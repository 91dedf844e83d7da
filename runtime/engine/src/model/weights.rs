//! What the operators ask for weights.

use niwaki_bundle::Bundle;
use niwaki_bundle::graph::{MatrixId, VectorId};
use niwaki_kernels::Matrix;
use std::sync::Arc;

/// The weights of a model: those of its bundle. Cloning it copies none of them.
///
/// Operators ask here and not the bundle, so that what lies over a matrix (an adapter) has one place to come in.
#[derive(Clone)]
pub(crate) struct Weights {
    bundle: Arc<Bundle>,
}

impl Weights {
    pub(crate) fn new(bundle: Arc<Bundle>) -> Weights {
        Weights { bundle }
    }

    /// A packed matrix.
    pub(crate) fn matrix(&self, id: MatrixId) -> Option<Matrix<'_>> {
        self.bundle.matrix(id)
    }

    /// A vector.
    pub(crate) fn vector(&self, id: VectorId) -> Option<&[f32]> {
        self.bundle.vector(id)
    }

    /// Whether products with the matrix take quantized activations.
    pub(crate) fn is_quantized(&self, id: MatrixId) -> bool {
        self.matrix(id)
            .is_some_and(|matrix| matrix.format().is_quantized())
    }

    /// Whether both are the same, without a look at any of them.
    pub(crate) fn same(&self, other: &Weights) -> bool {
        Arc::ptr_eq(&self.bundle, &other.bundle)
    }
}
