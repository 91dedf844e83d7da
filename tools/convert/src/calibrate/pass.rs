//! The text through one piece of the graph after the other.

use super::observer::{MatrixInput, Observer};
use super::piece_bundle::{self, output_name};
use super::pieces::{Pieces, Product};
use super::{CalibrateError, Calibration};
use crate::lower::Lowered;
use crate::onnx::FloatRows;
use niwaki::{BatchStep, Engine, Entries, KvElement, LogitsFor, OpenOptions, Outputs};
use niwaki_bundle::Verify;
use niwaki_bundle::graph::{Columns, Graph, InputKind, MatrixId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Sequences run together up to about so many tokens; a longer one runs alone. Bounds the memory of a piece's results,
/// and changes no bit of them.
pub const RUN_TOKENS: usize = 1024;

/// Matrices that take the place of the graph's.
pub type Replacements<'a> = BTreeMap<MatrixId, Box<dyn FloatRows + 'a>>;

/// What the text meets where matrices are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// What the model computes: replacements change nothing. The text runs through each piece once.
    Original,
    /// Later pieces see what the replaced matrices of a piece compute. The text runs through each piece twice.
    ReplacedPieces,
    /// Also within a piece, whatever is multiplied with a matrix is computed with all replaced ones before it. The text
    /// runs through a layer of a decoder five times: to q/k/v, to o, to gate/up, to down, and to its end.
    ReplacedMatrices,
}

/// One pass of a text through a model.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The model.
    pub lowered: &'a Lowered,
    /// The text.
    pub calibration: Calibration<'a>,
    /// The matrices whose inputs are observed. One that several nodes read is observed at the first of them, and
    /// replaced for all that follow.
    pub matrices: &'a BTreeSet<MatrixId>,
    /// What is seen after matrices that are replaced.
    pub follow: Follow,
}

impl Pass<'_> {
    /// Feeds the rows that each matrix is multiplied with to the observer that `observer` makes for it, for every token of
    /// the text and in its order.
    ///
    /// The graph is worked through in pieces. When a piece, or with [`Follow::ReplacedMatrices`] a stage of it, has been
    /// observed, `observed` gets what its observers saw, in the order of the graph, and answers what replaces matrices
    /// of it. `progress` is told the share that is done.
    ///
    /// # Errors
    /// [`CalibrateError`], or what the two callbacks say.
    pub fn run<'r, O: Observer + Send, E: From<CalibrateError> + Send>(
        &self,
        mut observer: impl FnMut(MatrixInput) -> Result<O, E> + Send,
        mut observed: impl FnMut(Vec<(MatrixInput, O)>) -> Result<Replacements<'r>, E> + Send,
        progress: &mut (dyn FnMut(f64) + Send),
    ) -> Result<(), E> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.calibration.threads)
            .build()
            .map_err(CalibrateError::from)?;
        let pieces = Pieces::of(self.lowered);
        pool.install(|| self.run_pieces(&pieces, &mut observer, &mut observed, progress))
    }

    pub(super) fn run_pieces<'r, O: Observer, E: From<CalibrateError>>(
        &self,
        pieces: &Pieces<'_>,
        observer: &mut dyn FnMut(MatrixInput) -> Result<O, E>,
        observed: &mut dyn FnMut(Vec<(MatrixInput, O)>) -> Result<Replacements<'r>, E>,
        progress: &mut dyn FnMut(f64),
    ) -> Result<(), E> {
        let mut text = Text::begin(self.calibration, pieces)?;
        let products = pieces.products(self.matrices);
        let last = products.last().map(|product| product.node);
        let mut replacements = Replacements::new();
        for piece in pieces.ranges() {
            let Some(last) = last.filter(|last| *last >= piece.start) else {
                break;
            };
            // The end is only wanted by what follows.
            let end = (last >= piece.end).then(|| piece.end - 1);
            let products = products
                .iter()
                .filter(|product| piece.contains(&product.node));
            let products: Vec<Product> = products.copied().collect();
            let stages = match self.follow {
                Follow::ReplacedMatrices => pieces.stages(&products),
                _ if products.is_empty() => vec![],
                _ => vec![products],
            };
            let end_is_apart = self.follow != Follow::Original || stages.is_empty();
            for stage in stages {
                let mut watched = stage
                    .into_iter()
                    .map(|product| Watched::new(product, &mut *observer))
                    .collect::<Result<Vec<_>, E>>()?;
                text.run(&mut watched, end.filter(|_| !end_is_apart), &replacements)?;
                let new = observed(Watched::finish(watched))?;
                if self.follow != Follow::Original {
                    replacements.extend(new);
                }
            }
            if end_is_apart && end.is_some() {
                text.run::<O>(&mut [], end, &replacements)?;
            }
            // Weights that layers share stay replaced.
            replacements.retain(|matrix, _| pieces.reads(*matrix, piece.end));
            progress(piece.end.min(last + 1) as f64 / (last + 1) as f64);
        }
        Ok(())
    }
}

