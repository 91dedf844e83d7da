//! A quality report as one HTML page that needs nothing else: no script, no font, no network.

use super::plots::{self, Axes, Bar, Point, Series, bars, points};
use super::{Report, plain, plain_lines};
use crate::terminal;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use niwaki_convert::build::{Continuation, PrunedBefore};

const STYLE: &str = include_str!("page.css");

/// Even if text got through unescaped, the browser would load and run nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page. All text of the bundle is escaped where it stands.
pub(super) fn page(report: &Report) -> Markup {
    let name = plain(&report.manifest.name);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "Quality of " (name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Quality of " (name) }
                (figures(report))
                (damage(report))
                (said(report))
                (stored(report))
                (tried(report))
                (making(report))
                (matrices(report))
            }
        }
    }
}

fn figures(report: &Report) -> Markup {
    let (manifest, quality) = (&report.manifest, &report.report.quality);
    let error = quality
        .kl_nats_standard_error
        .map(|error| format!(" ±\u{a0}{error:.4}"));
    html! {
        p class="soft" {
            (terminal::count(manifest.parameters)) " parameters, mostly " (plain(&manifest.weights))
            ". Measured beside the float model on " (terminal::count(quality.tokens as u64))
            " tokens that no quantizer had seen."
        }
        div class="figures" {
            div { "Size" b { (terminal::bytes(report.size_bytes)) } span class="soft" { "the whole file" } }
            div {
                "Perplexity"
                b { (terminal::percent_change(quality.perplexity, quality.reference_perplexity)) }
                span class="soft" { (format!("{:.2}, the float model's is {:.2}", quality.perplexity, quality.reference_perplexity)) }
            }
            div {
                "KL to the float model"
                b { (format!("{:.4}", quality.kl_nats)) }
                span class="soft" { "nats a token" @if let Some(error) = error { "," (error) } }
            }
            div {
                "Same most likely token"
                b { (format!("{:.1} %", 100.0 * quality.top1_agreement)) }
                span class="soft" { "of the predictions" }
            }
        }
        @for note in &report.report.notes {
            p { strong { "Note: " } (plain(note)) }
        }
    }
}

fn damage(report: &Report) -> Markup {
    let stored = &report.report;
    let damage = &stored.damage;
    let steps = [
        ("rounded weights", damage.weights_nats),
        ("int8 activations add", damage.activations_nats),
        ("the cache of keys and values adds", damage.cache_nats),
    ];
    let steps = steps.map(|(name, nats)| Bar {
        name: name.to_owned(),
        value: nats,
        told: format!("{nats:.4}"),
    });
    let errors = stored.matrices.iter().filter_map(|matrix| {
        let (layer, error) = matrix.layer.zip(matrix.relative_error)?;
        let point = Point {
            x: layer as f64,
            y: 100.0 * error,
            told: format!("{}: {:.2} %", plain(&matrix.name), 100.0 * error),
        };
        Some((plain(&matrix.kind), point))
    });
    let mut series = plots::by_name(errors);
    let means = stored.layer_errors().into_iter();
    series.push(Series {
        name: "the layer".to_owned(),
        points: means
            .map(|(layer, error)| Point {
                x: layer as f64,
                y: 100.0 * error,
                told: String::new(),
            })
            .collect(),
        is_line: true,
    });
    let axes = Axes {
        label: "Error of products by layer",
        x: "layer",
        y: "error, %",
        x_from_zero: true,
        x_is_whole: true,
    };
    html! {
        h2 { "Where the divergence comes from" }
        div class="plots" {
            figure {
                h3 { "By what is rounded" }
                (bars("KL by what is rounded", &steps))
                figcaption { "KL in nats a token that each step adds to those above it; together the bundle's. A step may take back a little." }
            }
            @if series.len() > 1 {
                figure {
                    h3 { "By layer" }
                    (points(&axes, &series))
                    figcaption {
                        "What rounding weights does to the products of each matrix: root mean square of the error over that of the "
                        "product, on inputs of the float model. The line is the root mean square of a layer's matrices."
                    }
                }
            }
        }
    }
}

fn said(report: &Report) -> Markup {
    let continuations = &report.report.continuations;
    html! {
        @if !continuations.is_empty() {
            h2 { "What it says" }
            p class="soft" { "Both take the most likely token every time. Marked from where they part." }
        }
        @for Continuation { prompt, reference, bundle, equal_tokens, tokens } in continuations {
            p class="given" { (plain(prompt)) "\u{a0}…" }
            @let (reference, bundle) = (reference.trim_start(), bundle.trim_start());
            @let parted = common_bytes(reference, bundle);
            div class="said" {
                @for (who, text) in [("float model", reference), ("this bundle", bundle)] {
                    div {
                        small { (who) }
                        (plain_lines(&text[..parted]))
                        @if parted < text.len() { mark { (plain_lines(&text[parted..])) } }
                    }
                }
            }
            p class="soft" { (equal_tokens) " of " (tokens) " tokens are the same before they part." }
        }
    }
}

/// Length of the beginning that two texts share.
fn common_bytes(a: &str, b: &str) -> usize {
    let pairs = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    pairs.map(|(a, _)| a.len_utf8()).sum()
}

