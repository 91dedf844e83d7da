//! A quality report as Markdown.

use super::{Report, plain};
use crate::terminal;
use niwaki_convert::build::{Continuation, StoredMatrices, StoredMatrix, Tried};
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.quality(f)?;
        self.damage(f)?;
        self.sizes_and_formats(f)?;
        self.tried(f)?;
        self.continuations(f)?;
        self.making(f)?;
        self.matrices(f)
    }
}

impl Report {
    fn quality(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (manifest, quality) = (&self.manifest, &self.report.quality);
        writeln!(f, "# Quality of {}\n", cell(&manifest.name))?;
        writeln!(
            f,
            "{} parameters, mostly {}, {}. Measured beside the float model on {} tokens that no quantizer had seen.\n",
            terminal::count(manifest.parameters),
            cell(&manifest.weights),
            terminal::bytes(self.size_bytes),
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
        for note in &self.report.notes {
            writeln!(f, "\nNote: {}", cell(note))?;
        }
        Ok(())
    }

    fn damage(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let damage = &self.report.damage;
        writeln!(f, "\n## Where the divergence comes from\n")?;
        writeln!(f, "| | KL, nats a token |\n|---|---:|")?;
        for (name, nats) in [
            ("rounded weights", damage.weights_nats),
            ("int8 activations add", damage.activations_nats),
            ("the cache of keys and values adds", damage.cache_nats),
        ] {
            writeln!(f, "| {name} | {nats:.4} |")?;
        }
        let layers = self.report.layer_errors();
        if !layers.is_empty() {
            writeln!(
                f,
                "\nError of each layer's products by rounded weights, root mean square over that of the products:\n"
            )?;
            writeln!(f, "| layer | error |\n|---:|---:|")?;
            for (layer, error) in layers {
                writeln!(f, "| {layer} | {:.2} % |", 100.0 * error)?;
            }
        }
        Ok(())
    }

    fn sizes_and_formats(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## How it is stored\n")?;
        writeln!(
            f,
            "| matrices | count | weights | size | stored as | by | because |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---|---|---|")?;
        for group in self.report.groups() {
            let StoredMatrices {
                like,
                matrices,
                weights,
                size_bytes,
            } = group;
            writeln!(
                f,
                "| {} | {matrices} | {} | {} | {} | {} | {} |",
                cell(&like.kind),
                terminal::count(weights),
                terminal::bytes(size_bytes),
                cell(&like.format),
                cell(&like.method),
                cell(&like.reason)
            )?;
        }
        writeln!(f, "\n| of the file | size |\n|---|---:|")?;
        for (name, size_bytes) in self.sizes() {
            writeln!(f, "| {} | {} |", cell(&name), terminal::bytes(size_bytes))?;
        }
        writeln!(f, "| together | {} |", terminal::bytes(self.size_bytes))
    }

    fn tried(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## What was tried\n")?;
        writeln!(f, "Chosen: {}.\n", cell(&self.report.chosen))?;
        writeln!(f, "| | KL, nats a token | size |\n|---|---:|---:|")?;
        for Tried {
            what,
            kl_nats,
            size_bytes,
        } in &self.report.tried
        {
            let size = terminal::bytes(*size_bytes);
            writeln!(f, "| {} | {kl_nats:.4} | {size} |", cell(what))?;
        }
        Ok(())
    }

    fn continuations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.report.continuations.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## What it says\n")?;
        writeln!(f, "Each takes the most likely token every time.\n")?;
        writeln!(
            f,
            "| given | the float model | this bundle | equal tokens |\n|---|---|---|---:|"
        )?;
        for Continuation {
            prompt,
            reference,
            bundle,
            equal_tokens,
            tokens,
        } in &self.report.continuations
        {
            writeln!(
                f,
                "| {} | {} | {} | {equal_tokens} of {tokens} |",
                cell(prompt),
                cell(reference),
                cell(bundle)
            )?;
        }
        Ok(())
    }

    fn making(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (made, provenance) = (&self.report.made, &self.manifest.provenance);
        writeln!(f, "\n## How it was made\n")?;
        if !made.command.is_empty() {
            writeln!(f, "    {}\n", plain(&made.command))?;
        }
        writeln!(f, "- {}", cell(&provenance.tool))?;
        for (name, value) in &provenance.options {
            writeln!(f, "- {}: {}", cell(name), cell(value))?;
        }
        if let Some(pruned) = &made.pruned {
            writeln!(f, "- {}", cell(&pruned.summary))?;
        }
        if !made.inputs.is_empty() {
            writeln!(f, "\n| made of | size | BLAKE3 |\n|---|---:|---|")?;
        }
        for source in &made.inputs {
            let size = terminal::bytes(source.size_bytes);
            let (name, hash) = (cell(&source.name), cell(&source.blake3));
            writeln!(f, "| {name} | {size} | {hash} |")?;
        }
        if !made.recipe.is_empty() {
            writeln!(f, "\nThe same as a recipe:\n")?;
            for line in self.recipe().lines() {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }

    fn matrices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## Every matrix\n")?;
        writeln!(
            f,
            "| matrix | for | shape | size | stored as | error |\n|---|---|---:|---:|---|---:|"
        )?;
        for matrix in &self.report.matrices {
            let StoredMatrix {
                name,
                kind,
                rows,
                columns,
                size_bytes,
                format,
                relative_error,
                ..
            } = matrix;
            let error = relative_error
                .map(|error| format!("{:.2} %", 100.0 * error))
                .unwrap_or_default();
            let size = terminal::bytes(*size_bytes);
            let (name, kind, format) = (cell(name), cell(kind), cell(format));
            writeln!(
                f,
                "| {name} | {kind} | {rows} x {columns} | {size} | {format} | {error} |"
            )?;
        }
        Ok(())
    }
}

/// Text as it can stand in a cell of a table.
fn cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in plain(text).chars() {
        if matches!(c, '|' | '<' | '`' | '[' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
