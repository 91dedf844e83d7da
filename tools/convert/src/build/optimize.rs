//! Matrices quantized by what a text does inside the model, before the bundle is written.

use super::pack::Stored;
use super::{BuildError, BuildOptions, Text, WINDOW_TOKENS};
use crate::calibrate::{
    CalibrateError, Calibration, Follow, MatrixInput, OwnText, Pass, Replacements, Statistics,
    own_text,
};
use crate::lower::Lowered;
use crate::plan::{Code, Fate};
use crate::quantize::{QuantizedRows, Quantizer, ScaleGrid, Shelf, Target};
use niwaki::{Engine, OpenOptions};
use niwaki_bundle::Verify;
use niwaki_bundle::graph::MatrixId;
use std::collections::BTreeSet;
use std::path::Path;

/// What a matrix becomes in a bundle.
pub(super) fn target(code: Code) -> Target {
    Target {
        code,
        grid: ScaleGrid::F16,
    }
}

/// Matrices, as they are needed, from a shelf or quantized anew.
pub(super) struct Source<'a> {
    pub(super) quantizer: &'a dyn Quantizer,
    pub(super) shelf: Option<&'a Shelf>,
}

impl Source<'_> {
    /// A matrix in the form that is wanted.
    pub(super) fn take(
        &self,
        id: MatrixId,
        matrix: &crate::lower::Matrix,
        target: Target,
    ) -> Result<QuantizedRows, BuildError> {
        let held = self
            .shelf
            .and_then(|shelf| shelf.get(id, target, matrix.rows(), matrix.cols()));
        match held {
            Some(quantized) => Ok(quantized),
            None => Ok(self.quantizer.quantize(matrix, None, target)?),
        }
    }
}

/// Runs the text through the model and puts what the quantizer makes of each matrix in each of its `codes` on the shelf.
/// What lies there already is not computed again.
pub(super) fn fill_shelf(
    lowered: &Lowered,
    codes: &[BTreeSet<Code>],
    quantizer: &dyn Quantizer,
    calibration: Calibration<'_>,
    shelf: &Shelf,
    progress: &mut (dyn FnMut(f64) + Send),
) -> Result<(), BuildError> {
    let missing = |id: MatrixId| {
        let codes = codes.get(id).into_iter().flatten();
        codes
            .map(|code| target(*code))
            .filter(move |target| !shelf.holds(id, *target))
    };
    let wanted: BTreeSet<MatrixId> = (0..codes.len())
        .filter(|id| missing(*id).next().is_some())
        .collect();
    let pass = Pass {
        lowered,
        calibration,
        matrices: &wanted,
        follow: Follow::Original,
    };
    let wants = quantizer.wants();
    let observer = |input: MatrixInput| -> Result<Statistics, BuildError> {
        Ok(Statistics::new(input.columns, wants).map_err(CalibrateError::from)?)
    };
    let observed = |seen: Vec<(MatrixInput, Statistics)>| -> Result<Replacements<'_>, BuildError> {
        for (input, statistics) in seen {
            let matrix = &lowered.parts.matrices[input.matrix];
            for target in missing(input.matrix) {
                let quantized = quantizer.quantize(matrix, Some(&statistics), target)?;
                shelf.put(input.matrix, target, &quantized)?;
            }
        }
        Ok(Replacements::new())
    };
    pass.run(observer, observed, progress)
}

/// The sequences of a text: those that are given, or what the model writes.
pub(super) fn sequences(
    text: &Text<'_>,
    write_model: impl FnOnce(&Path) -> Result<(), BuildError>,
    scratch: &Path,
    threads: usize,
    progress: &mut dyn FnMut(f64),
) -> Result<Vec<Vec<u32>>, BuildError> {
    match text {
        Text::Given(sequences) => Ok(sequences.to_vec()),
        Text::Own { tokens } => {
            let path = scratch.join("writer.niwaki");
            write_model(&path)?;
            let options = OpenOptions::default()
                .with_threads(threads)
                .with_verify(Verify::Structure);
            let engine = Engine::open(&path, &options).map_err(CalibrateError::from)?;
            let wish = OwnText {
                tokens: *tokens,
                window_tokens: WINDOW_TOKENS,
                seed: 0,
            };
            Ok(own_text(&engine, wish, progress)?)
        }
    }
}

/// What each matrix is to become, by id.
pub(super) fn codes(stored: &[Stored]) -> Vec<BTreeSet<Code>> {
    let of = |stored: &Stored| match stored.fate {
        Fate::Quantize(code) => BTreeSet::from([code]),
        Fate::Keep | Fate::Float(_) => BTreeSet::new(),
    };
    stored.iter().map(of).collect()
}

/// Everything that quantized matrices depend on.
pub(super) fn label(
    graph: &Path,
    options: &BuildOptions<'_>,
    sequences: &[Vec<u32>],
) -> Result<String, BuildError> {
    let mut text = blake3::Hasher::new();
    for sequence in sequences {
        text.update(&(sequence.len() as u64).to_le_bytes());
        for token in sequence {
            text.update(&token.to_le_bytes());
        }
    }
    Ok(format!(
        "niwaki {}\nmodel {}\ntext {}\nmethod {}\n",
        env!("CARGO_PKG_VERSION"),
        super::manifest::source_file(graph)?.blake3,
        text.finalize().to_hex(),
        options.quantizer.description(),
    ))
}