fn stored(report: &Report) -> Markup {
    let share = |size_bytes: u64| 100.0 * size_bytes as f64 / report.size_bytes.max(1) as f64;
    let sizes: Vec<Bar> = report
        .sizes()
        .into_iter()
        .map(|(name, size_bytes)| Bar {
            name,
            value: size_bytes as f64,
            told: format!(
                "{}, {:.1} %",
                terminal::bytes(size_bytes),
                share(size_bytes)
            ),
        })
        .collect();
    html! {
        h2 { "How it is stored" }
        div class="plots" {
            figure {
                h3 { "Size by what it is for" }
                (bars("Size by what it is for", &sizes))
            }
            figure {
                h3 { "Formats" }
                @for group in report.report.groups() {
                    p {
                        strong { (plain(&group.like.kind)) } ": " (plain(&group.like.format)) ", "
                        (terminal::bytes(group.size_bytes)) " "
                        span class="soft" {
                            "in " (group.matrices) @if group.matrices == 1 { " matrix" } @else { " matrices" }
                            ", by " (plain(&group.like.method)) "; " (plain(&group.like.reason))
                        }
                    }
                }
            }
        }
    }
}

fn tried(report: &Report) -> Markup {
    let stored = &report.report;
    let megabytes = |size_bytes: u64| size_bytes as f64 / 1e6;
    let others = stored.tried.iter().map(|tried| Point {
        x: megabytes(tried.size_bytes),
        y: tried.kl_nats,
        told: format!("{}: {:.4} nats", plain(&tried.what), tried.kl_nats),
    });
    let series = [
        Series {
            name: "tried".to_owned(),
            points: others.collect(),
            is_line: false,
        },
        Series {
            name: "this bundle".to_owned(),
            points: vec![Point {
                x: megabytes(report.size_bytes),
                y: stored.quality.kl_nats,
                told: format!("this bundle: {:.4} nats", stored.quality.kl_nats),
            }],
            is_line: false,
        },
    ];
    let axes = Axes {
        label: "What was tried: size against KL",
        x: "MB",
        y: "KL, nats a token",
        x_from_zero: false,
        x_is_whole: false,
    };
    html! {
        h2 { "What was tried" }
        p { "Chosen: " strong { (plain(&stored.chosen)) } "." }
        div class="plots" {
            @if stored.tried.len() > 1 {
                figure {
                    h3 { "Size against KL" }
                    (points(&axes, &series))
                }
            }
            figure {
                div class="scroll" {
                    table {
                        tr { th { "tried" } th class="n" { "KL, nats" } th class="n" { "size" } }
                        @for tried in &stored.tried {
                            tr {
                                td { (plain(&tried.what)) }
                                td class="n" { (format!("{:.4}", tried.kl_nats)) }
                                td class="n" { (terminal::bytes(tried.size_bytes)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn making(report: &Report) -> Markup {
    let (made, provenance) = (&report.report.made, &report.manifest.provenance);
    html! {
        h2 { "How it was made" }
        @if !made.command.is_empty() { pre { (plain_lines(&made.command)) } }
        div class="scroll" {
            table {
                tr { td { "made by" } td { (plain(&provenance.tool)) } }
                @for (name, value) in &provenance.options {
                    tr { td { (plain(name)) } td { (plain(value)) } }
                }
            }
        }
        @if let Some(pruned) = &made.pruned { (was_pruned(pruned)) }
        @if !made.recipe.is_empty() {
            details { summary { "The same as a recipe" } pre { (report.recipe()) } }
        }
        details {
            summary { "Files that it was made of" }
            @for source in &made.inputs {
                p {
                    strong { (plain(&source.name)) } ", " (terminal::bytes(source.size_bytes)) br;
                    code { "BLAKE3 " (plain(&source.blake3)) }
                }
            }
        }
    }
}

fn was_pruned(pruned: &PrunedBefore) -> Markup {
    html! {
        p { "Before that: " (plain(&pruned.summary)) }
        @if !pruned.matrices.is_empty() {
            details {
                summary { "Zeros by matrix" }
                div class="scroll" {
                    table {
                        @for (name, zeros) in &pruned.matrices {
                            tr { td { (plain(name)) } td class="n" { (terminal::count(*zeros)) } }
                        }
                    }
                }
            }
        }
    }
}

fn matrices(report: &Report) -> Markup {
    html! {
        h2 { "Every matrix" }
        details {
            summary { (report.report.matrices.len()) " matrices, with size and error" }
            div class="scroll" {
                table {
                    tr {
                        th { "matrix" } th { "for" } th class="n" { "shape" } th class="n" { "size" } th { "stored as" }
                        th class="n" { "error" }
                    }
                    @for matrix in &report.report.matrices {
                        tr {
                            td { (plain(&matrix.name)) }
                            td { (plain(&matrix.kind)) }
                            td class="n" { (matrix.rows) " x " (matrix.columns) }
                            td class="n" { (terminal::bytes(matrix.size_bytes)) }
                            td { (plain(&matrix.format)) }
                            td class="n" {
                                @if let Some(error) = matrix.relative_error { (format!("{:.2} %", 100.0 * error)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
