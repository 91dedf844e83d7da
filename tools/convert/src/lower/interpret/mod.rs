//! Runs an ONNX graph on forms instead of numbers.
//!
//! At one concrete number of new tokens and of past tokens every node is either *known* (it depends only on
//! shapes, positions and masks, so it is evaluated), or it rearranges activations (its [`Form`] is derived),
//! or it computes something (it becomes a [base](super::base)). What is not understood is noted and leaves its
//! results unknown, so that a report can name it.

mod arithmetic;
mod attention;
mod movement;
mod products;
mod quantized;

use super::base::{Bases, Def, TableRows};
use super::form::Form;
use super::known::Known;
use super::layout;
use super::matrix::MatrixSource;
use super::{Boundary, LowerError};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{DataType, OnnxModel, TensorView, evaluate_node, sorted_nodes, used_names};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// At which lengths a graph is interpreted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    /// New tokens.
    pub(super) tokens: usize,
    /// Tokens already in the cache.
    pub(super) past: usize,
    /// Whether the elements of the cache are tracked; too many of them when the past is long.
    pub(super) track_past: bool,
}

/// What a tensor name stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Evaluated.
    Known(Known),
    /// A constant of the file that nothing has looked into yet.
    Stored(TensorView),
    /// A constant matrix, dequantised or transposed in theory only.
    Matrix(MatrixSource),
    /// Depends on activations.
    Form(Form),
    /// Activations quantised at run time: standing for the activations themselves.
    DynamicQuantized(Form),
    /// The run-time scale of dynamically quantised activations, times known factors.
    DynamicScale(Vec<f64>, Vec<usize>),
    /// A tensor of booleans that are all false for finite activations (`IsNaN`).
    NeverTrue(Vec<usize>),
    /// A table's rows picked by positions, with their values.
    TableRows(TableRows, Known),
    /// Not understood; the reason is in the notes.
    Unknown,
}

/// The types in which exports compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    Single,
    Half,
    Bfloat16,
}

impl Precision {
    fn of(graph: &GraphProto) -> Precision {
        let holds = |kind: DataType| {
            graph
                .initializer
                .iter()
                .any(|tensor| tensor.data_type() == kind as i32)
        };
        if holds(DataType::Bfloat16) {
            Precision::Bfloat16
        } else if holds(DataType::Float16) {
            Precision::Half
        } else {
            Precision::Single
        }
    }
}

/// A node that could not be interpreted.
#[derive(Clone, Debug)]
pub(super) struct Obstacle {
    pub(super) node: String,
    pub(super) operator: String,
    pub(super) reason: String,
}

/// What one run found out.
pub(super) struct Interpretation {
    pub(super) lengths: Lengths,
    pub(super) bases: Bases,
    pub(super) logits: Option<Form>,
    pub(super) obstacles: Vec<Obstacle>,
    /// Known float tensors of the graph that could be a rotary embedding's frequencies.
    pub(super) frequencies: Vec<Rc<[f64]>>,
    /// The coarsest type the export computes in.
    pub(super) precision: Precision,
    /// Single numbers the graph compares with one another: where a length changes what is computed, its limit is
    /// one of them.
    pub(super) limits: BTreeSet<i64>,
    /// Things a person should know about how the export was read.
    pub(super) notes: Vec<String>,
}

/// Either a result or the reason why the node is not understood.
pub(super) type Understood<T> = Result<T, Trouble>;

/// Why a node gave no result.
pub(super) enum Trouble {
    /// The node is valid but beyond what the interpreter knows.
    NotUnderstood(String),
    /// The file is broken.
    Broken(LowerError),
}

impl<E: Into<LowerError>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble::Broken(error.into())
    }
}

pub(super) fn not_understood<T>(reason: impl Into<String>) -> Understood<T> {
    Err(Trouble::NotUnderstood(reason.into()))
}

/// Largest constant that is evaluated rather than read lazily, in elements.
const EVALUATE_ELEMENTS_MAX: usize = 1 << 24;
/// Most elements of all results together, several times what the largest on-device decoders have.
const ELEMENTS_IN_ALL_MAX: usize = 1 << 29;
/// Longest vector that is remembered as a candidate for rotary frequencies.
const FREQUENCIES_MAX: usize = 512;

