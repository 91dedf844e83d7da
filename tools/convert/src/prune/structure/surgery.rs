//! Rows and columns taken out of an ONNX graph's tensors, and everything that has their sizes changed with them.

use super::CannotRemove;
use crate::onnx::{
    ChannelRows, DataType, FloatRows, Matrix, OnnxModel, Producers, Spool, for_each_stored,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto,
        attribute_proto::AttributeType, tensor_shape_proto::dimension::Value, type_proto,
    },
    used_names,
};
use crate::prune::PruneError;
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

/// What is taken out of the matrices of one model.
#[derive(Default)]
pub(super) struct Cuts<'a> {
    /// Rows that stay, by the node that multiplies by the matrix.
    pub(super) rows: BTreeMap<String, Vec<usize>>,
    /// Columns that stay, and the new weights of all columns.
    pub(super) columns: BTreeMap<String, (Vec<usize>, &'a dyn FloatRows)>,
}

/// A value that lost columns.
#[derive(Clone)]
struct Shrunk {
    /// Columns before.
    width: usize,
    kept: Rc<Vec<usize>>,
}

/// A tensor in the spool.
struct Tensor {
    dims: Vec<i64>,
    data_type: DataType,
    range: Range<usize>,
}

/// An operation on a graph.
struct Surgery<'m> {
    model: &'m OnnxModel,
    producers: Producers<'m>,
    /// How often each value is read.
    uses: HashMap<&'m str, usize>,
    shrunk: HashMap<String, Shrunk>,
    spool: Spool,
    tensors: HashMap<String, Tensor>,
    /// New initializers.
    added: Vec<TensorProto>,
    /// Key/value heads of cached values, by their names.
    kv_heads: HashMap<String, (i64, i64)>,
}

/// Takes rows and columns out of a model's matrices.
pub(super) fn cut(model: &OnnxModel, cuts: &Cuts<'_>) -> Result<OnnxModel, PruneError> {
    let graph = model.graph();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    let outputs = graph.output.iter().map(|output| output.name());
    for name in graph.node.iter().flat_map(used_names).chain(outputs) {
        *uses.entry(name).or_default() += 1;
    }
    let mut surgery = Surgery {
        model,
        producers: Producers::of(graph),
        uses,
        shrunk: HashMap::new(),
        spool: Spool::new().map_err(PruneError::Spool)?,
        tensors: HashMap::new(),
        added: vec![],
        kv_heads: HashMap::new(),
    };
    let sorted = model.sorted_nodes()?;
    let mut nodes = Vec::with_capacity(sorted.len());
    let mut met = HashSet::new();
    for node in sorted {
        let name = node.name_or_output();
        let (rows, columns) = (cuts.rows.get(name), cuts.columns.get(name));
        let mut node = node.clone();
        if rows.is_some() || columns.is_some() {
            met.insert(name.to_owned());
            surgery.cut_product(&mut node, rows, columns)?;
        } else if used_names(&node)
            .iter()
            .any(|input| surgery.shrunk.contains_key(*input))
        {
            surgery.follow(&mut node)?;
        }
        nodes.push(node);
    }
    let wanted = cuts.rows.keys().chain(cuts.columns.keys());
    if let Some(missing) = wanted.into_iter().find(|name| !met.contains(*name)) {
        return Err(CannotRemove::new(missing, "the graph has no such node").into());
    }
    for output in &graph.output {
        if surgery.shrunk.contains_key(output.name()) {
            return Err(CannotRemove::new(output.name(), "it is a result of the model").into());
        }
    }
    surgery.finish(nodes)
}

