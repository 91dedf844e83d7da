//! A bundle's quality report, for the person who decides whether to ship it.
//!
//! - here: the report as a bundle holds it, and what follows from it
//! - `markdown`, `page`: two views of it; `plots`: what the page draws
//!
//! A bundle comes from anywhere. Nothing of its report is trusted: names are made plain, numbers bounded before they are
//! drawn, and the page escapes all text.

mod markdown;
mod page;
mod plots;

use super::error::CommandError;
use super::staging::Staging;
use niwaki_bundle::{Bundle, Manifest, SectionKind};
use niwaki_convert::build::QualityReport;
use std::path::Path;

/// A report, and what the bundle says of itself.
pub(super) struct Report {
    manifest: Manifest,
    report: QualityReport,
    /// The whole bundle.
    size_bytes: u64,
    /// What of it holds the tokenizer.
    tokenizer_bytes: u64,
    /// What of it holds vectors: norms and biases.
    vectors_bytes: u64,
}

impl Report {
    /// The report of the bundle that was read from `path`.
    ///
    /// # Errors
    /// When it has none, or one that this version does not understand.
    pub(super) fn of(bundle: &Bundle, path: &Path) -> Result<Report, CommandError> {
        let stored = bundle.quality_report();
        let broken = |reason: String| CommandError::Report {
            path: path.to_owned(),
            reason,
        };
        let stored = stored.map_err(|error| broken(error.to_string()))?;
        let stored = stored.ok_or_else(|| CommandError::NoReport {
            path: path.to_owned(),
        })?;
        let report = serde_json::from_value(stored).map_err(|error| broken(error.to_string()))?;
        let header = bundle.header();
        let tokenizer = header
            .sections
            .iter()
            .find(|section| section.kind == SectionKind::Tokenizer);
        let vectors = bundle.weight_table().vectors.iter();
        Ok(Report {
            manifest: bundle.manifest().clone(),
            report,
            size_bytes: header.bundle_bytes,
            tokenizer_bytes: tokenizer.map_or(0, |section| section.length),
            vectors_bytes: vectors
                .map(|vector| (vector.len as u64).saturating_mul(size_of::<f32>() as u64))
                .fold(0, u64::saturating_add),
        })
    }

    /// The report as it is stored.
    pub(super) fn stored(&self) -> &QualityReport {
        &self.report
    }

    /// Writes the page, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write_page(&self, path: &Path) -> Result<(), CommandError> {
        let write = || {
            let staging = Staging::new(path)?;
            std::fs::write(staging.path(), page::page(self).into_string())?;
            staging.publish()
        };
        write().map_err(CommandError::write(path))
    }

    /// What the bundle's bytes are for: matrices by kind, and the rest.
    fn sizes(&self) -> Vec<(String, u64)> {
        let mut sizes: Vec<(String, u64)> = vec![];
        for group in self.report.groups() {
            let kind = plain(&group.like.kind);
            match sizes.iter_mut().find(|(held, _)| *held == kind) {
                Some((_, size_bytes)) => *size_bytes = size_bytes.saturating_add(group.size_bytes),
                None => sizes.push((kind, group.size_bytes)),
            }
        }
        sizes.push(("norms, biases".to_owned(), self.vectors_bytes));
        sizes.push(("tokenizer".to_owned(), self.tokenizer_bytes));
        let told = sizes
            .iter()
            .map(|(_, size_bytes)| *size_bytes)
            .fold(0, u64::saturating_add);
        sizes.push(("all else".to_owned(), self.size_bytes.saturating_sub(told)));
        sizes.retain(|(_, size_bytes)| *size_bytes > 0);
        sizes
    }

    /// The options that the bundle was made with, as a recipe file.
    fn recipe(&self) -> String {
        let value = |text: &String| match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => toml::Value::Integer(whole),
            (_, Ok(number)) if number.is_finite() => toml::Value::Float(number),
            _ => toml::Value::String(plain(text)),
        };
        let recipe = self.report.made.recipe.iter();
        let table: toml::Table = recipe
            .map(|(name, text)| (plain(name), value(text)))
            .collect();
        table.to_string()
    }
}

/// Text without what would move a terminal's cursor or turn its direction of writing.
fn plain(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '\u{23ce}',
        c if is_odd(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(visible).collect()
}

/// The same of several lines.
fn plain_lines(text: &str) -> String {
    let visible = |c: char| match c {
        c if c != '\n' && is_odd(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(visible).collect()
}

fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