pub(super) struct Interpreter<'m> {
    model: &'m OnnxModel,
    /// Whether the roundings of activations are part of what is computed.
    rounds: bool,
    opset: i64,
    lengths: Lengths,
    bases: Bases,
    scopes: Vec<HashMap<String, Value>>,
    obstacles: Vec<Obstacle>,
    frequencies: Vec<Rc<[f64]>>,
    limits: BTreeSet<i64>,
    notes: Vec<String>,
    /// Elements of all results so far.
    elements: usize,
}

impl<'m> Interpreter<'m> {
    /// Interprets `model`'s graph at the given lengths.
    pub(super) fn run(
        model: &'m OnnxModel,
        boundary: &Boundary,
        lengths: Lengths,
        rounds: bool,
    ) -> Result<Interpretation, LowerError> {
        let mut interpreter = Interpreter {
            model,
            rounds,
            opset: model.opset("").unwrap_or(18),
            lengths,
            bases: Bases::default(),
            scopes: vec![HashMap::new()],
            obstacles: vec![],
            frequencies: vec![],
            limits: BTreeSet::new(),
            notes: vec![],
            elements: 0,
        };
        interpreter.bind_inputs(boundary)?;
        interpreter.run_graph(model.graph())?;
        let logits = match interpreter.lookup(&boundary.logits)? {
            Value::Form(form) => Some(form),
            _ => None,
        };
        Ok(Interpretation {
            lengths,
            bases: interpreter.bases,
            logits,
            obstacles: interpreter.obstacles,
            frequencies: interpreter.frequencies,
            precision: Precision::of(model.graph()),
            limits: interpreter.limits,
            notes: interpreter.notes,
        })
    }