impl<'m> Surgery<'m> {
    /// Shrinks the matrix that a node multiplies by.
    fn cut_product(
        &mut self,
        node: &mut NodeProto,
        rows: Option<&Vec<usize>>,
        columns: Option<&(Vec<usize>, &dyn FloatRows)>,
    ) -> Result<(), PruneError> {
        let cannot = |node: &NodeProto, reason: &str| CannotRemove::new(&node.label(), reason);
        let product = node.is("MatMul") || node.is("Gemm") || node.is_microsoft("FusedMatMul");
        let weights = node.input_name(1).filter(|_| product).map(str::to_owned);
        let Some(weights) = weights else {
            return Err(cannot(node, "it is no product with a stored matrix").into());
        };
        let Some(matrix) = Matrix::behind(self.model, &self.producers, &weights)? else {
            return Err(cannot(node, "its weights are not a matrix of plain floats").into());
        };
        let channel_axis = usize::from(node.int("transB").unwrap_or(0) == 0);
        let stored = ChannelRows::new(matrix, channel_axis, 1.0);
        if node.float("alpha").unwrap_or(1.0) != 1.0 {
            return Err(cannot(node, "its product is scaled").into());
        }
        if !self.is_used_once(&weights) {
            return Err(cannot(node, "another node has the same weights").into());
        }
        let all_rows: Vec<usize> = (0..stored.rows()).collect();
        let all_columns: Vec<usize> = (0..stored.columns()).collect();
        if let Some((columns, _)) = columns {
            let read = node.input_name(0).and_then(|name| self.shrunk.get(name));
            let fits = match read {
                Some(read) => read.width == all_columns.len() && *read.kept == *columns,
                None => *columns == all_columns,
            };
            if !fits {
                return Err(
                    cannot(node, "it reads other values than the ones that were cut").into(),
                );
            }
        } else if node
            .input_name(0)
            .is_some_and(|name| self.shrunk.contains_key(name))
        {
            return Err(cannot(node, "it reads values that were cut").into());
        }
        let kept_rows = rows.unwrap_or(&all_rows);
        let kept_columns = columns.map_or(&all_columns, |(columns, _)| columns);
        if kept_rows.iter().any(|row| *row >= all_rows.len()) {
            return Err(cannot(node, "its matrix has fewer rows").into());
        }
        let tensor = self.shrink(
            &stored,
            kept_rows,
            kept_columns,
            columns.map(|(_, new)| *new),
        )?;
        self.tensors
            .insert(stored.matrix.value().to_owned(), tensor);
        if let Some(rows) = rows {
            let shrunk = Shrunk {
                width: all_rows.len(),
                kept: Rc::new(rows.clone()),
            };
            if let Some(bias) = node.input_name(2).map(str::to_owned) {
                node.input[2] = self.shrink_constant(node, &bias, &shrunk)?;
            }
            self.shrunk
                .extend(node.output.first().map(|output| (output.clone(), shrunk)));
        }
        Ok(())
    }

    /// Whether only one node reads a stored tensor, through all that moves it.
    fn is_used_once(&self, name: &str) -> bool {
        let mut name = name;
        while self.uses.get(name) == Some(&1) {
            match self.producers.get(name).and_then(|node| node.input_name(0)) {
                None => return true,
                Some(input) => name = input,
            }
        }
        false
    }

    /// The rows and columns of a matrix that stay, as it is stored.
    fn shrink(
        &mut self,
        stored: &ChannelRows,
        rows: &[usize],
        columns: &[usize],
        new: Option<&dyn FloatRows>,
    ) -> Result<Tensor, PruneError> {
        let view = stored.matrix.stored();
        let data_type = view.data_type;
        let size = if data_type == DataType::Float { 4 } else { 2 };
        let rows_first = stored.channels_first();
        let (width, dims) = match rows_first {
            true => (columns.len(), [rows.len(), columns.len()]),
            false => (rows.len(), [columns.len(), rows.len()]),
        };
        let mut data = vec![0; rows.len() * columns.len() * size];
        let mut values = vec![0.0; new.map_or(0, |new| new.columns())];
        for (new_row, row) in rows.iter().enumerate() {
            if let Some(new) = new {
                new.read(*row..row + 1, &mut values)?;
            }
            for (new_column, column) in columns.iter().enumerate() {
                let at = match rows_first {
                    true => new_row * width + new_column,
                    false => new_column * width + new_row,
                };
                let to = &mut data[at * size..(at + 1) * size];
                match new {
                    None => {
                        let from = stored.stored_index(*row, *column) * size;
                        to.copy_from_slice(&view.data[from..from + size]);
                    }
                    Some(_) => encode(values[*column], data_type, to),
                }
            }
        }
        stored.release(0..stored.rows());
        Ok(Tensor {
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            data_type,
            range: self.spool.append(&data).map_err(PruneError::Spool)?,
        })
    }