/// An observer and what it looks at.
pub(super) struct Watched<O> {
    product: Product,
    input: MatrixInput,
    observer: O,
}

impl<O: Observer> Watched<O> {
    /// What the observers of a stage saw.
    pub(super) fn finish(watched: Vec<Watched<O>>) -> Vec<(MatrixInput, O)> {
        let finished = watched.into_iter().map(|mut watched| {
            watched.observer.finish();
            (watched.input, watched.observer)
        });
        finished.collect()
    }

    pub(super) fn new<E>(
        product: Product,
        observer: &mut dyn FnMut(MatrixInput) -> Result<O, E>,
    ) -> Result<Watched<O>, E> {
        let input = MatrixInput {
            matrix: product.matrix,
            columns: product.reads.width,
        };
        Ok(Watched {
            product,
            input,
            observer: observer(input)?,
        })
    }
}

/// The text on its way through the model.
pub(super) struct Text<'a> {
    calibration: Calibration<'a>,
    pieces: &'a Pieces<'a>,
    sequences: Vec<&'a [u32]>,
    stream: Stream,
}

/// What a piece begins with.
enum Stream {
    /// What the text is.
    Tokens,
    /// The value of a node for every token, row-major.
    Rows { node: usize, rows: Vec<f32> },
}

impl<'a> Text<'a> {
    /// The text before the first piece.
    pub(super) fn begin(
        calibration: Calibration<'a>,
        pieces: &'a Pieces<'a>,
    ) -> Result<Text<'a>, CalibrateError> {
        let sequences = calibration.sequences.iter().map(Vec::as_slice);
        let sequences: Vec<&[u32]> = sequences.filter(|tokens| !tokens.is_empty()).collect();
        if sequences.is_empty() {
            return Err(CalibrateError::NoTokens);
        }
        Ok(Text {
            calibration,
            pieces,
            sequences,
            stream: Stream::Tokens,
        })
    }

    /// What the next piece begins with: the node, and its value for every token. `None` before the first piece.
    pub(super) fn stream(&self) -> Option<(usize, &[f32])> {
        match &self.stream {
            Stream::Tokens => None,
            Stream::Rows { node, rows } => Some((*node, rows)),
        }
    }

    /// Runs the text through a piece: what is watched is observed, and if there is an `end`, its value becomes the stream.
    pub(super) fn run<O: Observer>(
        &mut self,
        watched: &mut [Watched<O>],
        end: Option<usize>,
        replacements: &Replacements<'_>,
    ) -> Result<(), CalibrateError> {
        let start = match &self.stream {
            Stream::Tokens => None,
            Stream::Rows { node, .. } => Some(*node),
        };
        let mut outputs: BTreeSet<usize> = watched
            .iter()
            .map(|watched| watched.product.reads.node)
            .collect();
        outputs.extend(end);
        // What a piece begins with is there already.
        let computed: Vec<usize> = outputs
            .iter()
            .copied()
            .filter(|node| Some(*node) != start)
            .collect();
        let engine = if computed.is_empty() {
            None
        } else {
            let path = self.calibration.scratch.join("piece.niwaki");
            piece_bundle::write(self.pieces, start, &computed, replacements, &path)?;
            let options = OpenOptions::default()
                .with_threads(self.calibration.threads)
                .with_verify(Verify::Structure)
                .with_kv(KvElement::F32);
            Some(Engine::open(&path, &options)?)
        };
        let mut next = end.map(|end| NextStream::new(self, end)).transpose()?;
        let mut first = 0;
        for batch in batches(&self.sequences) {
            let sequences = &self.sequences[batch];
            let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
            let results = match &engine {
                None => vec![],
                Some(engine) => self.run_batch(engine, sequences, first)?,
            };
            for watched in watched.iter_mut() {
                let reads = watched.product.reads;
                let name = output_name(reads.node);
                if Some(reads.node) == start {
                    let rows = self.stream_rows(first..first + tokens);
                    self.feed(watched, reads, rows)?;
                    continue;
                }
                for result in &results {
                    if let Some(value) = result.get(&name) {
                        self.feed(watched, reads, value.as_slice())?;
                    }
                }
            }
            if let Some(next) = &mut next {
                next.take(&mut self.stream, first, &results);
            }
            first += tokens;
        }
        if let Some(next) = next {
            self.stream = next.finish(std::mem::replace(&mut self.stream, Stream::Tokens));
        }
        Ok(())
    }

    /// The rows of some tokens of what the piece begins with.
    fn stream_rows(&self, tokens: Range<usize>) -> &[f32] {
        match &self.stream {
            Stream::Tokens => &[],
            Stream::Rows { node, rows } => {
                let width = self.pieces.nodes[*node].width;
                &rows[tokens.start * width..tokens.end * width]
            }
        }
    }

    fn run_batch(
        &self,
        engine: &Engine,
        sequences: &[&[u32]],
        first: usize,
    ) -> Result<Vec<Outputs>, CalibrateError> {
        let mut sessions = sequences
            .iter()
            .map(|_| engine.session())
            .collect::<Result<Vec<_>, _>>()?;
        let zeros = vec![
            0;
            sequences
                .iter()
                .map(|tokens| tokens.len())
                .max()
                .unwrap_or(0)
        ];
        let mut start = first;
        let inputs = sequences
            .iter()
            .map(|tokens| {
                let range = start..start + tokens.len();
                start = range.end;
                match &self.stream {
                    Stream::Rows { .. } => Ok(vec![Entries::Rows(self.stream_rows(range))]),
                    Stream::Tokens => text_inputs(engine.graph(), tokens, &zeros),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut steps: Vec<BatchStep<'_>> = sessions
            .iter_mut()
            .zip(&inputs)
            .map(|(session, inputs)| BatchStep {
                session,
                inputs,
                logits_for: LogitsFor::EveryToken,
            })
            .collect();
        Ok(engine.run(&mut steps, None)?)
    }

    /// Shows an observer the columns that its matrix reads of some rows of a value.
    fn feed<O: Observer>(
        &self,
        watched: &mut Watched<O>,
        reads: Columns,
        rows: &[f32],
    ) -> Result<(), CalibrateError> {
        let width = self.pieces.nodes[reads.node].width;
        let columns = reads.offset..reads.offset + reads.width;
        let part: Vec<f32>;
        let rows = if columns.len() == width {
            rows
        } else {
            part = rows
                .chunks_exact(width)
                .flat_map(|row| &row[columns.clone()])
                .copied()
                .collect();
            &part
        };
        if rows.iter().any(|x| !x.is_finite()) {
            let node = &self.pieces.nodes[watched.product.node];
            return Err(CalibrateError::NotFinite {
                node: node.name.clone(),
            });
        }
        watched.observer.observe(rows);
        Ok(())
    }
}

/// What a graph gets for a sequence: its tokens, all of the first type.
fn text_inputs<'a>(
    graph: &Graph,
    tokens: &'a [u32],
    zeros: &'a [u32],
) -> Result<Vec<Entries<'a>>, CalibrateError> {
    let inputs = graph.inputs.iter();
    inputs
        .map(|input| match input.kind {
            InputKind::TokenIds { .. } => Ok(Entries::Ids(tokens)),
            InputKind::TokenTypes { .. } => Ok(Entries::Ids(&zeros[..tokens.len()])),
            InputKind::Rows { .. } => Err(CalibrateError::Input {
                input: input.name.clone(),
            }),
        })
        .collect()
}

