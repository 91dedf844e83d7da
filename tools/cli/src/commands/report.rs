//! A bundle's quality report as Markdown.

use crate::terminal;
use niwaki_bundle::Manifest;
use niwaki_convert::build::{QualityReport, StoredMatrices, Tried};
use std::fmt;

/// A report, and what the bundle says of itself.
pub(super) struct Report<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) report: &'a QualityReport,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { manifest, report } = self;
        let quality = &report.quality;
        writeln!(f, "# Quality of {}\n", manifest.name)?;
        writeln!(
            f,
            "{} parameters, mostly {}. Measured beside the float model on {} tokens that no quantizer had seen.\n",
            terminal::count(manifest.parameters),
            manifest.weights,
            terminal::count(quality.tokens as u64)
        )?;
        writeln!(f, "| | float | this bundle |\n|---|---:|---:|")?;
        writeln!(
            f,
            "| perplexity | {:.2} | {:.2} ({}) |",
            quality.reference_perplexity,
            quality.perplexity,
            terminal::percent_change(quality.perplexity, quality.reference_perplexity)
        )?;
        let error = quality.kl_nats_standard_error;
        let error = error
            .map(|error| format!(" ± {error:.4}"))
            .unwrap_or_default();
        writeln!(
            f,
            "| KL to the float model, nats a token | 0 | {:.4}{error} |",
            quality.kl_nats
        )?;
        writeln!(
            f,
            "| most likely token is the float model's | 100 % | {:.1} % |",
            100.0 * quality.top1_agreement
        )?;

        writeln!(f, "\n## How it is stored\n")?;
        writeln!(
            f,
            "| matrices | count | weights | size | stored as | by | because |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---|---|---|")?;
        for line in &report.stored {
            let StoredMatrices {
                kind,
                matrices,
                weights,
                size_bytes,
                format,
                method,
                reason,
            } = line;
            let (weights, size) = (terminal::count(*weights), terminal::bytes(*size_bytes));
            writeln!(
                f,
                "| {kind} | {matrices} | {weights} | {size} | {format} | {method} | {reason} |"
            )?;
        }

        writeln!(f, "\n## What was tried\n")?;
        writeln!(f, "| | KL, nats a token | size |\n|---|---:|---:|")?;
        for Tried {
            what,
            kl_nats,
            size_bytes,
        } in &report.tried
        {
            writeln!(
                f,
                "| {what} | {kl_nats:.4} | {} |",
                terminal::bytes(*size_bytes)
            )?;
        }

        writeln!(f, "\n## How it was made\n")?;
        writeln!(f, "- {}", manifest.provenance.tool)?;
        for source in &manifest.provenance.sources {
            writeln!(
                f,
                "- of {}, {}, BLAKE3 {}",
                source.name,
                terminal::bytes(source.size_bytes),
                source.blake3
            )?;
        }
        for (name, value) in &manifest.provenance.options {
            writeln!(f, "- {name}: {value}")?;
        }
        Ok(())
    }
}
