//! Reading, evaluating and writing ONNX models.
//!
//! - `proto`: the protobuf messages; `node` adds readers of attributes to them
//! - `model`, `tensor`, `external`: a model on disk and its tensors, mapped and never copied
//! - `float_rows`: float matrices read in runs of rows; `constant_matrix`: the one behind a node's input
//! - `scopes`: the graphs of a model, bodies too, and what names stand for in each
//! - `order`, `unused`, `functions`: sorted nodes, those that nothing reads dropped, and model-local functions inlined
//! - `evaluate`: one node on given values, through tract
//! - `write`: a model back to disk; `spool`: tensors that are made meanwhile

mod constant_matrix;
mod error;
mod evaluate;
mod external;
mod float_rows;
mod functions;
mod map;
mod model;
mod node;
mod order;
#[allow(missing_docs, unreachable_pub, clippy::all)]
#[rustfmt::skip]
pub mod proto;
mod scopes;
#[cfg(test)]
pub(crate) mod small_models;
mod spool;
mod stored;
mod tensor;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod unused;
mod write;

pub(crate) use constant_matrix::{
    ChannelRows, Definition, Matrix, MatrixShape, Producers, is_float,
};
pub use error::OnnxError;
pub use evaluate::evaluate_node;
pub use float_rows::{FloatRows, Floats};
pub use map::{map_file, release, release_all};
pub use model::OnnxModel;
pub use order::{sorted_nodes, used_names};
pub use proto::tensor_proto::DataType;
pub(crate) use scopes::{MovedConstant, Names, Place, Scopes, change_graphs, count_graphs, moves};
pub(crate) use spool::Spool;
pub(crate) use stored::for_each_stored;
pub use tensor::{TensorView, element_bits};
pub(crate) use unused::drop_unused;
pub use write::{WeightLocation, write_model};
