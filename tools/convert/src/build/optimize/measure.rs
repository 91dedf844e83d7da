//! How far a bundle's predictions are from the float model's, on tokens that no quantizer has seen.

use super::Optimizer;
use crate::build::formats::Assignment;
use crate::build::{BuildError, BuildOptions, Weights};
use crate::evaluate::{Comparison, Subject, Window, compare};
use niwaki::{Engine, OpenOptions};
use niwaki_bundle::Verify;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Bundles that lie on the disk at once.
const AT_ONCE: usize = 3;

/// What quantization changes, on held-out tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Mean divergence of the predictions from the float model's, in nats.
    pub kl_nats: f64,
    /// Its standard error, where there are several windows.
    pub kl_nats_standard_error: Option<f64>,
    /// Share of the tokens where the most likely one is the float model's.
    pub top1_agreement: f64,
    /// The float model's perplexity.
    pub reference_perplexity: f64,
    /// The bundle's.
    pub perplexity: f64,
}

impl Quality {
    fn of(found: &Comparison) -> Quality {
        let kl = found.kl_nats();
        Quality {
            tokens: found.positions().len(),
            kl_nats: kl.value,
            kl_nats_standard_error: kl.standard_error,
            top1_agreement: found.top1_agreement().value,
            reference_perplexity: found.reference().perplexity().value,
            perplexity: found.model().perplexity().value,
        }
    }

    /// By which share the perplexity is above the float model's.
    pub fn perplexity_increase(&self) -> f64 {
        self.perplexity / self.reference_perplexity - 1.0
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "KL {:.4} nats, most likely token equal in {:.1} %, perplexity {:+.2} %, on {} held-out tokens",
            self.kl_nats,
            100.0 * self.top1_agreement,
            100.0 * self.perplexity_increase(),
            self.tokens
        )
    }
}

/// What quantized models are measured with.
pub(super) struct Measure {
    reference: Engine,
    pub(super) windows: Vec<Window>,
}

impl Measure {
    /// The float model beside which others are measured, on sequences that were held out.
    pub(super) fn new(
        optimizer: &Optimizer<'_>,
        held_out: &[Vec<u32>],
    ) -> Result<Option<Measure>, BuildError> {
        let windows: Vec<Window> = held_out
            .iter()
            .filter(|sequence| sequence.len() > 1)
            .map(|sequence| Window {
                inputs: sequence[..sequence.len() - 1].to_vec(),
                targets: sequence[1..].to_vec(),
            })
            .collect();
        if windows.is_empty() {
            return Ok(None);
        }
        let path = optimizer.scratch.join("reference.niwaki");
        // Half precision is next to nothing beside what is measured, and half as large; what it cannot hold needs more.
        let floats = |weights| {
            let options = BuildOptions::new(weights);
            optimizer.write_plain(&path, &options)
        };
        match floats(Weights::F16) {
            Err(BuildError::TooLargeForHalf { .. }) => floats(Weights::F32)?,
            result => result?,
        }
        let reference = open(&path, optimizer.options.threads)?;
        Ok(Some(Measure { reference, windows }))
    }

    /// Builds a bundle for each assignment, and measures it; its size in bytes comes with it.
    pub(super) fn measure(
        &self,
        optimizer: &Optimizer<'_>,
        assignments: &[Assignment],
        on_window: &mut dyn FnMut(),
    ) -> Result<Vec<(Quality, u64)>, BuildError> {
        let mut found = vec![];
        for assignments in assignments.chunks(AT_ONCE) {
            let mut engines = vec![];
            let mut sizes = vec![];
            for (index, assignment) in assignments.iter().enumerate() {
                let path = optimizer.scratch.join(format!("candidate-{index}.niwaki"));
                sizes.push(optimizer.write(&path, assignment)?);
                engines.push(open(&path, optimizer.options.threads)?);
            }
            let subjects: Vec<Subject<'_>> = engines
                .iter()
                .map(|engine| Subject::new("the quantized model", engine))
                .collect();
            let windows = self.windows.iter().cloned();
            let compared = compare(self.reference(), &subjects, windows, &mut *on_window)?;
            found.extend(compared.iter().map(Quality::of).zip(sizes));
        }
        Ok(found)
    }

    /// The float model.
    pub(super) fn engine(&self) -> &Engine {
        &self.reference
    }

    /// The float model, to be compared with.
    pub(super) fn reference(&self) -> Subject<'_> {
        Subject::new("the float model", &self.reference)
    }

    /// Windows that each call of [`measure`](Self::measure) goes through.
    pub(super) fn windows(&self, assignments: usize) -> usize {
        assignments.div_ceil(AT_ONCE) * self.windows.len()
    }
}

/// Opens a bundle to measure.
pub(super) fn open(path: &Path, threads: usize) -> Result<Engine, BuildError> {
    let options = OpenOptions::default()
        .with_threads(threads)
        .with_verify(Verify::Structure);
    Engine::open(path, &options).map_err(BuildError::Measure)
}
