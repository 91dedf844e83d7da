//! How strongly each input of each projection is driven by a text.
//!
//! The graph is cut where one value carries everything on, which is the residual stream between two layers. A piece
//! becomes a small bundle whose input is what the piece before it computed for every token of the text. Only one piece's weights and the residual stream are held at a time.

use super::selection::{Pattern, prune_rows};
use super::{Calibration, PruneError};
use crate::lower::{Lowered, Matrix, RowsOut};
use niwaki::{Engine, Entries, KvElement, LogitsFor, OpenOptions};
use niwaki_bundle::graph::{
    Columns, Graph, Input, InputKind, KvLayer, Node, Op, Output, WeightMut,
};
use niwaki_bundle::write::BundleWriter;
use niwaki_bundle::{Manifest, Verify};
use niwaki_kernels::{MatrixFormat, pack_float};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The output of a piece.
const VALUE: &str = "value";

/// Rows that are read at a time; a multiple of the packing's groups of 16.
const ROWS_AT_A_TIME: usize = 256;

/// The projections inside the layers by the ONNX node that they come from, with what was measured of their inputs.
pub(super) type Projections = BTreeMap<String, Measured>;

/// What is known of a projection's input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Measured {
    /// Nothing.
    Not,
    /// The sum of squares over all tokens of each column.
    SquareSums(Vec<f64>),
}

impl Measured {
    /// The norm of each column.
    pub(super) fn norms(&self) -> Option<Vec<f32>> {
        match self {
            Measured::Not => None,
            Measured::SquareSums(sums) => Some(sums.iter().map(|sum| sum.sqrt() as f32).collect()),
        }
    }
}

/// A decoder's graph without the rows it drops and with its cuts found.
pub(super) struct Layers<'a> {
    lowered: &'a Lowered,
    nodes: Vec<Node>,
    /// The projection that gives the logits.
    head: Option<usize>,
    /// Nodes whose value is all that later nodes read of what came before; ascending.
    cuts: Vec<usize>,
}

/// What a piece begins with.
enum Start {
    /// The token ids.
    Tokens,
    /// The value of a node, `[tokens, width]`, row-major.
    Value { node: usize, rows: Vec<f32> },
}

impl<'a> Layers<'a> {
    pub(super) fn of(lowered: &'a Lowered) -> Layers<'a> {
        let nodes = with_all_rows(&lowered.graph.nodes);
        let head = lowered
            .graph
            .output(Output::LOGITS)
            .and_then(|logits| head(&nodes, logits));
        let cuts = cuts(&nodes);
        Layers {
            lowered,
            nodes,
            head,
            cuts,
        }
    }

    #[cfg(test)]
    pub(super) fn cuts(&self) -> usize {
        self.cuts.len()
    }

    /// The same in one piece.
    #[cfg(test)]
    pub(super) fn uncut(mut self) -> Self {
        self.cuts.clear();
        self
    }

    /// The projections, with nothing known of their inputs.
    pub(super) fn unmeasured(&self) -> Projections {
        self.projections(0..self.nodes.len())
            .flat_map(|id| self.names(&self.nodes[id]))
            .map(|name| (name, Measured::Not))
            .collect()
    }

    /// Feeds the text through layer by layer; each is pruned by what was measured of it before it feeds the next.
    pub(super) fn measure(
        &self,
        calibration: &Calibration<'_>,
        pattern: Pattern,
        progress: &mut dyn FnMut(f64),
    ) -> Result<Projections, PruneError> {
        if calibration.sequences.iter().all(Vec::is_empty) {
            return Err(PruneError::NoTokens);
        }
        let mut run = Run {
            layers: self,
            calibration,
            pattern,
            norms: HashMap::new(),
        };
        let mut measured = Projections::new();
        let mut start = Start::Tokens;
        let mut first = 0;
        let ends = self.cuts.iter().copied().chain([self.nodes.len() - 1]);
        for end in ends {
            let piece = first..end + 1;
            first = piece.end;
            let projections: Vec<usize> = self.projections(piece.clone()).collect();
            // Each value that projections read is computed when all that it depends on is pruned.
            let read: BTreeSet<usize> = projections
                .iter()
                .map(|id| self.nodes[*id].inputs[0].node)
                .collect();
            for value in read {
                let width = self.nodes[value].width;
                let mut sums = vec![0.0f64; width];
                run.compute(&start, value, &mut |rows| {
                    for row in rows.chunks_exact(width) {
                        for (sum, x) in sums.iter_mut().zip(row) {
                            *sum += f64::from(*x) * f64::from(*x);
                        }
                    }
                })?;
                for &id in &projections {
                    let node = &self.nodes[id];
                    let Columns {
                        node: from,
                        offset,
                        width,
                    } = node.inputs[0];
                    if from != value {
                        continue;
                    }
                    let input = Measured::SquareSums(sums[offset..offset + width].to_vec());
                    if let Some(norms) = input.norms() {
                        run.norms.insert(id, norms);
                    }
                    for name in self.names(node) {
                        measured
                            .entry(name)
                            .and_modify(|held| add(held, &input))
                            .or_insert_with(|| input.clone());
                    }
                }
            }
            progress(first as f64 / self.nodes.len() as f64);
            if self.projections(first..self.nodes.len()).next().is_none() {
                break;
            }
            let mut rows = Vec::new();
            run.compute(&start, end, &mut |computed| {
                rows.extend_from_slice(computed)
            })?;
            start = Start::Value { node: end, rows };
        }
        Ok(measured)
    }

    /// The ONNX nodes that a projection was joined of.
    fn names(&self, node: &Node) -> Vec<String> {
        let matrices = &self.lowered.parts.matrices;
        let origins = node.op.matrices().flat_map(|id| &matrices[id].origins);
        let names: Vec<String> = origins.map(|origin| origin.node.clone()).collect();
        if names.is_empty() {
            vec![node.name.clone()]
        } else {
            names
        }
    }

    /// Projections among these nodes, but for the head.
    fn projections(&self, nodes: std::ops::Range<usize>) -> impl Iterator<Item = usize> + '_ {
        nodes.filter(|id| matches!(self.nodes[*id].op, Op::Linear { .. }) && Some(*id) != self.head)
    }
}