    /// The name of a constant that has what stays of this one along its last axis; of the same, where it has one value for all.
    fn shrink_constant(
        &mut self,
        node: &NodeProto,
        name: &str,
        shrunk: &Shrunk,
    ) -> Result<String, PruneError> {
        let cannot = |reason: String| CannotRemove::new(&node.label(), &reason);
        let tensor = match self.model.initializer(name) {
            Some(tensor) => Some(tensor),
            None => self
                .producers
                .get(name)
                .filter(|node| node.is("Constant"))
                .and_then(|node| node.tensor("value")),
        };
        let Some(tensor) = tensor else {
            return Err(cannot(format!("{name:?} is no constant")).into());
        };
        let view = self.model.view(tensor)?;
        match view.dims.last() {
            None | Some(1) => return Ok(name.to_owned()),
            Some(last) if *last == shrunk.width => {}
            Some(last) => {
                return Err(cannot(format!(
                    "{name:?} has {last} columns and meets {}",
                    shrunk.width
                ))
                .into());
            }
        }
        let size = view.data.len() / view.elements().max(1);
        if size == 0 || size * view.elements() != view.data.len() {
            return Err(cannot(format!("{name:?} has an odd type")).into());
        }
        let mut data = vec![];
        for row in view.data.chunks(shrunk.width * size) {
            for column in shrunk.kept.iter() {
                data.extend_from_slice(&row[column * size..(column + 1) * size]);
            }
        }
        let mut dims: Vec<i64> = tensor.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = shrunk.kept.len() as i64;
        }
        Ok(self.add(name, dims, view.data_type, data))
    }

    fn add(&mut self, name: &str, dims: Vec<i64>, data_type: DataType, data: Vec<u8>) -> String {
        let name = format!("{name}/kept_{}", self.added.len());
        self.added.push(TensorProto {
            name: Some(name.clone()),
            dims,
            data_type: Some(data_type as i32),
            raw_data: Some(Bytes::from(data)),
            ..TensorProto::default()
        });
        name
    }

    /// What a node makes of values that lost columns.
    fn follow(&mut self, node: &mut NodeProto) -> Result<(), PruneError> {
        let cannot = |node: &NodeProto, reason: &str| CannotRemove::new(&node.label(), reason);
        let attention =
            node.is_microsoft("GroupQueryAttention") || node.is_microsoft("MultiHeadAttention");
        if attention {
            return self.follow_attention(node);
        }
        if node.is("Split") {
            return self.follow_split(node);
        }
        let elementwise = node.is_onnx()
            && matches!(
                node.op_type(),
                "Add"
                    | "Cast"
                    | "Clip"
                    | "Div"
                    | "Erf"
                    | "Gelu"
                    | "HardSigmoid"
                    | "HardSwish"
                    | "Identity"
                    | "Max"
                    | "Min"
                    | "Mul"
                    | "Neg"
                    | "Pow"
                    | "Relu"
                    | "Sigmoid"
                    | "Softplus"
                    | "Sqrt"
                    | "Sub"
                    | "Swish"
                    | "Tanh"
            )
            || ["BiasGelu", "FastGelu", "Gelu", "QuickGelu"]
                .iter()
                .any(|operator| node.is_microsoft(operator));
        let turns = node.is_microsoft("RotaryEmbedding");
        if !elementwise && !turns {
            let reason =
                "it does not work on each column, and what else it does with fewer is not known";
            return Err(cannot(node, reason).into());
        }
        let first = node
            .input
            .iter()
            .find_map(|name| self.shrunk.get(name))
            .cloned();
        let Some(shrunk) = first else {
            return Ok(());
        };
        if turns {
            // Positions and angles have no columns of heads.
            if let Some(heads) = int_mut(node, "num_heads") {
                *heads = *heads * shrunk.kept.len() as i64 / shrunk.width.max(1) as i64;
            }
        } else {
            for index in 0..node.input.len() {
                let Some(name) = node.input_name(index).map(str::to_owned) else {
                    continue;
                };
                match self.shrunk.get(&name) {
                    Some(other) if other.width == shrunk.width && other.kept == shrunk.kept => {}
                    Some(_) => {
                        return Err(cannot(node, "it joins values that were cut apart").into());
                    }
                    None => node.input[index] = self.shrink_constant(node, &name, &shrunk)?,
                }
            }
        }
        self.shrunk
            .extend(node.output.first().map(|output| (output.clone(), shrunk)));
        Ok(())
    }

    fn follow_split(&mut self, node: &mut NodeProto) -> Result<(), PruneError> {
        let cannot = |node: &NodeProto, reason: &str| CannotRemove::new(&node.label(), reason);
        let shrunk = node.input_name(0).and_then(|name| self.shrunk.get(name));
        let Some(shrunk) = shrunk.cloned() else {
            return Err(cannot(node, "its sizes depend on what was cut").into());
        };
        // Of the last axis there is no other name that is sure.
        if !matches!(node.int("axis"), Some(-1 | 2)) {
            return Err(cannot(node, "it splits another axis than the last").into());
        }
        let outputs = node.output.len().max(1);
        let sizes: Vec<usize> = match (node.input_name(1), node.ints("split")) {
            (Some(name), _) => {
                let Some(tensor) = self.constant(name) else {
                    return Err(cannot(node, "its sizes are computed").into());
                };
                let view = self.model.view(tensor)?;
                let sizes = view.data.as_chunks::<8>().0.iter();
                sizes
                    .map(|bytes| usize::try_from(i64::from_le_bytes(*bytes)).unwrap_or(0))
                    .collect()
            }
            (None, Some(sizes)) => sizes
                .iter()
                .map(|size| usize::try_from(*size).unwrap_or(0))
                .collect(),
            (None, None) => vec![shrunk.width / outputs; outputs],
        };
        if sizes.len() != node.output.len() || sizes.iter().sum::<usize>() != shrunk.width {
            return Err(cannot(node, "its sizes are not those of what it splits").into());
        }
        let mut first = 0;
        let mut new_sizes = vec![];
        for (output, size) in node.output.iter().zip(&sizes) {
            let kept = shrunk
                .kept
                .iter()
                .filter(|at| (first..first + size).contains(*at));
            let kept: Vec<usize> = kept.map(|at| at - first).collect();
            first += size;
            new_sizes.push(kept.len() as i64);
            let part = Shrunk {
                width: *size,
                kept: Rc::new(kept),
            };
            self.shrunk.insert(output.clone(), part);
        }
        if let Some(name) = node.input_name(1).map(str::to_owned) {
            let data = new_sizes.iter().flat_map(|size| size.to_le_bytes());
            let dims = vec![new_sizes.len() as i64];
            node.input[1] = self.add(&name, dims, DataType::Int64, data.collect());
        } else if let Some(attribute) = attribute_mut(node, "split") {
            attribute.ints = new_sizes;
        } else if new_sizes.iter().any(|size| *size != new_sizes[0]) {
            return Err(cannot(node, "it splits evenly").into());
        }
        Ok(())
    }

    fn follow_attention(&mut self, node: &mut NodeProto) -> Result<(), PruneError> {
        let cannot = |node: &NodeProto, reason: &str| CannotRemove::new(&node.label(), reason);
        let grouped = node.is_microsoft("GroupQueryAttention");
        let heads = node.int("num_heads").unwrap_or(0);
        let kv_heads = if grouped {
            node.int("kv_num_heads").unwrap_or(0)
        } else {
            heads
        };
        let inputs: Vec<Option<Shrunk>> = (0..3)
            .map(|index| self.shrunk.get(node.input_name(index)?).cloned())
            .collect();
        let joined = node.input_name(1).is_none();
        // Biases, masks and sinks of single heads would lose some too. Lengths, caches and angles have none.
        let of_heads = (3..node.input.len()).any(|index| {
            let harmless = match grouped {
                true => index <= 9,
                false => matches!(index, 4 | 6 | 7),
            };
            !harmless && node.input_name(index).is_some()
        });
        if of_heads {
            return Err(cannot(node, "it has inputs of single heads").into());
        }
        if heads <= 0 || kv_heads <= 0 || heads % kv_heads != 0 {
            return Err(cannot(node, "it does not say how many heads it has").into());
        }
        let (Some(q), true) = (
            inputs[0].as_ref(),
            joined || inputs[1].is_some() && inputs[2].is_some(),
        ) else {
            return Err(cannot(node, "queries, keys and values were cut apart").into());
        };
        if joined && !grouped {
            return Err(cannot(node, "its queries, keys and values are packed").into());
        }
        let query_width = if joined {
            let all = (heads + 2 * kv_heads) as usize;
            q.width / all.max(1) * heads as usize
        } else {
            q.width
        };
        let head_dim = query_width / heads as usize;
        let kept_queries: Vec<usize> = q
            .kept
            .iter()
            .copied()
            .filter(|column| *column < query_width)
            .collect();
        let new_heads = (kept_queries.len() / head_dim.max(1)) as i64;
        let new_kv_heads = new_heads / (heads / kv_heads);
        if new_heads < 1 || new_kv_heads * (heads / kv_heads) != new_heads {
            return Err(cannot(node, "groups of heads were cut apart").into());
        }
        for (name, value) in [("num_heads", new_heads), ("kv_num_heads", new_kv_heads)] {
            if let Some(held) = int_mut(node, name) {
                *held = value;
            }
        }
        let (past, present) = if grouped { (3..5, 1..3) } else { (6..8, 1..3) };
        let caches = past
            .filter_map(|index| node.input_name(index))
            .chain(present.filter_map(|index| node.output_name(index)));
        for name in caches {
            self.kv_heads
                .insert(name.to_owned(), (kv_heads, new_kv_heads));
        }
        let output = Shrunk {
            width: query_width,
            kept: Rc::new(kept_queries),
        };
        self.shrunk
            .extend(node.output.first().map(|name| (name.clone(), output)));
        Ok(())
    }

    fn constant(&self, name: &str) -> Option<&'m TensorProto> {
        let constant = self.model.initializer(name);
        constant.or_else(|| {
            let node = self.producers.get(name)?;
            node.tensor("value").filter(|_| node.is("Constant"))
        })
    }

    fn finish(self, nodes: Vec<NodeProto>) -> Result<OnnxModel, PruneError> {
        let data = self.spool.finish().map_err(PruneError::Spool)?;
        let mut graph = GraphProto {
            node: nodes,
            // Shapes of values in between, which change; runtimes infer them.
            value_info: vec![],
            ..self.model.graph().clone()
        };
        for_each_stored(&mut graph, |value, tensor| {
            if let Some(new) = self.tensors.get(value) {
                *tensor = TensorProto {
                    name: tensor.name.clone(),
                    dims: new.dims.clone(),
                    data_type: Some(new.data_type as i32),
                    raw_data: Some(data.slice(new.range.clone())),
                    ..TensorProto::default()
                };
            }
        });
        graph.initializer.extend(self.added);
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            let Some((old, new)) = self.kv_heads.get(value.name()).copied() else {
                continue;
            };
            let Some(type_proto::Value::TensorType(tensor)) = value
                .r#type
                .as_mut()
                .and_then(|r#type| r#type.value.as_mut())
            else {
                continue;
            };
            let dims = tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim);
            for dim in dims.skip(1).take(1) {
                if matches!(dim.value, Some(Value::DimValue(heads)) if heads == old) {
                    dim.value = Some(Value::DimValue(new));
                }
            }
        }
        // An initializer that is listed as an input as well has its shape there too.
        let shrunk = &self.tensors;
        graph
            .input
            .retain(|input| !shrunk.contains_key(input.name()));
        crate::onnx::drop_unused(&mut graph);
        let proto = ModelProto {
            graph: Some(graph),
            ..self.model.proto().clone()
        };
        Ok(self.model.derive(proto)?)
    }
}

fn attribute_mut<'n>(node: &'n mut NodeProto, name: &str) -> Option<&'n mut AttributeProto> {
    let mut attributes = node.attribute.iter_mut();
    attributes.find(|attribute| attribute.name() == name)
}

fn int_mut<'n>(node: &'n mut NodeProto, name: &str) -> Option<&'n mut i64> {
    attribute_mut(node, name)
        .filter(|attribute| attribute.r#type() == AttributeType::Int)?
        .i
        .as_mut()
}

fn encode(value: f32, data_type: DataType, to: &mut [u8]) {
    match data_type {
        DataType::Float16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DataType::Bfloat16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        _ => to.copy_from_slice(&value.to_le_bytes()),
    }
}