    fn bind_inputs(&mut self, boundary: &Boundary) -> Result<(), LowerError> {
        let Lengths {
            tokens,
            past,
            track_past,
        } = self.lengths;
        let total = past + tokens;
        let ids = self.bases.add("input_ids", Def::Ids, &[1, tokens]);
        self.bind(&boundary.ids, Value::Form(ids));
        if let Some(name) = &boundary.mask {
            self.bind(
                name,
                Value::Known(Known::from_i64(&[1, total], &vec![1; total])?),
            );
        }
        if let Some(name) = &boundary.positions {
            let positions: Vec<i64> = (past as i64..total as i64).collect();
            self.bind(
                name,
                Value::Known(Known::from_i64(&[1, tokens], &positions)?),
            );
        }
        if let Some(name) = &boundary.cache_flag {
            let tensor = tract_onnx::prelude::tensor1(&[true]);
            self.bind(name, Value::Known(Known::new(tensor)));
        }
        for (name, shape) in &boundary.past {
            let shape: Vec<usize> = shape.iter().map(|size| size.unwrap_or(past)).collect();
            if layout::element_count(&shape).is_none() {
                return Err(LowerError::CacheSize {
                    name: name.clone(),
                    shape,
                });
            }
            let form = if track_past {
                self.bases.add(name, Def::Past, &shape)
            } else {
                Form::zeros(&shape)
            };
            self.bind(name, Value::Form(form));
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, name: &str, value: Value) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), value);
        }
    }

    /// The value of a name; initializers are found on demand.
    fn lookup(&mut self, name: &str) -> Result<Value, LowerError> {
        if let Some(value) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Ok(value.clone());
        }
        match self.model.tensor(name)? {
            Some(view) => Ok(Value::Stored(view)),
            None => Err(LowerError::Undefined {
                name: name.to_owned(),
            }),
        }
    }

    fn run_graph(&mut self, graph: &GraphProto) -> Result<(), LowerError> {
        let nodes = sorted_nodes(graph)?;
        // A value is dropped after its last reader, so that a long graph takes no more room than a short one.
        let mut last_readers: HashMap<&str, usize> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for name in used_names(node) {
                last_readers.insert(name, index);
            }
        }
        for output in &graph.output {
            last_readers.remove(output.name());
        }
        for (index, node) in nodes.iter().enumerate() {
            let outcome = match self.run_node(node) {
                Ok(values) => values,
                Err(Trouble::NotUnderstood(reason)) => {
                    self.obstacles.push(Obstacle {
                        node: node.name_or_output().to_owned(),
                        operator: node.op_type().to_owned(),
                        reason,
                    });
                    vec![]
                }
                Err(Trouble::Broken(error)) => return Err(error),
            };
            let mut outcome = outcome.into_iter();
            for name in &node.output {
                let value = outcome.next().unwrap_or(Value::Unknown);
                if !name.is_empty() {
                    self.count(&value)?;
                    self.bind(name, value);
                }
            }
            for name in used_names(node) {
                if last_readers.get(name) == Some(&index)
                    && let Some(scope) = self.scopes.last_mut()
                {
                    scope.remove(name);
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, value: &Value) -> Result<(), LowerError> {
        if let Value::Form(form) | Value::DynamicQuantized(form) = value {
            self.elements = self.elements.saturating_add(form.len());
        }
        if self.elements > ELEMENTS_IN_ALL_MAX {
            return Err(LowerError::TooLarge);
        }
        Ok(())
    }

    fn run_node(&mut self, node: &NodeProto) -> Understood<Vec<Value>> {
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(if name.is_empty() {
                None
            } else {
                Some(self.lookup(name)?)
            });
        }
        if node.op_type() == "If" {
            return self.run_branch(node, &inputs);
        }
        // A constant may be a weight, and may lie in an external file, like an initializer.
        if node.op_type() == "Constant"
            && let Some(tensor) = node.tensor("value")
            && (tensor.dims.len() >= 2 || tensor.data_location.unwrap_or(0) != 0)
        {
            return Ok(vec![Value::Stored(self.model.view(tensor)?)]);
        }
        if inputs
            .iter()
            .flatten()
            .any(|value| matches!(value, Value::Unknown))
        {
            return Ok(vec![Value::Unknown; node.output.len()]);
        }
        if let Some(values) = self.quantized_operator(node, &inputs)? {
            return Ok(values);
        }
        if let Some(values) = self.constant_matrix(node, &inputs)? {
            return Ok(values);
        }
        if inputs.iter().flatten().all(|value| {
            matches!(
                value,
                Value::Known(_) | Value::Stored(_) | Value::TableRows(..)
            )
        }) {
            return self.evaluate(node, &inputs);
        }
        if let Some(values) = self.movement(node, &inputs)? {
            return Ok(values);
        }
        if let Some(values) = self.arithmetic(node, &inputs)? {
            return Ok(values);
        }
        if let Some(values) = self.product(node, &inputs)? {
            return Ok(values);
        }
        if let Some(values) = self.attention(node, &inputs)? {
            return Ok(values);
        }
        not_understood(format!(
            "the operator {} is not known on activations",
            node.op_type()
        ))
    }

    /// `If` on a known condition: the branch that is taken, with the outer names in sight.
    fn run_branch(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Understood<Vec<Value>> {
        let Some(Some(Value::Known(condition))) = inputs.first() else {
            return not_understood("its condition depends on activations");
        };
        let taken = condition.i64s()?.first().copied().unwrap_or(0) != 0;
        let name = if taken { "then_branch" } else { "else_branch" };
        let Some(branch) = node.graph(name) else {
            return not_understood(format!("it has no {name}"));
        };
        self.scopes.push(HashMap::new());
        for tensor in &branch.initializer {
            let view = self.model.view(tensor)?;
            self.bind(tensor.name(), Value::Stored(view));
        }
        let result = self.run_graph(branch);
        let mut values = vec![];
        for output in &branch.output {
            values.push(self.lookup(output.name())?);
        }
        self.scopes.pop();
        result?;
        Ok(values)
    }

    /// A node all of whose inputs have values.
    fn evaluate(&mut self, node: &NodeProto, inputs: &[Option<Value>]) -> Understood<Vec<Value>> {
        // Rows of a large table stay recognisable as such: they may be a learned position embedding.
        if node.op_type() == "Gather"
            && let (Some(Some(Value::Stored(view))), Some(Some(indices))) =
                (inputs.first(), inputs.get(1))
            && node.int("axis").unwrap_or(0) == 0
            && let Some(table) = MatrixSource::real(view)
            && view.elements() > 0
        {
            let indices = self.known(indices)?;
            let rows: Option<Rc<[usize]>> = indices
                .i64s()?
                .iter()
                .map(|&row| usize::try_from(row).ok().filter(|row| *row < table.rows()))
                .collect();
            let Some(rows) = rows else {
                return not_understood("it reads a table outside of its rows");
            };
            let cols = table.cols();
            let mut values = vec![0.0; rows.len() * cols];
            for (&row, out) in rows.iter().zip(values.chunks_exact_mut(cols.max(1))) {
                table.read_row(row, out);
            }
            let shape = [indices.shape(), &[cols]].concat();
            let values = Known::from_f32(&shape, &values)?;
            return Ok(vec![Value::TableRows(TableRows { table, rows }, values)]);
        }
        let origin = inputs.iter().flatten().find_map(|value| match value {
            Value::TableRows(rows, _) => Some(rows.clone()),
            _ => None,
        });
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            tensors.push(match input {
                Some(value) => Some(self.known(value)?.tensor().clone()),
                None => None,
            });
        }
        if matches!(
            node.op_type(),
            "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual"
        ) {
            for tensor in tensors.iter().flatten().filter(|tensor| tensor.len() == 1) {
                self.limits
                    .extend(Known::new(tensor.clone()).i64s()?.first());
            }
        }
        let outputs = match evaluate_node(node, &tensors, self.opset) {
            Ok(outputs) => outputs,
            Err(error) => return not_understood(error.to_string()),
        };
        let keeps_rows = matches!(
            node.op_type(),
            "Identity" | "Cast" | "Reshape" | "Unsqueeze" | "Squeeze" | "Expand"
        );
        let mut values = vec![];
        for tensor in outputs {
            let known = Known::new(tensor);
            self.remember_frequencies(&known)?;
            values.push(match &origin {
                Some(rows) if keeps_rows => Value::TableRows(rows.clone(), known),
                _ => Value::Known(known),
            });
        }
        Ok(values)
    }

    fn remember_frequencies(&mut self, known: &Known) -> Result<(), LowerError> {
        let count: usize = known.shape().iter().product();
        if (1..=FREQUENCIES_MAX).contains(&count) && known.tensor().datum_type().is_float() {
            let values: Rc<[f64]> = known.f64s()?.into();
            if !self.frequencies.contains(&values) {
                self.frequencies.push(values);
            }
        }
        Ok(())
    }

    /// The value as a tensor.
    pub(super) fn known(&mut self, value: &Value) -> Understood<Known> {
        match value {
            Value::Known(known) | Value::TableRows(_, known) => Ok(known.clone()),
            Value::Stored(view) if view.elements() <= EVALUATE_ELEMENTS_MAX => {
                let known = Known::new(view.to_tensor()?);
                self.remember_frequencies(&known)?;
                Ok(known)
            }
            Value::Stored(view) => not_understood(format!(
                "the constant {} is too large to compute with",
                view.name()
            )),
            _ => not_understood("it needs a value that depends on activations"),
        }
    }

    pub(super) fn known_at(
        &mut self,
        inputs: &[Option<Value>],
        index: usize,
    ) -> Understood<Option<Known>> {
        match inputs.get(index).and_then(Option::as_ref) {
            Some(value) => Ok(Some(self.known(value)?)),
            None => Ok(None),
        }
    }

    pub(super) fn i64s_at(
        &mut self,
        inputs: &[Option<Value>],
        index: usize,
    ) -> Understood<Option<Vec<i64>>> {
        Ok(match self.known_at(inputs, index)? {
            Some(known) => Some(known.i64s()?),
            None => None,
        })
    }

    /// A value as a constant matrix.
    pub(super) fn matrix(&self, value: &Value) -> Option<MatrixSource> {
        match value {
            Value::Matrix(matrix) => Some(matrix.clone()),
            Value::Stored(view) => MatrixSource::real(view),
            _ => None,
        }
    }

    /// The shape of a value, when it is known.
    pub(super) fn shape_of(value: &Value) -> Option<Vec<usize>> {
        match value {
            Value::Known(known) | Value::TableRows(_, known) => Some(known.shape().to_vec()),
            Value::Stored(view) => Some(view.dims.clone()),
            Value::Matrix(matrix) => Some(vec![matrix.rows(), matrix.cols()]),
            Value::Form(form) | Value::DynamicQuantized(form) => Some(form.shape.clone()),
            Value::DynamicScale(_, shape) | Value::NeverTrue(shape) => Some(shape.clone()),
            Value::Unknown => None,
        }
    }

    pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Understood<Vec<usize>> {
        match layout::broadcast(a, b) {
            Some(shape) => Ok(shape),
            None => not_understood(format!("shapes {a:?} and {b:?} do not fit together")),
        }
    }
}
