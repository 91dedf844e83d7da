//! Writing a model: one file, or a small file with the weights beside it as external data.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::{
    Message,
    encoding::{self, WireType},
};
use tempfile::NamedTempFile;

use super::{
    OnnxError, OnnxModel,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
        tensor_proto::DataLocation,
    },
    spool::write_and_release,
};

/// External tensors begin at multiples of this, so that readers can map each by itself.
const ALIGNMENT: u64 = 4096;
/// Tensors smaller than this stay in the model file: shapes and scalars are wanted without opening the data file.
const SMALLEST_EXTERNAL_BYTES: usize = 1024;
/// Bytes that are gathered before the system is asked to write them.
const WRITE_BUFFER_BYTES: usize = 1 << 20;
/// What protobuf itself allows for one message.
const PROTOBUF_LIMIT_BYTES: usize = i32::MAX as usize;

/// Where a written model keeps its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightLocation {
    /// In the model file while they take at most 1 GB, else beside it.
    #[default]
    Automatic,
    /// In the model file. ONNX models above 2 GB cannot be written so.
    Inline,
    /// In a file beside the model, called like it with `.data` appended.
    External,
}

/// Above this, [`WeightLocation::Automatic`] writes a data file.
const INLINE_LIMIT_BYTES: usize = 1 << 30;

/// Writes `model` to `path`, with weights that it keeps in external data copied. Each file is written under a temporary
/// name in the same folder and then renamed, so a file at `path` is either the old or the complete new one. The same model
/// gives the same bytes.
///
/// # Errors
/// When a file cannot be written, a tensor cannot be read, or the model is too large to be kept inline.
pub fn write_model(
    model: &OnnxModel,
    path: &Path,
    location: WeightLocation,
) -> Result<(), OnnxError> {
    let size_bytes = model
        .graph()
        .initializer
        .iter()
        .try_fold(0usize, |sum, tensor| {
            Ok::<_, OnnxError>(sum.saturating_add(model.view(tensor)?.data.len()))
        })?;
    let external = match location {
        WeightLocation::Automatic => size_bytes > INLINE_LIMIT_BYTES,
        WeightLocation::Inline => false,
        WeightLocation::External => true,
    };
    let mut data_file = external.then(|| DataFile::create(path)).transpose()?;
    let mut graph = placed_graph(model, model.graph(), data_file.as_mut())?;
    let initializers = std::mem::take(&mut graph.initializer);
    let encoded = Encoded::new(shallow_copy(model.proto()), graph, initializers);
    if encoded.len() > PROTOBUF_LIMIT_BYTES {
        return Err(OnnxError::Model(
            "it exceeds the 2 GB that one ONNX file can hold; write its weights as external data"
                .to_owned(),
        ));
    }
    if let Some(data_file) = data_file {
        data_file.finish()?;
    }
    replace_file(path, |file| encoded.write(file))
}

/// A model's message, ready to be written without being in memory twice: all but the initializers is encoded. Fields are
/// written in the order of their numbers, as other writers do.
struct Encoded {
    /// The model's fields before and after its graph.
    model: [Vec<u8>; 2],
    /// The graph's fields before and after its initializers.
    graph: [Vec<u8>; 2],
    initializers: Vec<TensorProto>,
}

/// Numbers of fields in onnx.proto.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_RAW_DATA: u32 = 9;

impl Encoded {
    fn new(model: ModelProto, mut graph: GraphProto, initializers: Vec<TensorProto>) -> Encoded {
        let before_graph = ModelProto {
            ir_version: model.ir_version,
            producer_name: model.producer_name.clone(),
            producer_version: model.producer_version.clone(),
            domain: model.domain.clone(),
            model_version: model.model_version,
            doc_string: model.doc_string.clone(),
            ..ModelProto::default()
        };
        let after_graph = ModelProto {
            ir_version: None,
            producer_name: None,
            producer_version: None,
            domain: None,
            model_version: None,
            doc_string: None,
            ..model
        };
        let before_initializers = GraphProto {
            node: std::mem::take(&mut graph.node),
            name: graph.name.take(),
            ..GraphProto::default()
        };
        Encoded {
            model: [before_graph, after_graph].map(|part| part.encode_to_vec()),
            graph: [before_initializers, graph].map(|part| part.encode_to_vec()),
            initializers,
        }
    }

