//! What can go wrong with an ONNX file.

use std::{io, path::PathBuf};

/// Why an ONNX model could not be read, evaluated or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// A file could not be opened or mapped.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not a well-formed ONNX protobuf.
    #[error("{} is not a readable ONNX model: it is damaged, cut short or of another format", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where the protobuf decoder stopped.
        #[source]
        source: prost::DecodeError,
    },
    /// The protobuf is well formed, but the model in it is not.
    #[error("the ONNX model is malformed: {0}")]
    Model(String),
    /// One tensor is malformed or of a kind that is not supported.
    #[error("tensor {tensor:?}: {reason}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's external data cannot be used.
    #[error("tensor {tensor:?}: its external data at {location:?} {reason}")]
    ExternalData {
        /// The tensor's name.
        tensor: String,
        /// The location as the model gives it.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A node cannot be evaluated on the values given.
    #[error("node {node}: {reason}")]
    Node {
        /// The node's operator and name.
        node: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl OnnxError {
    pub(super) fn tensor(tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor {
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn external(tensor: &str, location: &str, reason: impl Into<String>) -> Self {
        Self::ExternalData {
            tensor: tensor.to_owned(),
            location: location.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn node(node: &super::proto::NodeProto, reason: impl Into<String>) -> Self {
        Self::Node {
            node: node.label(),
            reason: reason.into(),
        }
    }
}