/// Two projections with the same weights: each of their inputs counts.
fn add(held: &mut Measured, more: &Measured) {
    if let (Measured::SquareSums(held), Measured::SquareSums(more)) = (held, more) {
        held.iter_mut()
            .zip(more)
            .for_each(|(held, more)| *held += more);
    }
}

/// The nodes without [`Op::LastRows`]: calibration looks at every token to the end.
fn with_all_rows(nodes: &[Node]) -> Vec<Node> {
    let mut nodes = nodes.to_vec();
    for id in 0..nodes.len() {
        for input in 0..nodes[id].inputs.len() {
            let Columns {
                node,
                offset,
                width,
            } = nodes[id].inputs[input];
            if matches!(nodes[node].op, Op::LastRows) {
                let source = nodes[node].inputs[0];
                nodes[id].inputs[input] = Columns {
                    node: source.node,
                    offset: source.offset + offset,
                    width,
                };
            }
        }
    }
    nodes
}

/// The last projection before the logits.
fn head(nodes: &[Node], logits: usize) -> Option<usize> {
    let mut id = logits;
    loop {
        let node = nodes.get(id)?;
        match node.op {
            Op::Linear { .. } => return Some(id),
            Op::Scale { .. } | Op::Softcap { .. } | Op::Round { .. } => {
                id = node.inputs.first()?.node
            }
            _ => return None,
        }
    }
}

/// Nodes after which nothing earlier is read.
fn cuts(nodes: &[Node]) -> Vec<usize> {
    // For each node, the first one that it or a later node reads; sources read what was there before all.
    let mut earliest = usize::MAX;
    let mut cuts = vec![];
    for (id, node) in nodes.iter().enumerate().rev() {
        if matches!(node.op, Op::LastRows) {
            continue;
        }
        if earliest == id {
            cuts.push(id);
        }
        let reads = node
            .inputs
            .iter()
            .map(|columns| columns.node)
            .min()
            .unwrap_or(0);
        earliest = earliest.min(reads);
        if node.inputs.is_empty() {
            break;
        }
    }
    cuts.reverse();
    cuts
}

struct Run<'a, 'b> {
    layers: &'a Layers<'a>,
    calibration: &'b Calibration<'b>,
    pattern: Pattern,
    /// Column norms of the projections that are pruned so far.
    norms: HashMap<usize, Vec<f32>>,
}

impl Run<'_, '_> {
    /// Computes the value of node `target` for every token of every sequence, in order.
    fn compute(
        &self,
        start: &Start,
        target: usize,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), PruneError> {
        if let Start::Value { node, rows } = start
            && *node == target
        {
            each(rows);
            return Ok(());
        }
        let path = self.calibration.scratch.join("layer.niwaki");
        self.write(start, target, &path)?;
        let options = OpenOptions::default()
            .with_threads(self.calibration.threads)
            .with_verify(Verify::Structure)
            .with_kv(KvElement::F32);
        let engine = Engine::open(&path, &options)?;
        let mut session = engine.session()?;
        let mut first = 0;
        for sequence in self
            .calibration
            .sequences
            .iter()
            .filter(|tokens| !tokens.is_empty())
        {
            session.reset()?;
            let next = first + sequence.len();
            let entries = match start {
                Start::Tokens => Entries::Ids(sequence),
                Start::Value { node, rows } => {
                    let width = self.layers.nodes[*node].width;
                    Entries::Rows(&rows[first * width..next * width])
                }
            };
            let outputs = session.run(&[entries], LogitsFor::EveryToken, None)?;
            if let Some(value) = outputs.get(VALUE) {
                each(value.as_slice());
            }
            first = next;
        }
        Ok(())
    }

