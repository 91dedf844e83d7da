//! Matrices quantized by what a text does inside the model, by the method and in the formats that were measured to be best.
//!
//! - here: the text through the model once, and every matrix in every form that may be wanted onto the shelf
//! - `measure`: how far a bundle's predictions are from the float model's, on tokens that no quantizer has seen
//! - `choose`: the method, and the matrices that are worth more bytes
//! - `damage`: where the chosen bundle loses what it loses; `continuations`: what it says beside the float model

mod choose;
mod continuations;
mod damage;
mod measure;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use continuations::Continuation;
pub use damage::Damage;
pub use measure::Quality;

use super::formats::{self, Assignment, Lattices, of_code};
use super::pack::Stored;
use super::{
    BuildError, BuildOptions, Phase, REFINE_SHARE, Text, WINDOW_TOKENS, Weights, manifest,
};
use crate::calibrate::{
    CalibrateError, Calibration, Follow, MatrixInput, OwnText, Pass, Replacements, Statistics,
    Wanted, own_text,
};
use crate::export::Export;
use crate::lower::{Lowered, Matrix};
use crate::plan::{Code, Fate, Plan};
use crate::quantize::{KeepLattice, QuantizedRows, Quantizer, Shelf, Target, quantize_in_reach};
use crate::refine::Refined;
use measure::{Measure, open};
use niwaki::{Engine, OpenOptions};
use niwaki_bundle::Verify;
use niwaki_bundle::graph::MatrixId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Tokens that are held out to measure on at most.
const HELD_OUT_TOKENS: usize = 2048;

/// Something that was measured on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The method, or what was stored better than the rest.
    pub what: String,
    /// How far its predictions were from the float model's.
    pub kl_nats: f64,
    /// Size of the bundle.
    pub size_bytes: u64,
}

/// A text.
pub(super) struct Sequences {
    /// What quantizers see.
    pub(super) seen: Vec<Vec<u32>>,
    /// What bundles are measured on.
    pub(super) held_out: Vec<Vec<u32>>,
}

/// What came of optimizing.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) assignment: Assignment,
    pub(super) quality: Option<Quality>,
    pub(super) tried: Vec<Tried>,
    /// Where the text came from, if the build itself got it.
    pub(super) text: Option<String>,
    /// Matrices that are kept on their 4-bit grid.
    pub(super) lattices: Lattices,
    /// How many blocks of each matrix's input have second terms.
    pub(super) refined: Refined,
    /// What a report tells of the bundle beside its quality, where that was measured.
    pub(super) details: Option<Details>,
}

/// What else there is to know of the bundle that was chosen.
#[derive(Clone, Debug)]
pub(super) struct Details {
    pub(super) damage: Damage,
    /// What quantization does to a matrix's products.
    pub(super) product_errors: BTreeMap<MatrixId, f64>,
    pub(super) continuations: Vec<Continuation>,
}

/// A build on its way.
pub(super) struct Optimizer<'a> {
    pub(super) export: &'a Export,
    pub(super) lowered: &'a Lowered,
    pub(super) options: &'a BuildOptions<'a>,
    pub(super) lattices: &'a Lattices,
    pub(super) refined: Refined,
    pub(super) shelf: Option<&'a Shelf>,
    pub(super) scratch: &'a Path,
}

impl<'a> Optimizer<'a> {
    /// Before anything was looked at.
    pub(super) fn new(
        export: &'a Export,
        lowered: &'a Lowered,
        options: &'a BuildOptions<'a>,
        lattices: &'a Lattices,
        scratch: &'a Path,
    ) -> Optimizer<'a> {
        Optimizer {
            export,
            lowered,
            options,
            lattices,
            refined: Refined::new(),
            shelf: None,
            scratch,
        }
    }
}