    fn graph_len(&self) -> usize {
        let tensors = self.initializers.iter();
        let fields =
            tensors.map(|tensor| encoding::message::encoded_len(GRAPH_INITIALIZER, tensor));
        self.graph.iter().map(Vec::len).sum::<usize>() + fields.sum::<usize>()
    }

    fn len(&self) -> usize {
        let graph_len = self.graph_len();
        let start = field_start(MODEL_GRAPH, graph_len).len();
        self.model.iter().map(Vec::len).sum::<usize>() + start + graph_len
    }

    fn write(&self, file: &mut File) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        file.write_all(&self.model[0])?;
        file.write_all(&field_start(MODEL_GRAPH, self.graph_len()))?;
        file.write_all(&self.graph[0])?;
        for tensor in &self.initializers {
            write_initializer(tensor, &mut file)?;
        }
        file.write_all(&self.graph[1])?;
        file.write_all(&self.model[1])?;
        file.flush()
    }
}

fn write_initializer(tensor: &TensorProto, file: &mut impl Write) -> io::Result<()> {
    file.write_all(&field_start(GRAPH_INITIALIZER, tensor.encoded_len()))?;
    let Some(data) = &tensor.raw_data else {
        return file.write_all(&tensor.encode_to_vec());
    };
    // What comes after the data has higher numbers.
    let before = TensorProto {
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        segment: tensor.segment,
        float_data: tensor.float_data.clone(),
        int32_data: tensor.int32_data.clone(),
        string_data: tensor.string_data.clone(),
        int64_data: tensor.int64_data.clone(),
        name: tensor.name.clone(),
        ..TensorProto::default()
    };
    let after = TensorProto {
        external_data: tensor.external_data.clone(),
        data_location: tensor.data_location,
        double_data: tensor.double_data.clone(),
        uint64_data: tensor.uint64_data.clone(),
        doc_string: tensor.doc_string.clone(),
        metadata_props: tensor.metadata_props.clone(),
        ..TensorProto::default()
    };
    file.write_all(&before.encode_to_vec())?;
    file.write_all(&field_start(TENSOR_RAW_DATA, data.len()))?;
    write_and_release(data, file)?;
    file.write_all(&after.encode_to_vec())
}

/// What stands before the content of a field: its number and its length.
fn field_start(number: u32, length: usize) -> Vec<u8> {
    let mut start = vec![];
    encoding::encode_key(number, WireType::LengthDelimited, &mut start);
    encoding::encode_varint(length as u64, &mut start);
    start
}

/// The message without its graph.
fn shallow_copy(proto: &ModelProto) -> ModelProto {
    ModelProto {
        ir_version: proto.ir_version,
        opset_import: proto.opset_import.clone(),
        producer_name: proto.producer_name.clone(),
        producer_version: proto.producer_version.clone(),
        domain: proto.domain.clone(),
        model_version: proto.model_version,
        doc_string: proto.doc_string.clone(),
        graph: None,
        metadata_props: proto.metadata_props.clone(),
        training_info: proto.training_info.clone(),
        functions: proto.functions.clone(),
        configuration: proto.configuration.clone(),
    }
}

/// The graph with every tensor either inline or in the data file. Tensor bytes are shared, not copied.
fn placed_graph(
    model: &OnnxModel,
    graph: &GraphProto,
    mut data_file: Option<&mut DataFile>,
) -> Result<GraphProto, OnnxError> {
    let mut placed = graph.clone();
    for tensor in &mut placed.initializer {
        place(model, tensor, data_file.as_deref_mut())?;
    }
    for node in &mut placed.node {
        place_in_node(model, node)?;
    }
    Ok(placed)
}

