//! Which channels of a graph's values may change places.
//!
//! Channels that are read by matrices alone, and on their way only by operators that treat every column alike, can be in any
//! order: the matrix that writes them has its rows in that order, the one that reads them its columns. Values that
//! an operator takes column by column together (a sum, a gate) need the same order: they form a space.

use crate::lower::Lowered;
use niwaki_bundle::graph::{Columns, Graph, Levels, MatrixId, Node, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The index of a space.
pub(super) type SpaceId = usize;

/// The spaces of a graph.
pub(super) struct Spaces {
    /// First segment of each node, and one past the last of all.
    first_segments: Vec<usize>,
    segments: Vec<Segment>,
    /// Inputs and outputs of each matrix that is multiplied with.
    matrices: BTreeMap<MatrixId, Channels>,
}

/// Columns of a node's value that are read together, up to the next column at which some reader begins or ends.
struct Segment {
    columns: Range<usize>,
    /// Another segment of the same space, nearer to the one that stands for all.
    parent: usize,
    /// Has to stay as it is; told of the segment that stands for the space.
    is_pinned: bool,
}

/// What a matrix reads and writes.
#[derive(Default)]
struct Channels {
    columns: Option<usize>,
    rows: Option<Range<usize>>,
}

impl Spaces {
    /// The spaces of a graph, of which the matrices `fixed` cannot be changed.
    pub(super) fn of(lowered: &Lowered, fixed: &BTreeSet<MatrixId>) -> Spaces {
        let graph = &lowered.graph;
        let (first_segments, segments) = segments(graph);
        let mut spaces = Spaces {
            first_segments,
            segments,
            matrices: BTreeMap::new(),
        };
        for (id, node) in graph.nodes.iter().enumerate() {
            spaces.visit(lowered, id, node);
        }
        for output in &graph.outputs {
            spaces.pin(spaces.of_node(output.node));
        }
        spaces.pin_rows_of_tables(graph);
        for matrix in fixed {
            let channels = spaces.matrices.get(matrix);
            let columns = channels.and_then(|channels| channels.columns);
            let rows = channels.and_then(|channels| channels.rows.clone());
            spaces.pin(columns.into_iter().chain(rows.into_iter().flatten()));
        }
        spaces
    }

    /// The space of some columns, if they can be reordered.
    pub(super) fn of_columns(&self, columns: &Columns) -> Option<SpaceId> {
        let segments = self.of_input(columns);
        (segments.len() == 1).then(|| self.free(segments.start))?
    }

    /// The space that a matrix's columns are in, if they can be reordered.
    pub(super) fn of_matrix_columns(&self, matrix: MatrixId) -> Option<SpaceId> {
        self.free(self.matrices.get(&matrix)?.columns?)
    }

    /// Rows of a matrix that can be reordered, each with its space.
    pub(super) fn of_matrix_rows(&self, matrix: MatrixId) -> Vec<(Range<usize>, SpaceId)> {
        let channels = self.matrices.get(&matrix);
        let rows = channels.and_then(|channels| channels.rows.clone());
        self.free_parts(rows.into_iter().flatten())
    }

    /// Columns of a node's value that can be reordered, each with its space.
    pub(super) fn of_value(&self, node: usize) -> Vec<(Range<usize>, SpaceId)> {
        self.free_parts(self.of_node(node))
    }

    fn free_parts(&self, segments: impl Iterator<Item = usize>) -> Vec<(Range<usize>, SpaceId)> {
        segments
            .filter_map(|segment| {
                let space = self.free(segment)?;
                Some((self.segments[segment].columns.clone(), space))
            })
            .collect()
    }

    fn free(&self, segment: usize) -> Option<SpaceId> {
        let root = self.root(segment);
        (!self.segments[root].is_pinned).then_some(root)
    }

    fn visit(&mut self, lowered: &Lowered, id: usize, node: &Node) {
        match &node.op {
            Op::Embed { table, .. } | Op::PositionEmbed { table, .. } => {
                self.matrix_columns(*table, self.of_node(id));
            }
            Op::Linear { weight, .. } => {
                match node.inputs.first() {
                    Some(input) => self.matrix_columns(*weight, self.of_input(input)),
                    None => self.pin(self.of_node(id)),
                }
                let rows = self.of_node(id);
                match self.matrices.entry(*weight).or_default().rows.clone() {
                    Some(held) => self.join(held, rows),
                    None => self.matrices.entry(*weight).or_default().rows = Some(rows),
                }
            }
            Op::Norm { group, .. } if *group == node.width => self.elementwise(id, node),
            Op::Round {
                levels: Levels::Static { scale, .. },
            } if lowered.parts.vectors[*scale].1.len() != 1 => self.pin_all(id, node),
            Op::Gate { .. }
            | Op::Activate { .. }
            | Op::Add { .. }
            | Op::Scale { .. }
            | Op::Softcap { .. }
            | Op::Round { .. }
            | Op::LastRows
            | Op::Pool { .. } => self.elementwise(id, node),
            Op::Rows { .. } | Op::Norm { .. } | Op::Rope { .. } | Op::Attention { .. } => {
                self.pin_all(id, node);
            }
        }
    }

    /// Every column of the node's value depends on the same column of each input.
    fn elementwise(&mut self, id: usize, node: &Node) {
        for input in &node.inputs {
            self.join(self.of_input(input), self.of_node(id));
        }
    }

    fn pin_all(&mut self, id: usize, node: &Node) {
        for input in &node.inputs {
            self.pin(self.of_input(input));
        }
        self.pin(self.of_node(id));
    }

    fn matrix_columns(&mut self, matrix: MatrixId, segments: Range<usize>) {
        if segments.len() != 1 {
            self.pin(segments.clone());
        }
        match self.matrices.entry(matrix).or_default().columns {
            Some(held) => self.join(held..held + 1, segments),
            None => self.matrices.entry(matrix).or_default().columns = Some(segments.start),
        }
    }

    /// The rows of a table are ids; what else writes them as channels cannot reorder them.
    fn pin_rows_of_tables(&mut self, graph: &Graph) {
        for node in &graph.nodes {
            if let Op::Embed { table, .. } | Op::PositionEmbed { table, .. } = &node.op {
                let channels = self.matrices.get(table);
                let rows = channels.and_then(|channels| channels.rows.clone());
                self.pin(rows.into_iter().flatten());
            }
        }
    }

    /// Both are in the same order; what does not match piece by piece stays as it is.
    fn join(&mut self, one: Range<usize>, other: Range<usize>) {
        let width = |segment: usize| self.segments[segment].columns.len();
        let matches = one.len() == other.len()
            && one
                .clone()
                .zip(other.clone())
                .all(|(one, other)| width(one) == width(other));
        if !matches {
            return self.pin(one.chain(other));
        }
        for (one, other) in one.zip(other) {
            let (one, other) = (self.root(one), self.root(other));
            if one != other {
                self.segments[other].parent = one;
                self.segments[one].is_pinned |= self.segments[other].is_pinned;
            }
        }
    }

    fn pin(&mut self, segments: impl Iterator<Item = usize>) {
        for segment in segments {
            let root = self.root(segment);
            self.segments[root].is_pinned = true;
        }
    }

    fn root(&self, mut segment: usize) -> usize {
        while self.segments[segment].parent != segment {
            segment = self.segments[segment].parent;
        }
        segment
    }

    fn of_node(&self, node: usize) -> Range<usize> {
        self.first_segments[node]..self.first_segments[node + 1]
    }

    fn of_input(&self, input: &Columns) -> Range<usize> {
        let segments = self.of_node(input.node);
        let held = &self.segments[segments.clone()];
        let before = held.partition_point(|segment| segment.columns.start < input.offset);
        let end =
            held.partition_point(|segment| segment.columns.start < input.offset + input.width);
        segments.start + before..segments.start + end
    }
}

/// The values of all nodes, cut wherever a reader begins or ends.
fn segments(graph: &Graph) -> (Vec<usize>, Vec<Segment>) {
    let mut cuts: Vec<BTreeSet<usize>> = graph
        .nodes
        .iter()
        .map(|node| BTreeSet::from([0, node.width]))
        .collect();
    for input in graph.nodes.iter().flat_map(|node| &node.inputs) {
        cuts[input.node].extend([input.offset, input.offset + input.width]);
    }
    let (mut first_segments, mut segments) = (vec![0], vec![]);
    for cuts in cuts {
        let cuts: Vec<usize> = cuts.into_iter().collect();
        for pair in cuts.windows(2) {
            segments.push(Segment {
                columns: pair[0]..pair[1],
                parent: segments.len(),
                is_pinned: false,
            });
        }
        first_segments.push(segments.len());
    }
    (first_segments, segments)
}