impl Optimizer<'_> {
    /// What each matrix becomes.
    fn plan(&self, assignment: &Assignment) -> (Plan, Vec<Stored>) {
        formats::plan(
            self.lowered,
            &self.options.wishes,
            self.lattices,
            assignment,
            "",
        )
    }

    /// Writes the bundle of an assignment, and says how large it is.
    fn write(&self, path: &Path, assignment: &Assignment) -> Result<u64, BuildError> {
        let outcome = Outcome {
            assignment: assignment.clone(),
            lattices: self.lattices.clone(),
            refined: self.refined.clone(),
            ..Outcome::default()
        };
        let (export, lowered, options) = (self.export, self.lowered, self.options);
        let built = super::write(
            export,
            lowered,
            path,
            options,
            self.shelf,
            outcome,
            &mut |_, _| {},
        )?;
        Ok(built.size_bytes)
    }

    /// Writes the bundle that other options ask for.
    fn write_plain(&self, path: &Path, options: &BuildOptions<'_>) -> Result<(), BuildError> {
        let (export, lowered) = (self.export, self.lowered);
        super::write(
            export,
            lowered,
            path,
            options,
            None,
            Outcome::default(),
            &mut |_, _| {},
        )?;
        Ok(())
    }

    /// The sequences to calibrate on, and those to measure on.
    pub(super) fn text(&self, progress: &mut dyn FnMut(f64)) -> Result<Sequences, BuildError> {
        let mut sequences = match self.options.text {
            Text::Given(sequences) => sequences.to_vec(),
            Text::Own { tokens } => {
                let path = self.scratch.join("writer.niwaki");
                self.write_plain(&path, &BuildOptions::new(Weights::Int8))?;
                let options = OpenOptions::default()
                    .with_threads(self.options.threads)
                    .with_verify(Verify::Structure);
                let engine = Engine::open(&path, &options).map_err(CalibrateError::from)?;
                let wish = OwnText {
                    tokens,
                    window_tokens: WINDOW_TOKENS,
                    seed: 0,
                };
                own_text(&engine, wish, progress)?
            }
        };
        let mut held_out = vec![];
        let (most, mut tokens) = (sequences.len() / 5, 0);
        while held_out.len() < most && tokens < HELD_OUT_TOKENS {
            let Some(sequence) = sequences.pop() else {
                break;
            };
            tokens += sequence.len();
            held_out.push(sequence);
        }
        Ok(Sequences {
            seen: sequences,
            held_out,
        })
    }

    /// Runs a text through the model and puts what the quantizers make of each matrix on the shelf: in the code that it is
    /// to have and, where formats are to be chosen, in int8. What lies there already is not computed again.
    pub(super) fn fill_shelf(
        &self,
        shelf: &Shelf,
        sequences: &[Vec<u32>],
        progress: &mut (dyn FnMut(f64) + Send),
    ) -> Result<(), BuildError> {
        let (_, stored) = self.plan(&Assignment::default());
        let quantizers = self.options.quantizers;
        let missing = |id: MatrixId| -> Vec<(&dyn Quantizer, Target)> {
            let fate = stored.get(id).map(|stored| stored.fate);
            let Some(Fate::Quantize(code)) = fate.filter(|_| !self.lattices.contains_key(&id))
            else {
                return vec![];
            };
            let mut codes = BTreeSet::from([code]);
            codes.extend(self.options.chooses_formats().then_some(Code::Int8));
            let all = quantizers.iter().flat_map(|quantizer| {
                let codes = codes.iter();
                codes.map(|code| (*quantizer, of_code(*code)))
            });
            let held = |quantizer: &dyn Quantizer, target: Target| {
                let made_by = quantizer.description();
                [target, target.with_wide_scales()]
                    .into_iter()
                    .any(|target| shelf.holds(id, target, &made_by))
            };
            all.filter(|(quantizer, target)| !held(*quantizer, *target))
                .collect()
        };
        let wanted: BTreeSet<MatrixId> = (0..stored.len())
            .filter(|id| !missing(*id).is_empty())
            .collect();
        let pass = Pass {
            lowered: self.lowered,
            calibration: Calibration {
                sequences,
                scratch: self.scratch,
                threads: self.options.threads,
            },
            matrices: &wanted,
            follow: Follow::Original,
        };
        let wants = quantizers
            .iter()
            .fold(Wanted::default(), |wanted, quantizer| {
                let wants = quantizer.wants();
                Wanted {
                    square_sums: wanted.square_sums || wants.square_sums,
                    gram: wanted.gram || wants.gram,
                    ranges: wanted.ranges || wants.ranges,
                    samples: wanted.samples.max(wants.samples),
                }
            });
        let put = |id: MatrixId, statistics: Option<&Statistics>| -> Result<(), BuildError> {
            let matrix = &self.lowered.parts.matrices[id];
            for (quantizer, target) in missing(id) {
                let (quantized, target) = quantize_in_reach(quantizer, matrix, statistics, target)?;
                shelf.put(id, target, &quantizer.description(), &quantized)?;
            }
            Ok(())
        };
        let observer = |input: MatrixInput| -> Result<Statistics, BuildError> {
            Ok(Statistics::new(input.columns, wants).map_err(CalibrateError::from)?)
        };
        let observed = |seen: Vec<(MatrixInput, Statistics)>| {
            for (input, statistics) in &seen {
                put(input.matrix, Some(statistics))?;
            }
            Ok::<_, BuildError>(Replacements::new())
        };
        if wants.is_anything() {
            pass.run(observer, observed, progress)?;
        }
        // What nothing has to be seen for, and tables that nothing is multiplied with.
        wanted.iter().try_for_each(|id| put(*id, None))
    }

    /// Chooses the method and, where that is asked for, the matrices that are worth more bytes.
    pub(super) fn choose(
        &self,
        held_out: &[Vec<u32>],
        progress: &mut (dyn FnMut(Phase, f64) + Send),
    ) -> Result<Outcome, BuildError> {
        let Some(measure) = Measure::new(self, held_out)? else {
            return match self.options.chooses_formats() {
                true => Err(BuildError::NothingHeldOut),
                false => Ok(Outcome {
                    lattices: self.lattices.clone(),
                    refined: self.refined.clone(),
                    ..Outcome::default()
                }),
            };
        };
        let base = Assignment::default();
        let groups = match self.options.chooses_formats() {
            true => choose::count(self, &base),
            false => 0,
        };
        let windows = measure.windows(self.options.quantizers.len())
            + measure.windows(groups)
            + measure.windows(1).min(groups)
            + measure.windows(1);
        let mut done = 0;
        let mut on_window = || {
            done += 1;
            progress(Phase::Measuring, done as f64 / windows.max(1) as f64);
        };
        let mut outcome = self.chosen(&measure, &mut on_window)?;
        outcome.details = match &outcome.quality {
            Some(quality) => Some(self.details(
                &measure,
                &outcome.assignment,
                quality,
                held_out,
                &mut on_window,
            )?),
            None => None,
        };
        Ok(outcome)
    }

    /// What is chosen, by measuring.
    fn chosen(
        &self,
        measure: &Measure,
        on_window: &mut dyn FnMut(),
    ) -> Result<Outcome, BuildError> {
        let mut tried = vec![];
        let (base, quality) = choose::method(self, measure, &mut tried, on_window)?;
        let base_bytes = tried[base.quantizer].size_bytes;
        let mut outcome = Outcome {
            assignment: base,
            quality: Some(quality.clone()),
            tried,
            lattices: self.lattices.clone(),
            refined: self.refined.clone(),
            ..Outcome::default()
        };
        let mut final_quality = quality.clone();
        let limit = self.options.max_perplexity_increase;
        let exceeds =
            |quality: &Quality| limit.filter(|limit| quality.perplexity_increase() > *limit);
        let base_quality = quality.clone();
        if self.options.budget.is_none() && exceeds(&base_quality).is_none() {
            return Ok(outcome);
        }
        let groups = choose::groups(
            self,
            measure,
            &outcome.assignment,
            &base_quality,
            &mut outcome.tried,
            on_window,
        )?;
        let base = outcome.assignment.clone();
        if let Some(budget) = self.options.budget {
            let fitting = choose::within(self, base_bytes, budget, &groups)?;
            if !fitting.is_empty() {
                outcome.assignment = choose::with(&base, &fitting);
                let assignments = [outcome.assignment.clone()];
                let found = measure.measure(self, &assignments, on_window)?;
                for (quality, _) in found {
                    final_quality = quality.clone();
                    outcome.quality = Some(quality);
                }
            }
        }
        let Some(limit) = exceeds(&final_quality) else {
            return Ok(outcome);
        };
        let found = final_quality.perplexity_increase();
        let mut would = None;
        // Twice as many groups each time: few measurements, and never much more than is needed.
        let mut count = 1;
        while would.is_none() && !groups.is_empty() {
            count = usize::min(count, groups.len());
            let assignments = [choose::with(&base, &groups[..count])];
            let (quality, size_bytes) = measure.measure(self, &assignments, on_window)?.remove(0);
            if exceeds(&quality).is_none() {
                would = Some((size_bytes, quality.perplexity_increase()));
            }
            if count == groups.len() {
                break;
            }
            count *= 2;
        }
        Err(BuildError::PerplexityIncrease {
            limit,
            found,
            would,
        })
    }

    /// Looks closer at what was chosen.
    fn details(
        &self,
        measure: &Measure,
        assignment: &Assignment,
        quality: &Quality,
        held_out: &[Vec<u32>],
        on_window: &mut dyn FnMut(),
    ) -> Result<Details, BuildError> {
        let path = self.scratch.join("chosen.niwaki");
        self.write(&path, assignment)?;
        let engine = open(&path, self.options.threads)?;
        Ok(Details {
            damage: damage::split(self, measure, &engine, quality.kl_nats, &path, on_window)?,
            product_errors: damage::product_errors(self, held_out, engine.bundle())?,
            continuations: continuations::continuations(measure, &engine)?,
        })
    }
}

