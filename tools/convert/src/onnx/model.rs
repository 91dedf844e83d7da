//! An ONNX model on disk: the decoded protobuf, and its tensors where they lie.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{
    OnnxError,
    external::ExternalFiles,
    functions,
    map::map_file,
    order,
    proto::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation},
    tensor::{Declared, TensorView, inline_bytes},
};

/// A decoded model. Tensor data is not copied: it stays in the mapped file and in the external files beside it, which
/// are mapped when first used and must not be changed meanwhile.
#[derive(Debug)]
pub struct OnnxModel {
    proto: ModelProto,
    files: Arc<ExternalFiles>,
    /// Index of each initializer of the main graph.
    initializers: HashMap<String, usize>,
}

impl OnnxModel {
    /// Maps and decodes the model file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is no ONNX protobuf, has no graph, or names two initializers alike. Tensors are
    /// checked when they are asked for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        let path = path.as_ref();
        let bytes = map_file(path).map_err(|source| OnnxError::Read {
            path: path.to_owned(),
            source,
        })?;
        let files = ExternalFiles::beside(path)?;
        Self::decode(path, bytes, files)
    }

    /// Decodes a model that is in memory; it can have no external data.
    ///
    /// # Errors
    /// As for [`OnnxModel::open`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, OnnxError> {
        Self::decode(
            Path::new("the model in memory"),
            bytes.into(),
            ExternalFiles::default(),
        )
    }

    fn decode(path: &Path, bytes: Bytes, files: ExternalFiles) -> Result<Self, OnnxError> {
        let proto = ModelProto::decode(bytes).map_err(|source| OnnxError::Decode {
            path: path.to_owned(),
            source,
        })?;
        Self::checked(proto, Arc::new(files))
    }

    /// A model made from this one: `proto` may refer to the same external data.
    ///
    /// # Errors
    /// When `proto` has no graph, or names two initializers alike.
    pub fn derive(&self, proto: ModelProto) -> Result<Self, OnnxError> {
        Self::checked(proto, Arc::clone(&self.files))
    }

    fn checked(proto: ModelProto, files: Arc<ExternalFiles>) -> Result<Self, OnnxError> {
        let graph = proto
            .graph
            .as_ref()
            .ok_or_else(|| OnnxError::Model("it holds no graph".to_owned()))?;
        let initializers = index_initializers(graph)?;
        Ok(Self {
            proto,
            files,
            initializers,
        })
    }

    /// The whole message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        // Opening refuses models without a graph.
        static EMPTY: std::sync::LazyLock<GraphProto> =
            std::sync::LazyLock::new(GraphProto::default);
        self.proto.graph.as_ref().unwrap_or(&EMPTY)
    }

    /// The version of an operator set that the model imports. The standard's own domain is `""`.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        opset(&self.proto, domain)
    }

    /// The initializer `name` of the main graph; `None` when there is none of that name.
    ///
    /// # Errors
    /// When the tensor is malformed, of an unsupported type, or its external data is missing, outside the model's
    /// folder, or not as long as type and dimensions say.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView>, OnnxError> {
        self.initializer(name)
            .map(|tensor| self.view(tensor))
            .transpose()
    }

    /// The message of an initializer of the main graph.
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.graph().initializer.get(*self.initializers.get(name)?)
    }

    /// The files beside the model that hold tensors of its graph, each once.
    ///
    /// # Errors
    /// When one lies outside the model's folder or is not there.
    pub fn external_files(&self) -> Result<Vec<PathBuf>, OnnxError> {
        let constants = self.graph().node.iter().filter(|node| node.is("Constant"));
        let constants =
            constants.flat_map(|node| node.attribute.iter().filter_map(|a| a.t.as_ref()));
        self.files
            .paths(self.graph().initializer.iter().chain(constants))
    }

    /// The elements of any tensor of this model: an initializer, of a subgraph too, or an attribute such as the value of
    /// a `Constant`.
    ///
    /// # Errors
    /// As for [`OnnxModel::tensor`].
    pub fn view(&self, tensor: &TensorProto) -> Result<TensorView, OnnxError> {
        let declared = Declared::of(tensor)?;
        let data = match DataLocation::try_from(tensor.data_location.unwrap_or(0)) {
            Ok(DataLocation::Default) => inline_bytes(tensor, &declared)?,
            Ok(DataLocation::External) => self.files.read(tensor, declared.size_bytes)?,
            Err(_) => {
                return Err(OnnxError::tensor(
                    tensor.name(),
                    "its data location is neither inline nor external",
                ));
            }
        };
        TensorView::new(tensor.name(), declared, data)
    }

    /// The main graph's nodes, each after those whose results it uses.
    ///
    /// # Errors
    /// When nodes form a cycle, or one value is computed twice.
    pub fn sorted_nodes(&self) -> Result<Vec<&NodeProto>, OnnxError> {
        order::sorted_nodes(self.graph())
    }

    /// Replaces every call of a function that the model defines itself by the function's nodes.
    ///
    /// # Errors
    /// When functions call each other in a circle, expand to an absurd size, are called with more arguments than they
    /// have, or are written for another version of an operator set than the model imports.
    pub fn inline_functions(&mut self) -> Result<(), OnnxError> {
        functions::inline_functions(&mut self.proto)
    }
}

/// The version of an operator set that a model imports; `""` and `ai.onnx` are the same domain.
pub(super) fn opset(proto: &ModelProto, domain: &str) -> Option<i64> {
    let canonical = |domain: &str| {
        if domain == "ai.onnx" {
            String::new()
        } else {
            domain.to_owned()
        }
    };
    let wanted = canonical(domain);
    proto
        .opset_import
        .iter()
        .find(|import| canonical(import.domain()) == wanted)
        .map(|import| import.version())
}

fn index_initializers(graph: &GraphProto) -> Result<HashMap<String, usize>, OnnxError> {
    if let Some(sparse) = graph.sparse_initializer.first() {
        let name = sparse.values.as_ref().map_or("", |values| values.name());
        return Err(OnnxError::tensor(
            name,
            "sparse initializers are not supported; export the model with dense ones",
        ));
    }
    let mut initializers = HashMap::with_capacity(graph.initializer.len());
    for (index, tensor) in graph.initializer.iter().enumerate() {
        match initializers.entry(tensor.name().to_owned()) {
            Entry::Vacant(vacant) => vacant.insert(index),
            Entry::Occupied(_) => {
                return Err(OnnxError::tensor(
                    tensor.name(),
                    "two initializers have this name",
                ));
            }
        };
    }
    Ok(initializers)
}
