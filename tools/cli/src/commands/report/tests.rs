//! Reports of bundles that nobody vouches for.

use super::*;
use niwaki_bundle::SourceFile;
use niwaki_convert::build::{
    Continuation, Damage, Made, PrunedBefore, Quality, StoredMatrix, Tried,
};
use std::collections::BTreeMap;

/// Markup, a terminal's escape sequence, a table's bar and a turn of the direction of writing.
const HOSTILE: &str =
    "<script>alert(1)</script>\"'><img src=x onerror=y>\u{1b}[2J|\u{202e}&amp;\n# x";

/// A report that says this everywhere, and has these numbers.
fn report(text: &str, number: f64, size: u64) -> Report {
    let text = text.to_owned();
    let matrix = |layer| StoredMatrix {
        name: text.clone(),
        kind: text.clone(),
        layer,
        rows: usize::MAX,
        columns: usize::MAX,
        size_bytes: size,
        format: text.clone(),
        method: text.clone(),
        reason: text.clone(),
        relative_error: Some(number),
    };
    Report {
        manifest: Manifest {
            name: text.clone(),
            weights: text.clone(),
            ..Manifest::default()
        },
        size_bytes: size,
        tokenizer_bytes: size,
        vectors_bytes: size,
        report: QualityReport {
            quality: Quality {
                tokens: usize::MAX,
                kl_nats: number,
                kl_nats_standard_error: Some(number),
                top1_agreement: number,
                reference_perplexity: number,
                perplexity: number,
            },
            damage: Damage {
                weights_nats: number,
                activations_nats: -number,
                cache_nats: number,
            },
            chosen: text.clone(),
            tried: vec![Tried {
                what: text.clone(),
                kl_nats: number,
                size_bytes: size,
            }],
            matrices: vec![matrix(None), matrix(Some(0)), matrix(Some(usize::MAX))],
            continuations: vec![Continuation {
                prompt: text.clone(),
                reference: text.clone(),
                bundle: format!("{text}é"),
                equal_tokens: 3,
                tokens: 2,
            }],
            notes: vec![text.clone()],
            made: Made {
                command: text.clone(),
                recipe: BTreeMap::from([(text.clone(), text.clone())]),
                inputs: vec![SourceFile {
                    name: text.clone(),
                    size_bytes: size,
                    blake3: text.clone(),
                }],
                pruned: Some(PrunedBefore {
                    summary: text.clone(),
                    matrices: BTreeMap::from([(text, size)]),
                }),
            },
        },
    }
}

#[test]
fn no_text_of_a_bundle_becomes_markup() {
    let honest = page::page(&report("plain", 0.25, 1000)).into_string();
    let hostile = page::page(&report(HOSTILE, 0.25, 1000)).into_string();
    let tags = |page: &str| page.matches('<').count();
    assert_eq!(tags(&hostile), tags(&honest));
    assert_eq!(hostile.matches('>').count(), honest.matches('>').count());
    assert!(hostile.contains("&lt;script&gt;"));
    assert!(!hostile.contains("<script") && !hostile.contains("<img"));
    // Inside attributes quotes would end the value.
    assert_eq!(hostile.matches('"').count(), honest.matches('"').count());
    for page in [&honest, &hostile] {
        assert!(!page.contains("://"), "the page needs nothing else");
    }
}

#[test]
fn no_text_of_a_bundle_moves_the_terminal_or_breaks_a_table() {
    let count = |text: &str| report(text, 0.25, 1000).to_string().lines().count();
    // The recipe's file quotes what is not plain.
    assert_eq!(count(HOSTILE), count("plain"));
    let told = report(HOSTILE, 0.25, 1000).to_string();
    assert!(told.chars().all(|c| c == '\n' || !is_odd(c)), "{told:?}");
    assert!(
        told.contains("\\|") && told.contains("\\<script>"),
        "{told}"
    );
}

#[test]
fn numbers_of_any_size_are_told() {
    for number in [0.0, -1.0, f64::MAX, f64::MIN_POSITIVE, f64::NAN] {
        for size in [0, 1, u64::MAX] {
            let report = report("plain", number, size);
            let page = page::page(&report).into_string();
            assert!(!page.contains("=\"NaN") && !page.contains("=\"inf"));
            assert!(page.len() < 100_000 && report.to_string().len() < 100_000);
        }
    }
}
