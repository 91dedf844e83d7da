//! What happens to which matrix.

mod kind;

pub use kind::{MatrixKind, kinds};