    /// Writes the bundle that computes `target` from `start`.
    fn write(
        &self,
        start: &Start,
        target: usize,
        path: &std::path::Path,
    ) -> Result<(), PruneError> {
        let nodes = &self.layers.nodes;
        let mut writer = BundleWriter::create(path)?;
        let mut piece = Piece::default();
        let mut ids = HashMap::new();
        let input = match start {
            Start::Tokens => self.layers.lowered.graph.inputs.clone(),
            Start::Value { node, .. } => {
                let width = nodes[*node].width;
                ids.insert(*node, 0);
                piece.nodes.push(Node {
                    name: nodes[*node].name.clone(),
                    op: Op::Rows { input: 0 },
                    inputs: vec![],
                    width,
                });
                vec![Input {
                    name: "residual stream".to_owned(),
                    kind: InputKind::Rows { width },
                }]
            }
        };
        for id in self.needed(&ids, target) {
            let mut node = nodes[id].clone();
            for columns in &mut node.inputs {
                columns.node = ids[&columns.node];
            }
            piece.take(
                &mut node.op,
                |weights| {
                    let Lowered { parts, .. } = self.layers.lowered;
                    match weights {
                        Weights::Matrix(matrix) => self.write_matrix(
                            &mut writer,
                            &parts.matrices[matrix],
                            self.norms.get(&id),
                        ),
                        Weights::Vector(vector) => {
                            let (name, values) = &parts.vectors[vector];
                            Ok(writer.add_vector(name.clone(), values)?)
                        }
                    }
                },
                &self.layers.lowered.graph.layers,
            )?;
            ids.insert(id, piece.nodes.len());
            piece.nodes.push(node);
        }
        let graph = Graph {
            context_tokens: self.layers.lowered.graph.context_tokens,
            inputs: input,
            layers: piece.layers,
            ropes: self.layers.lowered.graph.ropes.clone(),
            outputs: vec![Output {
                name: VALUE.to_owned(),
                node: piece.nodes.len() - 1,
            }],
            nodes: piece.nodes,
        };
        writer.finish(&Manifest::default(), &graph)?;
        Ok(())
    }

    /// The nodes that `target` depends on, itself included, in order, but for those that are there.
    fn needed(&self, there: &HashMap<usize, usize>, target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            if !there.contains_key(&id) && needed.insert(id) {
                open.extend(
                    self.layers.nodes[id]
                        .inputs
                        .iter()
                        .map(|columns| columns.node),
                );
            }
        }
        needed
    }

    /// Writes a matrix as `f32`, pruned if it has been measured.
    fn write_matrix(
        &self,
        writer: &mut BundleWriter,
        matrix: &Matrix,
        norms: Option<&Vec<f32>>,
    ) -> Result<usize, PruneError> {
        let (rows, columns) = (matrix.rows(), matrix.cols());
        let mut output =
            writer.begin_matrix(matrix.name.clone(), MatrixFormat::F32, rows, columns)?;
        for first in (0..rows).step_by(ROWS_AT_A_TIME) {
            let range = first..(first + ROWS_AT_A_TIME).min(rows);
            let mut values: Vec<f32> = Vec::with_capacity(range.len() * columns);
            for piece in matrix.read_rows(range.clone(), &MatrixFormat::F32) {
                if let RowsOut::Real(piece) = piece {
                    values.extend(piece);
                }
            }
            if let Some(norms) = norms {
                prune_rows(&mut values, norms, self.pattern);
            }
            output.write(&packed(range.len(), columns, &values))?;
        }
        Ok(output.finish()?)
    }
}

/// A weight to be written.
enum Weights {
    Matrix(usize),
    Vector(usize),
}

/// A piece of the graph while it is put together.
#[derive(Default)]
struct Piece {
    nodes: Vec<Node>,
    layers: Vec<KvLayer>,
}

impl Piece {
    /// Replaces what an operator refers to by the piece's own: weights as `write` numbers them, attention layers in order.
    fn take(
        &mut self,
        op: &mut Op,
        mut write: impl FnMut(Weights) -> Result<usize, PruneError>,
        layers: &[KvLayer],
    ) -> Result<(), PruneError> {
        for weight in op.weights_mut() {
            match weight {
                WeightMut::Matrix(id) => *id = write(Weights::Matrix(*id))?,
                WeightMut::Vector(id) => *id = write(Weights::Vector(*id))?,
            }
        }
        if let Op::Attention { layer, .. } = op {
            self.layers.push(layers[*layer]);
            *layer = self.layers.len() - 1;
        }
        Ok(())
    }
}

/// Rows in the kernels' layout.
fn packed(rows: usize, columns: usize, values: &[f32]) -> Vec<u8> {
    // The only error is a number of values that does not fit, and both callers count them.
    pack_float(MatrixFormat::F32, rows, columns, values).unwrap_or_default()
}
