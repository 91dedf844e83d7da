//! The rewrite of a model: nodes with constant weights become nodes with quantized ones, other weights are dequantized where
//! they were.

use super::RoundToNearest;
use super::candidates::Use;
use super::channels;
use super::decisions::{Decisions, Found, ToBlocks};
use super::left::left_in;
use super::measured;
use super::nodes::{Form, dequantize_nodes, lookup_nodes, product_nodes};
use super::store::Store;
use super::stored::NodeAt;
use super::{QuantizeError, QuantizeOptions, QuantizeReport, QuantizedMatrix, Quantizer};
use crate::calibrate::{Calibration, Statistics};
use crate::memory::give_back_freed;
use crate::onnx::FloatRows;
use crate::onnx::{
    OnnxModel, Place, Scopes, change_graphs, drop_unused,
    proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto},
    release_all,
};
use crate::plan::Reason;
use std::collections::{HashMap, HashSet};

/// From this operator set on, `DequantizeLinear` has an axis.
const DEQUANTIZE_WITH_AXIS: i64 = 13;
/// From this version on, initializers need not be inputs as well.
const IR_VERSION_OF_FREE_INITIALIZERS: i64 = 4;

pub(super) fn rewrite(
    quantizer: &dyn Quantizer,
    model: &OnnxModel,
    options: &QuantizeOptions,
    calibration: Option<Calibration<'_>>,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
    let mut proto = model.proto().clone();
    // What nothing reads must not be quantized, and bodies must not go later: they are counted.
    proto.graph.iter_mut().for_each(drop_unused);
    let mut model = model.derive(proto)?;
    if !model.proto().functions.is_empty() {
        model.inline_functions()?;
        let proto = model.proto().clone();
        model = model.derive(proto)?;
    }
    let scopes = Scopes::of(model.graph());
    let found = Found::of(&model, &scopes, options)?;
    // Finding out what matrices are for has read some of them.
    release_all();
    give_back_freed();
    let mut decisions = found.decide(&model, options, quantizer);
    let mut work = Work {
        store: Store::new(scopes.each().map(|(graph, _)| graph))?,
        replaced: HashMap::new(),
        dequantized: HashMap::new(),
        quantized: vec![],
        done: 0,
        all: weights(&found, &decisions),
        progress,
        options,
    };
    let mut quantizer = quantizer;
    if let Some(calibration) = calibration {
        measured::blocks(
            &mut work,
            quantizer,
            &model,
            calibration,
            &found,
            &mut decisions,
        )?;
        quantizer = &RoundToNearest;
    }
    work.blocks(quantizer, &found, &mut decisions)?;
    work.channels(&model, &found, &mut decisions)?;
    work.finish(&model, decisions)
}

fn weights(found: &Found<'_>, decisions: &Decisions) -> usize {
    let blocks = decisions.blocks.iter().map(|to| {
        let rows = &found.candidates[to.candidate].rows;
        rows.rows() * rows.columns()
    });
    let channels = decisions.channels.iter();
    let channels = channels.map(|to| found.tensors[to.tensor].elements());
    blocks.chain(channels).fold(0, usize::saturating_add)
}

/// What was made so far.
pub(super) struct Work<'p> {
    store: Store,
    /// The nodes that take the place of one.
    replaced: HashMap<NodeAt, Vec<NodeProto>>,
    /// The nodes that give a value that was stored.
    dequantized: HashMap<Place, Vec<NodeProto>>,
    quantized: Vec<(NodeAt, QuantizedMatrix)>,
    done: usize,
    all: usize,
    progress: &'p mut (dyn FnMut(f64) + Send),
    pub(super) options: &'p QuantizeOptions,
}