/// Sequences that run together.
fn batches(sequences: &[&[u32]]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = vec![];
    let mut tokens = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if tokens + sequence.len() <= RUN_TOKENS => {
                batch.end = index + 1;
                tokens += sequence.len();
            }
            _ => {
                batches.push(index..index + 1);
                tokens = sequence.len();
            }
        }
    }
    batches
}

/// The stream as it will be after a piece. Where rows are as wide as before, they take the place of those that they were
/// computed from, so that the text is held once.
struct NextStream {
    node: usize,
    width: usize,
    /// Rows so far, where the old ones cannot be overwritten.
    grown: Option<Vec<f32>>,
}

impl NextStream {
    fn new(text: &Text<'_>, node: usize) -> Result<NextStream, CalibrateError> {
        let width = text.pieces.nodes[node].width;
        let in_place = match &text.stream {
            Stream::Tokens => false,
            Stream::Rows { node, .. } => text.pieces.nodes[*node].width == width,
        };
        let tokens = text.calibration.tokens();
        let grown = if in_place {
            None
        } else {
            let mut rows = Vec::new();
            tokens
                .checked_mul(width)
                .and_then(|count| rows.try_reserve_exact(count).ok())
                .ok_or(CalibrateError::OutOfMemory { tokens })?;
            Some(rows)
        };
        Ok(NextStream { node, width, grown })
    }

    /// Takes what a batch that begins with the token `first` gave.
    fn take(&mut self, stream: &mut Stream, first: usize, results: &[Outputs]) {
        let name = output_name(self.node);
        let values = results.iter().filter_map(|result| result.get(&name));
        let mut at = first * self.width;
        for value in values.map(|value| value.as_slice()) {
            match (&mut self.grown, &mut *stream) {
                (Some(rows), _) => rows.extend_from_slice(value),
                (None, Stream::Rows { rows, .. }) => {
                    rows[at..at + value.len()].copy_from_slice(value);
                }
                (None, Stream::Tokens) => {}
            }
            at += value.len();
        }
    }

    fn finish(self, before: Stream) -> Stream {
        let rows = match (self.grown, before) {
            (Some(rows), _) => rows,
            (None, Stream::Rows { rows, .. }) => rows,
            (None, Stream::Tokens) => vec![],
        };
        Stream::Rows {
            node: self.node,
            rows,
        }
    }
}
