//! The text through the model as it is and as it becomes, one piece of the graph after the other.

use super::pass::{Text, Watched};
use super::pieces::{Pieces, Product};
use super::{CalibrateError, Calibration, MatrixInput, Observer, Replacements};
use crate::lower::Lowered;
use niwaki_bundle::graph::{MatrixId, Op};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A pass of a text through a model and, beside it, through what replacing matrices makes of the model.
///
/// A matrix whose product joins the residual stream can then be fitted to what the stream lacks: what it should add is the
/// original's stream behind it less the changed one's before it, which holds what was lost in all pieces so far.
#[derive(Clone, Copy, Debug)]
pub struct SideBySide<'a> {
    /// The model.
    pub lowered: &'a Lowered,
    /// The text.
    pub calibration: Calibration<'a>,
    /// The matrices whose inputs are observed in the changed model; none reads what another one in the same piece computes.
    pub matrices: &'a BTreeSet<MatrixId>,
}

/// What a product should give: one row for each token of the text, in order.
#[derive(Clone, Debug)]
pub struct WantedRows {
    /// Row-major.
    pub rows: Arc<Vec<f32>>,
    /// Numbers of a row.
    pub width: usize,
    /// How much an error of each token counts: what follows reads the stream over its size, so one over the root of the
    /// mean square of the original's stream behind the product.
    pub token_weights: Arc<Vec<f32>>,
}

impl SideBySide<'_> {
    /// Feeds the rows that each matrix is multiplied with in the changed model to the observer that `observer` makes for it,
    /// which also gets what the product should give, where that is known: where it is added to the stream.
    /// `observed` answers what replaces matrices of a piece. `progress` is told the share that is done.
    ///
    /// Memory holds the stream of the text three times.
    ///
    /// # Errors
    /// [`CalibrateError`], or what the two callbacks say.
    pub fn run<'r, O: Observer + Send, E: From<CalibrateError> + Send>(
        &self,
        mut observer: impl FnMut(MatrixInput, Option<WantedRows>) -> Result<O, E> + Send,
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

    fn run_pieces<'r, O: Observer, E: From<CalibrateError>>(
        &self,
        pieces: &Pieces<'_>,
        observer: &mut dyn FnMut(MatrixInput, Option<WantedRows>) -> Result<O, E>,
        observed: &mut dyn FnMut(Vec<(MatrixInput, O)>) -> Result<Replacements<'r>, E>,
        progress: &mut dyn FnMut(f64),
    ) -> Result<(), E> {
        let mut original = Text::begin(self.calibration, pieces)?;
        let mut changed = Text::begin(self.calibration, pieces)?;
        let none = Replacements::new();
        let mut replacements = Replacements::new();
        let products = pieces.products(self.matrices);
        let last = products.last().map_or(0, |product| product.node);
        for piece in pieces.ranges() {
            if piece.start > last {
                break;
            }
            let end = piece.end - 1;
            original.run::<O>(&mut [], Some(end), &none)?;
            let here: Vec<&Product> = products
                .iter()
                .filter(|product| piece.contains(&product.node))
                .collect();
            if !here.is_empty() {
                let mut watched = vec![];
                for product in here {
                    let wanted = wanted(pieces, &original, &changed, product, end);
                    watched.push(Watched::new(*product, &mut |input| {
                        observer(input, wanted.clone())
                    })?);
                }
                changed.run(&mut watched, None, &replacements)?;
                replacements.extend(observed(Watched::finish(watched))?);
            }
            if piece.end <= last {
                changed.run::<O>(&mut [], Some(end), &replacements)?;
            }
            replacements.retain(|matrix, _| pieces.reads(*matrix, piece.end));
            progress(piece.end.min(last + 1) as f64 / (last + 1) as f64);
        }
        Ok(())
    }
}

/// What a product should give, if the piece ends with the stream before it plus the product.
fn wanted(
    pieces: &Pieces<'_>,
    original: &Text<'_>,
    changed: &Text<'_>,
    product: &Product,
    end: usize,
) -> Option<WantedRows> {
    let (start, before) = changed.stream()?;
    let (_, behind) = original.stream()?;
    let node = &pieces.nodes[end];
    let Op::Add { scale } = node.op else {
        return None;
    };
    let &[first, second] = node.inputs.as_slice() else {
        return None;
    };
    let (of_stream, of_product) = match (first.node, second.node) {
        (a, b) if a == start && b == product.node => (1.0, scale),
        (a, b) if a == product.node && b == start => (scale, 1.0),
        _ => return None,
    };
    let width = node.width;
    let whole = [first, second]
        .iter()
        .all(|columns| columns.offset == 0 && columns.width == width);
    if !whole || of_product == 0.0 || pieces.nodes[product.node].width != width {
        return None;
    }
    let rows = behind
        .iter()
        .zip(before)
        .map(|(behind, before)| (behind - of_stream * before) / of_product);
    let token_weights = behind.chunks_exact(width.max(1)).map(|row| {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let size = (squares / width.max(1) as f64).sqrt();
        if size > 0.0 { (1.0 / size) as f32 } else { 0.0 }
    });
    Some(WantedRows {
        rows: Arc::new(rows.collect()),
        width,
        token_weights: Arc::new(token_weights.collect()),
    })
}

/// How much stretches of the graph change the stream: the mean over tokens of the cosine between what is before and behind
/// each. A stretch is the node of the stream before it and the node that ends it; `None` where the graph is not cut there.
///
/// # Errors
/// [`CalibrateError`].
pub fn stream_similarities(
    lowered: &Lowered,
    calibration: Calibration<'_>,
    stretches: &[(usize, usize)],
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<Vec<Option<f64>>, CalibrateError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(calibration.threads)
        .build()?;
    let pieces = Pieces::of(lowered);
    pool.install(|| {
        let mut text = Text::begin(calibration, &pieces)?;
        let mut similarities = vec![None; stretches.len()];
        let mut begun: Option<(usize, Vec<f32>)> = None;
        let ranges = pieces.ranges();
        for (index, piece) in ranges.iter().enumerate() {
            let end = piece.end - 1;
            text.run::<super::SquareSums>(&mut [], Some(end), &Replacements::new())?;
            let Some((_, rows)) = text.stream() else {
                continue;
            };
            let width = pieces.nodes[end].width;
            for ((first, last), similarity) in stretches.iter().zip(&mut similarities) {
                if *last == end
                    && let Some((at, before)) = &begun
                    && at == first
                {
                    *similarity = Some(mean_cosine(before, rows, width));
                }
            }
            if stretches.iter().any(|(first, _)| *first == end) {
                begun = Some((end, rows.to_vec()));
            }
            if stretches.iter().all(|(_, last)| *last <= end) {
                break;
            }
            progress((index + 1) as f64 / ranges.len() as f64);
        }
        Ok(similarities)
    })
}

fn mean_cosine(a: &[f32], b: &[f32], width: usize) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let rows = a
        .chunks_exact(width.max(1))
        .zip(b.chunks_exact(width.max(1)));
    let (sum, count) = rows.fold((0.0, 0.0), |(sum, count), (a, b)| {
        let norms = (dot(a, a) * dot(b, b)).sqrt();
        let cosine = if norms > 0.0 { dot(a, b) / norms } else { 1.0 };
        (sum + cosine, count + 1.0)
    });
    if count > 0.0 { sum / count } else { 1.0 }
}