impl Work<'_> {
    fn advance(&mut self, weights: usize) {
        self.done = self.done.saturating_add(weights);
        (self.progress)(self.done as f64 / self.all.max(1) as f64);
    }

    /// Quantizes what goes into blocks.
    fn blocks(
        &mut self,
        quantizer: &dyn Quantizer,
        found: &Found<'_>,
        decisions: &mut Decisions,
    ) -> Result<(), QuantizeError> {
        let mut blocks = std::mem::take(&mut decisions.blocks);
        // Products first: where a table serves both, its stored shape is that of the product.
        blocks.sort_by_key(|to| found.candidates[to.candidate].use_of.is_lookup());
        for to in blocks {
            self.block(quantizer, found, decisions, &to, None)?;
        }
        Ok(())
    }

    /// Quantizes a matrix, by what is known of its input.
    pub(super) fn block(
        &mut self,
        quantizer: &dyn Quantizer,
        found: &Found<'_>,
        decisions: &mut Decisions,
        to: &ToBlocks,
        statistics: Option<&Statistics>,
    ) -> Result<(), QuantizeError> {
        let candidate = &found.candidates[to.candidate];
        let (node, rows) = (candidate.node, &candidate.rows);
        self.advance(rows.rows() * rows.columns());
        let tensors = match self
            .store
            .quantize(quantizer, candidate, to.code, statistics)
        {
            Ok(tensors) => tensors,
            Err(error) => {
                let Some(reason) = out_of_reach(&error, rows.matrix.is_double()) else {
                    return Err(error);
                };
                let data_type = rows.matrix.stored().data_type;
                let reason = Reason::NotQuantizable(reason.into());
                let place = &candidate.place;
                decisions.leave(to.planned, place, data_type, node.label(), reason);
                return Ok(());
            }
        };
        if tensors.scale_type != rows.matrix.data_type() && !rows.matrix.is_double() {
            decisions.plan.matrices[to.planned].reason = Reason::OutOfReach;
        }
        let matrix = QuantizedMatrix {
            node: node.label(),
            rows: rows.rows(),
            columns: rows.columns(),
            relative_error: tensors.relative_error,
        };
        self.quantized.push((candidate.at, matrix));
        let form = Form {
            code: to.code,
            accuracy_level: self.options.accuracy_level,
        };
        let store = &mut self.store;
        let nodes = match &candidate.use_of {
            Use::Lookup => lookup_nodes(store, node, rows, &tensors, form)?,
            Use::Product { bias } => {
                product_nodes(store, node, rows, &tensors, bias.as_deref(), form)
            }
        };
        self.replaced.insert(candidate.at, nodes);
        Ok(())
    }

    /// Quantizes what gets a scale for each channel.
    fn channels(
        &mut self,
        model: &OnnxModel,
        found: &Found<'_>,
        decisions: &mut Decisions,
    ) -> Result<(), QuantizeError> {
        let as_list = model.opset("").unwrap_or(1) >= DEQUANTIZE_WITH_AXIS;
        for to in std::mem::take(&mut decisions.channels) {
            let tensor = &found.tensors[to.tensor];
            let place = &tensor.place;
            self.advance(tensor.elements());
            // Blocks could not hold it: those who would have read them read the floats.
            let outcome = match decisions.left.get(place) {
                Some(left) => Err(Reason::NotQuantizable(left.reason.clone().into())),
                None => {
                    let view = model.view(tensor.tensor)?;
                    let made = channels::quantize(&mut self.store, &view, &to.axes, as_list)?;
                    made.map_err(|reason| Reason::NotQuantizable(reason.into()))
                }
            };
            match outcome {
                Ok(tensors) => {
                    let count = decisions.plan.matrices[to.planned].rows;
                    let matrix = QuantizedMatrix {
                        node: to.reader,
                        rows: count,
                        columns: tensor.elements() / count.max(1),
                        relative_error: tensors.relative_error,
                    };
                    self.quantized.push((to.at, matrix));
                    let (value, data_type) = (&place.value, tensor.data_type);
                    let nodes = dequantize_nodes(&mut self.store, value, &tensors, data_type);
                    self.dequantized.insert(place.clone(), nodes);
                }
                Err(reason) => {
                    decisions.leave(to.planned, place, tensor.data_type, to.reader, reason);
                }
            }
        }
        Ok(())
    }

    /// The model with all that in place.
    fn finish(
        self,
        model: &OnnxModel,
        decisions: Decisions,
    ) -> Result<(OnnxModel, QuantizeReport), QuantizeError> {
        if self.quantized.is_empty() {
            return Err(nothing(&decisions));
        }
        let Work {
            store,
            mut replaced,
            mut dequantized,
            mut quantized,
            ..
        } = self;
        let mut graph = model.graph().clone();
        change_graphs(&mut graph, &mut |number, graph| {
            place_nodes(number, graph, &mut replaced, &mut dequantized);
        });
        let added = store.finish()?;
        let new: HashSet<String> = added
            .iter()
            .map(|tensor| tensor.name().to_owned())
            .collect();
        graph.initializer.extend(added);
        drop_unused(&mut graph);
        let mut left = vec![];
        let is_new = |name: &str| new.contains(name);
        for (number, (graph, _)) in Scopes::of(&graph).each().enumerate() {
            left_in(number, graph, &is_new, &decisions.left, &mut left);
        }
        quantized.sort_by_key(|(at, _)| *at);
        let report = QuantizeReport {
            plan: decisions.plan,
            quantized: quantized.into_iter().map(|(_, matrix)| matrix).collect(),
            left,
        };
        let mut proto = ModelProto {
            graph: Some(graph),
            ..model.proto().clone()
        };
        declare(&mut proto);
        Ok((model.derive(proto)?, report))
    }
}