/// Tensors in attributes stay inline.
fn place_in_node(model: &OnnxModel, node: &mut NodeProto) -> Result<(), OnnxError> {
    for AttributeProto {
        t,
        tensors,
        g,
        graphs,
        ..
    } in &mut node.attribute
    {
        for tensor in t
            .iter_mut()
            .chain(tensors)
            .filter(|tensor| is_external(tensor))
        {
            place(model, tensor, None)?;
        }
        for graph in g.iter_mut().chain(graphs) {
            *graph = placed_graph(model, graph, None)?;
        }
    }
    Ok(())
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

fn place(
    model: &OnnxModel,
    tensor: &mut TensorProto,
    data_file: Option<&mut DataFile>,
) -> Result<(), OnnxError> {
    let data_file = data_file
        .map(|file| (file, model.view(tensor)))
        .filter(|(_, view)| {
            view.as_ref()
                .is_ok_and(|view| view.data.len() >= SMALLEST_EXTERNAL_BYTES)
        });
    match data_file {
        Some((file, view)) => {
            let entries = file.append(&view?.data)?;
            set_data(tensor, None);
            tensor.external_data = entries;
            tensor.data_location = Some(DataLocation::External as i32);
        }
        None if is_external(tensor) => {
            let data = model.view(tensor)?.data;
            set_data(tensor, Some(data));
            tensor.external_data.clear();
            tensor.data_location = None;
        }
        None => {}
    }
    Ok(())
}

fn set_data(tensor: &mut TensorProto, raw: Option<Bytes>) {
    tensor.float_data.clear();
    tensor.int32_data.clear();
    tensor.int64_data.clear();
    tensor.uint64_data.clear();
    tensor.double_data.clear();
    tensor.raw_data = raw;
}

/// The file of external data while it grows.
struct DataFile {
    path: PathBuf,
    /// The name by which the model refers to it.
    location: String,
    file: BufWriter<NamedTempFile>,
    length: u64,
}

impl DataFile {
    fn create(model: &Path) -> Result<Self, OnnxError> {
        let mut name = model.file_name().map(OsString::from).unwrap_or_default();
        name.push(".data");
        let path = model.with_file_name(&name);
        let location = name.into_string().map_err(|_| {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "its name is not UTF-8, which ONNX requires",
            );
            OnnxError::Write {
                path: path.clone(),
                source,
            }
        })?;
        let file = temporary_beside(&path).map_err(|source| OnnxError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            location,
            file: BufWriter::new(file),
            length: 0,
        })
    }

    fn append(&mut self, data: &[u8]) -> Result<Vec<StringStringEntryProto>, OnnxError> {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        let padding = vec![0; (offset - self.length) as usize];
        let write = |file: &mut BufWriter<NamedTempFile>| {
            file.write_all(&padding)?;
            write_and_release(data, file)
        };
        write(&mut self.file).map_err(|source| OnnxError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.length = offset + data.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        Ok(vec![
            entry("location", self.location.clone()),
            entry("offset", offset.to_string()),
            entry("length", data.len().to_string()),
        ])
    }

    fn finish(self) -> Result<(), OnnxError> {
        let Self { path, file, .. } = self;
        let finish = || {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            persist(file, &path)
        };
        finish().map_err(|source| OnnxError::Write {
            path: path.clone(),
            source,
        })
    }
}

/// Writes a file under a temporary name and puts it in the place of `path`.
fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), OnnxError> {
    let replace = || {
        let mut file = temporary_beside(path)?;
        write(file.as_file_mut())?;
        persist(file, path)
    };
    replace().map_err(|source| OnnxError::Write {
        path: path.to_owned(),
        source,
    })
}

fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".niwaki-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // As for any new file, what others may do is the umask's matter.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map(|_| ()).map_err(|error| error.error)
}