/// Matrices, as they are needed: from a shelf, or quantized anew.
pub(super) struct Source<'a> {
    pub(super) quantizer: &'a dyn Quantizer,
    pub(super) lattices: &'a Lattices,
    pub(super) refined: &'a Refined,
    pub(super) shelf: Option<&'a Shelf>,
}

impl Source<'_> {
    /// A matrix in the form that is wanted, or with wider scales where others do not reach; and which it is.
    pub(super) fn take(
        &self,
        id: MatrixId,
        matrix: &Matrix,
        target: Target,
    ) -> Result<(QuantizedRows, Target), BuildError> {
        if self.lattices.contains_key(&id) {
            return Ok(quantize_in_reach(&KeepLattice, matrix, None, target)?);
        }
        let made_by = self.quantizer.description();
        let held = |target: Target| {
            let shelf = self.shelf?;
            let quantized = shelf.get(id, target, &made_by, matrix.rows(), matrix.cols())?;
            Some((quantized, target))
        };
        match held(target).or_else(|| held(target.with_wide_scales())) {
            Some(held) => Ok(held),
            None => Ok(quantize_in_reach(self.quantizer, matrix, None, target)?),
        }
    }
}

/// Everything that quantized matrices depend on but their method.
pub(super) fn label(
    graph: &Path,
    options: &BuildOptions<'_>,
    sequences: &[Vec<u32>],
) -> Result<String, BuildError> {
    let adapters = options.adapters.iter();
    let adapters: Vec<String> = adapters
        .map(|(adapter, strength)| format!("adapter {} {strength}\n", adapter.blake3()))
        .collect();
    let mut text = blake3::Hasher::new();
    for sequence in sequences {
        text.update(&(sequence.len() as u64).to_le_bytes());
        for token in sequence {
            text.update(&token.to_le_bytes());
        }
    }
    let files = manifest::source_files(graph)?;
    let files: Vec<String> = files.into_iter().map(|file| file.blake3).collect();
    Ok(format!(
        "niwaki {}\nmodel {}\n{}values apart {}\nfiner activations {}\ntext {}\n",
        env!("CARGO_PKG_VERSION"),
        files.join(" "),
        adapters.concat(),
        options.chooses_formats(),
        options.refine_share.unwrap_or(REFINE_SHARE),
        text.finalize().to_hex(),
    ))
}
