//! What `niwaki prune` says of what it did.

use super::{Method, PruneAmount};
use crate::commands::plan;
use crate::terminal::{self, Table};
use niwaki_convert::build::PrunedBefore;
use niwaki_convert::prune::PruneReport;
use niwaki_convert::prune::structure::{RemoveReport, Removed};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What was pruned, and by which measure.
#[derive(Serialize)]
pub(crate) struct Pruned {
    /// Method and amount, as provenances tell it: `wanda 0.5`.
    by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CalibrationUsed>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What came of it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    /// Weights are zero.
    Zeros {
        weights: u64,
        zeros: u64,
        #[serde(flatten)]
        report: PruneReport,
    },
    /// Parts are gone.
    Parts(RemoveReport),
}

impl Outcome {
    /// What was pruned by this method, in lines.
    fn told(&self, by: &str) -> Vec<String> {
        match self {
            Outcome::Zeros {
                weights,
                zeros,
                report,
            } => vec![format!(
                "pruned {} of {} weights in {} matrices ({}) by {by}",
                terminal::count(*zeros),
                terminal::count(*weights),
                report.pruned.len(),
                share_of(*zeros, *weights),
            )],
            Outcome::Parts(report) => {
                let gone = report.weights_before.saturating_sub(report.weights_after);
                vec![
                    format!("pruned by {by}: {}", went(&report.removed)),
                    format!(
                        "{} of {} weights inside the layers went ({}), {} projections were fitted to what stayed",
                        terminal::count(gone),
                        terminal::count(report.weights_before),
                        share_of(gone, report.weights_before),
                        report.fitted,
                    ),
                ]
            }
        }
    }
}

/// What a method measured on.
#[derive(Serialize)]
struct CalibrationUsed {
    text: PathBuf,
    tokens: usize,
    /// The text has fewer tokens than were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_for: Option<usize>,
}

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Summary<'a> {
    pub(super) input: &'a Path,
    pub(super) output: &'a Path,
    pub(super) method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) perplexity: Option<Perplexities>,
    #[serde(flatten)]
    pub(super) pruned: &'a Pruned,
}

/// What pruning cost on a text.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Perplexities {
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Pruned {
    pub(super) fn new(
        outcome: Outcome,
        method: Method,
        amount: &PruneAmount,
        tokens: Option<usize>,
    ) -> Pruned {
        let calibration = amount.calibration.clone().zip(tokens);
        Pruned {
            by: amount.describe(method),
            calibration: calibration.map(|(text, tokens)| CalibrationUsed {
                text,
                tokens,
                asked_for: Some(amount.wanted_tokens()).filter(|asked| *asked > tokens),
            }),
            outcome,
        }
    }

    /// The parts that went, which a configuration has to say.
    pub(crate) fn removed(&self) -> Option<&Removed> {
        match &self.outcome {
            Outcome::Zeros { .. } => None,
            Outcome::Parts(report) => Some(&report.removed),
        }
    }

    /// For a bundle's quality report.
    pub(crate) fn before(&self) -> PrunedBefore {
        let matrices = match &self.outcome {
            Outcome::Zeros { report, .. } => report.pruned.as_slice(),
            Outcome::Parts(_) => &[],
        };
        let zeros = matrices
            .iter()
            .map(|matrix| (matrix.node.clone(), matrix.zeros));
        PrunedBefore {
            summary: self.outcome.told(&self.by).join("; "),
            matrices: zeros.collect(),
        }
    }

    /// For a bundle's provenance: what was really done.
    pub(crate) fn provenance(&self) -> BTreeMap<String, String> {
        let prune = match &self.outcome {
            Outcome::Zeros { report, .. } => match (report.pruned.len(), report.left.len()) {
                (_, 0) => self.by.clone(),
                (pruned, left) => format!("{}, {pruned} of {} matrices", self.by, pruned + left),
            },
            Outcome::Parts(report) => format!("{}: {}", self.by, went(&report.removed)),
        };
        let mut options = BTreeMap::from([("prune".to_owned(), prune)]);
        if let Some(CalibrationUsed { text, tokens, .. }) = &self.calibration {
            let name = text.file_name().unwrap_or_default().to_string_lossy();
            options.insert(
                "calibration".to_owned(),
                format!("{tokens} tokens of {name}"),
            );
        }
        options
    }
}

