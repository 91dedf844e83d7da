//! Tiny exports with the logits that onnxruntime computes for them.
//!
//! A folder per model: the export, `expected.npz` (arrays `CALL_ids` and `CALL_logits`, both `[1, tokens, ..]`) and
//! `model.json`, whose `tolerance` lists the ways of computing that count as right, each with its file of
//! expected logits and how far results may be off.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// The calls in the order they are made; `true` starts with an empty cache.
const CALLS: [(&str, bool); 7] = [
    ("prefill", true),
    ("dec0", false),
    ("dec1", false),
    ("dec2", false),
    ("long", true),
    ("chunk", false),
    ("longdec", false),
];

/// One export of the zoo.
#[derive(Clone, Debug)]
pub struct Export {
    /// Its folder.
    pub folder: PathBuf,
    tolerances: BTreeMap<String, Tolerance>,
}

/// How far logits may be off.
#[derive(Clone, Debug, Deserialize)]
struct Tolerance {
    file: String,
    /// Largest difference of one logit.
    #[serde(rename = "atol")]
    max: f64,
    /// Root of the mean square of all differences.
    rms: Option<f64>,
}

/// Arrays of an .npz file: rows of equal width.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// All rows, one after the other.
    pub values: Vec<f32>,
    /// Values in one row.
    pub width: usize,
}

/// All exports in a folder of folders, by name.
pub fn exports(folder: &Path) -> io::Result<Vec<Export>> {
    #[derive(Deserialize)]
    struct Model {
        tolerance: BTreeMap<String, Tolerance>,
    }
    let mut exports = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let folder = entry?.path();
        let description = folder.join("model.json");
        if description.is_file() {
            // Python writes NaN, which JSON does not know; none of it is in a tolerance.
            let text = std::fs::read_to_string(description)?.replace("NaN", "null");
            let model: Model = serde_json::from_str(&text)?;
            exports.push(Export {
                folder,
                tolerances: model.tolerance,
            });
        }
    }
    exports.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(exports)
}

impl Export {
    /// Its name: exporter, architecture and precision.
    pub fn name(&self) -> String {
        self.folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The calls in the form that `niwaki logits --calls` reads.
    pub fn calls_json(&self) -> io::Result<String> {
        let ids = read_npz::<i64>(&self.folder.join("expected.npz"), "_ids")?;
        let calls: Vec<_> = CALLS
            .iter()
            .filter_map(|(name, reset)| {
                let (_, ids) = ids.get(*name)?;
                Some(serde_json::json!({ "name": name, "ids": ids, "reset": reset }))
            })
            .collect();
        Ok(serde_json::Value::from(calls).to_string())
    }

    /// Compares what `niwaki logits` wrote with what is expected: `Ok` when one of the tolerances holds,
    /// else the differences.
    pub fn check(&self, logits: &BTreeMap<String, Array>) -> Result<(), String> {
        let mut report = Vec::new();
        for (scheme, tolerance) in &self.tolerances {
            match self.differences(logits, tolerance) {
                Ok(Differences { max, rms, flips })
                    if max <= tolerance.max && rms <= tolerance.rms.unwrap_or(f64::INFINITY) && flips == 0 =>
                {
                    return Ok(());
                }
                Ok(Differences { max, rms, flips }) => report.push(format!(
                    "[{scheme}] max {max:.2e} (allowed {:.2e}), rms {rms:.2e} (allowed {:?}), {flips} sure choices differ",
                    tolerance.max, tolerance.rms
                )),
                Err(problem) => report.push(format!("[{scheme}] {problem}")),
            }
        }
        Err(report.join("; "))
    }

    fn differences(
        &self,
        logits: &BTreeMap<String, Array>,
        tolerance: &Tolerance,
    ) -> Result<Differences, String> {
        let expected = read_npz::<f32>(&self.folder.join(&tolerance.file), "_logits")
            .map_err(|error| format!("{}: {error}", tolerance.file))?;
        let (mut max, mut squares, mut count, mut flips) = (0.0_f64, 0.0, 0_usize, 0);
        for (name, (width, expected)) in &expected {
            let actual = logits
                .get(name)
                .ok_or_else(|| format!("no logits for {name}"))?;
            if actual.width != *width || actual.values.len() < expected.len() {
                return Err(format!("{name} has another shape"));
            }
            // An export may give logits of the last tokens only.
            let actual = &actual.values[actual.values.len() - expected.len()..];
            for (actual, expected) in actual.chunks(*width).zip(expected.chunks(*width)) {
                for (a, e) in actual.iter().zip(expected) {
                    let difference = f64::from(a - e).abs();
                    // Not f64::max: it would lose NaN.
                    if difference.is_nan() || difference > max {
                        max = difference;
                    }
                    squares += difference * difference;
                    count += 1;
                }
                let (best, gap) = top_two(expected);
                if f64::from(gap) > 2.0 * tolerance.max && top_two(actual).0 != best {
                    flips += 1;
                }
            }
        }
        Ok(Differences {
            max,
            rms: (squares / count.max(1) as f64).sqrt(),
            flips,
        })
    }
}

struct Differences {
    max: f64,
    rms: f64,
    /// Rows whose most likely token differs though the expected one leads clearly.
    flips: usize,
}

/// Index of the highest value and its lead over the second.
fn top_two(row: &[f32]) -> (usize, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &value) in row.iter().enumerate() {
        if value > first {
            (best, second, first) = (index, first, value);
        } else if value > second {
            second = value;
        }
    }
    (best, first - second)
}

/// Reads what `niwaki logits` wrote.
pub fn read_logits(path: &Path) -> io::Result<BTreeMap<String, Array>> {
    let arrays = read_npz::<f32>(path, "")?;
    Ok(arrays
        .into_iter()
        .map(|(name, (width, values))| (name, Array { values, width }))
        .collect())
}

/// The arrays whose names end in `suffix`, by the rest of their names, each with its last dimension.
fn read_npz<T: npyz::Deserialize>(
    path: &Path,
    suffix: &str,
) -> io::Result<BTreeMap<String, (usize, Vec<T>)>> {
    let mut archive = npyz::npz::NpzArchive::new(BufReader::new(File::open(path)?))?;
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    let mut arrays = BTreeMap::new();
    for name in names {
        if let Some(short) = name.strip_suffix(suffix)
            && let Some(array) = archive.by_name(&name)?
        {
            let width = array
                .shape()
                .last()
                .copied()
                .and_then(|width| usize::try_from(width).ok());
            arrays.insert(short.to_owned(), (width.unwrap_or(0), array.into_vec()?));
        }
    }
    Ok(arrays)
}