/// Puts new nodes where the old ones were, and before all that read what was stored.
fn place_nodes(
    number: usize,
    graph: &mut GraphProto,
    replaced: &mut HashMap<NodeAt, Vec<NodeProto>>,
    dequantized: &mut HashMap<Place, Vec<NodeProto>>,
) {
    let mut place = |value: &str| {
        let value = value.to_owned();
        let graph = number;
        dequantized.remove(&Place { graph, value })
    };
    let mut nodes = vec![];
    let mut gone = HashSet::new();
    for tensor in &graph.initializer {
        if let Some(new) = place(tensor.name()) {
            nodes.extend(new);
            gone.insert(tensor.name().to_owned());
        }
    }
    graph
        .initializer
        .retain(|tensor| !gone.contains(tensor.name()));
    graph.input.retain(|input| !gone.contains(input.name()));
    for (index, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        let constant = node.output_name(0).filter(|_| node.is("Constant"));
        match (
            replaced.remove(&(number, index)),
            constant.and_then(&mut place),
        ) {
            (Some(new), _) | (None, Some(new)) => nodes.extend(new),
            (None, None) => nodes.push(node),
        }
    }
    graph.node = nodes;
}

/// Says what the new nodes and tensors need.
fn declare(proto: &mut ModelProto) {
    let imports_microsoft = proto
        .opset_import
        .iter()
        .any(|import| import.domain() == "com.microsoft");
    let uses_microsoft = proto.graph.as_ref().is_some_and(|graph| {
        let scopes = Scopes::of(graph);
        scopes.each().any(|(graph, _)| {
            graph
                .node
                .iter()
                .any(|node| node.domain() == "com.microsoft")
        })
    });
    if uses_microsoft && !imports_microsoft {
        proto.opset_import.push(OperatorSetIdProto {
            domain: Some("com.microsoft".to_owned()),
            version: Some(1),
        });
    }
    if proto.ir_version() < IR_VERSION_OF_FREE_INITIALIZERS {
        proto.ir_version = Some(IR_VERSION_OF_FREE_INITIALIZERS);
        if let Some(graph) = &mut proto.graph {
            // In later versions they would be inputs with defaults, which are no constants.
            let names: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
            graph.input.retain(|input| !names.contains(input.name()));
        }
    }
}

/// Why a matrix stays floats that no scale reaches.
fn out_of_reach(error: &QuantizeError, is_double: bool) -> Option<&'static str> {
    match error {
        QuantizeError::TooSmall { .. } => Some(channels::TOO_SMALL),
        QuantizeError::TooLarge { .. } => Some("it holds numbers too large for a scale"),
        QuantizeError::NotFinite { .. } if is_double => {
            Some("it holds numbers that f32 does not reach")
        }
        _ => None,
    }
}

/// Why nothing would change.
fn nothing(decisions: &Decisions) -> QuantizeError {
    let plan = &decisions.plan;
    let first = decisions.first_left.as_ref();
    let reason = match first.and_then(|place| decisions.left.get(place)) {
        Some(first) => {
            let weights = decisions.left.values().filter(|left| left.is_weight);
            let others = match weights.count().saturating_sub(1) {
                0 => String::new(),
                others => format!(", and {others} more are left"),
            };
            format!("{}: {}{others}", first.node, first.reason)
        }
        None if plan.matrices.is_empty() => "the model has no matrices of floats".to_owned(),
        None => "all its matrices are quantized already".to_owned(),
    };
    QuantizeError::NothingQuantized {
        reason,
        can_be_asked_for: plan.leaves_tables() || plan.leaves_projections(),
    }
}