/// What went, in words: `1376 of 1536 channels stay in each layer`.
fn went(removed: &Removed) -> String {
    match removed {
        Removed::FfnChannels { before, after } => {
            let (least, most) = (after.iter().min(), after.iter().max());
            let (least, most) = (least.unwrap_or(before), most.unwrap_or(before));
            let stay = match least == most {
                true => least.to_string(),
                false => format!("{least} to {most}"),
            };
            format!("{stay} of {before} channels stay in each layer")
        }
        Removed::Heads { before, after, .. } => {
            format!("{after} of {before} key/value heads stay in each layer")
        }
        Removed::Layers { before, removed } => {
            let layers: Vec<String> = removed.iter().map(usize::to_string).collect();
            let what = if layers.len() == 1 { "layer" } else { "layers" };
            format!(
                "{what} {} of {before} went, counted from 0",
                layers.join(", ")
            )
        }
    }
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.outcome.told(&self.by) {
            writeln!(f, "{line}")?;
        }
        if let Some(used) = &self.calibration {
            write!(
                f,
                "measured on {} tokens of {}",
                terminal::count(used.tokens as u64),
                used.text.display()
            )?;
            if let Some(asked_for) = used.asked_for {
                let asked_for = terminal::count(asked_for as u64);
                write!(f, ": it has no more, {asked_for} were asked for")?;
            }
            writeln!(f)?;
        }
        match &self.outcome {
            Outcome::Zeros { report, .. } => {
                write!(f, "{}", plan::left(&report.left))?;
                for note in &report.notes {
                    writeln!(f, "note: {note}")?;
                }
                Ok(())
            }
            Outcome::Parts(_) => Ok(()),
        }
    }
}

fn share_of(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Outcome::Zeros { report, .. } = &self.pruned.outcome {
            let mut table = Table::new(["matrix", "shape", "zeros", "error"]);
            for matrix in &report.pruned {
                let weights = (matrix.rows * matrix.columns) as u64;
                table.row([
                    matrix.node.clone(),
                    format!("{} x {}", matrix.rows, matrix.columns),
                    share_of(matrix.zeros, weights),
                    format!("{:.3}", matrix.relative_error),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        writeln!(f, "{}", self.output.display())?;
        write!(f, "{}", self.pruned)?;
        if let Some(Perplexities { before, after }) = self.perplexity {
            let change = terminal::percent_change(after, before);
            writeln!(
                f,
                "perplexity {before:.3} before, {after:.3} after: {change}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kept;
    use super::*;
    use niwaki_convert::plan::LeftNode;
    use niwaki_convert::prune::PrunedMatrix;

    #[test]
    fn a_provenance_says_how_many_matrices_were_pruned_where_not_all_were() {
        let amount = PruneAmount {
            sparsity: None,
            keep: Some(Kept { kept: 2, of: 4 }),
            calibration: Some(PathBuf::from("texts/tales.txt")),
            calibration_tokens: None,
        };
        let matrix = PrunedMatrix {
            node: "a".to_owned(),
            rows: 4,
            columns: 8,
            zeros: 16,
            relative_error: 0.1,
        };
        let mut report = PruneReport {
            pruned: vec![matrix],
            ..PruneReport::default()
        };
        let told = |report: &PruneReport| {
            let (weights, zeros) = report.weights_and_zeros();
            let outcome = Outcome::Zeros {
                weights,
                zeros,
                report: report.clone(),
            };
            let pruned = Pruned::new(outcome, Method::Wanda, &amount, Some(99));
            (pruned.provenance(), pruned.to_string())
        };
        let (provenance, text) = told(&report);
        assert_eq!(provenance["prune"], "wanda 2:4");
        assert_eq!(provenance["calibration"], "99 tokens of tales.txt");
        assert!(text.contains("8 192 were asked for"), "{text}");
        report.left.push(LeftNode {
            node: "b".to_owned(),
            reason: "it is odd".to_owned(),
        });
        let (provenance, text) = told(&report);
        assert_eq!(provenance["prune"], "wanda 2:4, 1 of 2 matrices");
        assert!(text.contains("left as it is: b: it is odd"), "{text}");
    }
}
