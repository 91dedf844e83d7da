//! From an export to a bundle: lower the graph, quantize and pack its matrices, write the file.

use crate::export::{Export, ExportError};
use crate::lower::{self, LeftOver, LowerError, Lowered, Matrix, RowsOut};
use crate::onnx::{OnnxError, OnnxModel};
use crate::quantize::{self, Bits, QuantizeError, ScaleGrid, WeightRows};
use niwaki_bundle::graph::Op;
use niwaki_bundle::write::{BundleWriter, WriteError};
use niwaki_bundle::{GenerationDefaults, Manifest, Provenance, SourceFile};
use niwaki_kernels::{Element, LayoutError, MatrixFormat, pack};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a bundle stores the matrices that the export stores as floats. Matrices that the export has already
/// quantized are always kept to the last bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// 4-bit integers in blocks of 32, rounded to nearest.
    Int4,
    /// 8-bit integers in blocks of 32, rounded to nearest.
    Int8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// As the export stores them.
    AsStored,
    /// What the export computes, for comparisons with other runtimes: quantized weights as the floats they stand for,
    /// activations rounded where the export rounds them. Larger and slower than any other choice.
    AsExported,
}

impl Weights {
    /// The name that the command line and the manifest use.
    pub fn name(self) -> &'static str {
        match self {
            Weights::Int4 => "int4",
            Weights::Int8 => "int8",
            Weights::F16 => "f16",
            Weights::F32 => "f32",
            Weights::AsStored => "as-stored",
            Weights::AsExported => "as-exported",
        }
    }
}

/// Why no bundle was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The export folder is incomplete.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The ONNX file cannot be read.
    #[error("the ONNX model cannot be read")]
    Onnx(#[from] OnnxError),
    /// The graph does not lower.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A matrix cannot be quantized.
    #[error("a weight cannot be quantized")]
    Quantize(#[from] QuantizeError),
    /// A matrix cannot be packed.
    #[error("matrix {name} cannot be packed")]
    Layout {
        /// The matrix.
        name: String,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// A weight is too large for half precision.
    #[error(
        "matrix {name} has a weight of {value} in row {row}, which f16 cannot hold; choose int8, int4 or f32"
    )]
    TooLargeForHalf {
        /// The matrix.
        name: String,
        /// The row.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// The bundle cannot be written.
    #[error("the bundle cannot be written")]
    Pack(#[from] WriteError),
    /// A source file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl BuildError {
    /// The nodes that did not lower, when that is the reason.
    pub fn not_lowered(&self) -> Option<&[LeftOver]> {
        match self {
            BuildError::Lower(LowerError::NotLowered(left)) => Some(left),
            _ => None,
        }
    }
}

/// What was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Size of the bundle.
    pub size_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// How most weights are stored.
    pub weights: String,
    /// How the export was read, where a person should know.
    pub notes: Vec<String>,
    /// The export itself returns the logits of the last token only.
    pub last_token_only: bool,
}

/// Rows that are converted at a time; a multiple of the packing's groups of 16.
const ROWS_AT_A_TIME: usize = 256;

/// Builds the bundle at `output` from the export at `path` (its folder or ONNX file). Configuration and tokenizer
/// come from `companions` where given, else from beside the model. `progress` is told the share that is done.
pub fn build(
    path: &Path,
    companions: Option<&Path>,
    output: &Path,
    weights: Weights,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let mut export = Export::open(path)?;
    if let Some(companions) = companions {
        export = Export {
            model: export.model,
            ..Export::companions(companions)?
        };
    }
    let graph = export.model.clone();
    build_from(&export, &graph, output, weights, BTreeMap::new(), progress)
}

/// Builds the bundle of an export from another form of its model, the ONNX file at `graph`. `options` say how that was
/// made, for the bundle's provenance.
pub fn build_from(
    export: &Export,
    graph: &Path,
    output: &Path,
    weights: Weights,
    mut options: BTreeMap<String, String>,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let mut model = OnnxModel::open(graph)?;
    model.inline_functions()?;
    options.insert("weights".to_owned(), weights.name().to_owned());
    let facts = export.facts();
    let lowered = match weights {
        Weights::AsExported => match lower::lower(&model, &facts, lower::Rounding::Export) {
            Err(LowerError::NotLowered(left)) => {
                let mut lowered = lower::lower(&model, &facts, lower::Rounding::Niwaki)?;
                if let Some(last) = left.last() {
                    lowered.notes.push(format!(
                        "activations are not rounded as the export rounds them: `{}`: {}",
                        last.node, last.reason
                    ));
                }
                lowered
            }
            result => result?,
        },
        _ => lower::lower(&model, &facts, lower::Rounding::Niwaki)?,
    };
    write(export, &lowered, output, weights, options, progress)
}

fn write(
    export: &Export,
    lowered: &Lowered,
    output: &Path,
    weights: Weights,
    options: BTreeMap<String, String>,
    progress: &mut dyn FnMut(f64),
) -> Result<Built, BuildError> {
    let mut notes = lowered.notes.clone();
    let mut writer = BundleWriter::create(output)?;
    let total: u64 = lowered.parts.matrices.iter().map(size).sum();
    let mut done = 0u64;
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for (id, matrix) in lowered.parts.matrices.iter().enumerate() {
        let positions = lowered
            .graph
            .nodes
            .iter()
            .any(|node| matches!(node.op, Op::PositionEmbed { table, .. } if table == id));
        let (format, reason) = choose_format(matrix, weights, positions);
        if let Some(reason) = reason {
            notes.push(format!(
                "{} is stored as {}: {reason}",
                matrix.name,
                format_name(&format)
            ));
        }
        *stored.entry(format_name(&format)).or_default() += size(matrix);
        write_matrix(&mut writer, matrix, format, &mut |rows| {
            done += (rows * matrix.cols()) as u64;
            progress(done as f64 / total.max(1) as f64);
        })?;
    }
    for (name, values) in &lowered.parts.vectors {
        writer.add_vector(name.clone(), values)?;
    }
    if let Some(tokenizer) = &export.tokenizer {
        writer.set_tokenizer(tokenizer.clone());
    }
    if let Some(template) = &export.chat_template {
        writer.set_chat_template(template);
    }
    writer.set_generation_defaults(&generation_defaults(export))?;
    let vectors: u64 = lowered
        .parts
        .vectors
        .iter()
        .map(|(_, values)| values.len() as u64)
        .sum();
    let parameters = total + vectors;
    let most = stored
        .iter()
        .max_by_key(|(_, count)| **count)
        .map_or("none", |(name, _)| name)
        .to_owned();
    let manifest = Manifest {
        name: model_name(export),
        architecture: export.architecture(),
        parameters,
        weights: most.clone(),
        licences: export.licences(),
        provenance: Provenance {
            tool: concat!("niwaki ", env!("CARGO_PKG_VERSION")).to_owned(),
            options,
            sources: vec![source_file(&export.model)?],
        },
    };
    let size_bytes = writer.finish(&manifest, &lowered.graph)?;
    Ok(Built {
        size_bytes,
        parameters,
        weights: most,
        notes,
        last_token_only: lowered.last_token_only,
    })
}

fn size(matrix: &Matrix) -> u64 {
    matrix.rows() as u64 * matrix.cols() as u64
}

/// The format of a matrix, and why it is not the one that was asked for.
fn choose_format(
    matrix: &Matrix,
    weights: Weights,
    positions: bool,
) -> (MatrixFormat, Option<&'static str>) {
    if weights == Weights::AsExported {
        return (MatrixFormat::F32, None);
    }
    if matrix.is_quantized() || weights == Weights::AsStored {
        return matrix.exact_format();
    }
    let format = match weights {
        // A table of positions is small and added to the residual stream as it is.
        Weights::Int4 | Weights::Int8 if positions => MatrixFormat::F16,
        Weights::Int4 => MatrixFormat::INT4,
        Weights::Int8 => MatrixFormat::INT8,
        Weights::F16 => MatrixFormat::F16,
        Weights::F32 | Weights::AsStored | Weights::AsExported => MatrixFormat::F32,
    };
    (format, None)
}

fn format_name(format: &MatrixFormat) -> String {
    match format.element {
        Element::F32 => "f32".to_owned(),
        Element::F16 => "f16".to_owned(),
        Element::Int8 => format!("int8, block {}", format.block),
        Element::Int4 => format!("int4, block {}", format.block),
    }
}

fn write_matrix(
    writer: &mut BundleWriter,
    matrix: &Matrix,
    format: MatrixFormat,
    progress: &mut dyn FnMut(usize),
) -> Result<(), BuildError> {
    let layout = |source| BuildError::Layout {
        name: matrix.name.clone(),
        source,
    };
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut output = writer
        .begin_matrix(matrix.name.clone(), format, rows, cols)?
        .with_origins(matrix.origins.clone());
    for first_row in (0..rows).step_by(ROWS_AT_A_TIME) {
        let range = first_row..(first_row + ROWS_AT_A_TIME).min(rows);
        let count = range.len();
        let bytes = match collect(matrix.read_rows(range, &format)) {
            RowsOut::Quantized {
                codes,
                scales,
                zero_points,
            } => pack::pack_int(format, count, cols, &codes, &scales, zero_points.as_deref())
                .map_err(layout)?,
            RowsOut::Real(values)
                if format.element == Element::Int4 || format.element == Element::Int8 =>
            {
                let bits = if format.element == Element::Int4 {
                    Bits::Four
                } else {
                    Bits::Eight
                };
                let rows = WeightRows {
                    name: &matrix.name,
                    first_row,
                    columns: cols,
                    values: &values,
                };
                let quantized = quantize::rtn::quantize_rows(&rows, bits, ScaleGrid::F16)?;
                pack::pack_int(
                    format,
                    count,
                    cols,
                    &quantized.integers,
                    &quantized.scales,
                    None,
                )
                .map_err(layout)?
            }
            RowsOut::Real(values) => {
                if format.element == Element::F16
                    && let Some(at) = values
                        .iter()
                        .position(|value| !half::f16::from_f32(*value).is_finite())
                {
                    let (row, value) = (first_row + at / cols.max(1), values[at]);
                    return Err(BuildError::TooLargeForHalf {
                        name: matrix.name.clone(),
                        row,
                        value,
                    });
                }
                pack::pack_float(format, count, cols, &values).map_err(layout)?
            }
        };
        output.write(&bytes)?;
        progress(count);
    }
    output.finish()?;
    Ok(())
}

/// Joins the rows of several sources.
fn collect(pieces: Vec<RowsOut>) -> RowsOut {
    pieces
        .into_iter()
        .reduce(|joined, next| match (joined, next) {
            (
                RowsOut::Quantized {
                    mut codes,
                    mut scales,
                    zero_points,
                },
                RowsOut::Quantized {
                    codes: more_codes,
                    scales: more_scales,
                    zero_points: more_zeros,
                },
            ) => {
                codes.extend(more_codes);
                scales.extend(more_scales);
                let zero_points = zero_points.zip(more_zeros).map(|(mut held, more)| {
                    held.extend(more);
                    held
                });
                RowsOut::Quantized {
                    codes,
                    scales,
                    zero_points,
                }
            }
            (RowsOut::Real(mut values), RowsOut::Real(more)) => {
                values.extend(more);
                RowsOut::Real(values)
            }
            // Stacked sources share a format, so both are of one kind; the packing checks the count.
            (joined, _) => joined,
        })
        .unwrap_or(RowsOut::Real(vec![]))
}

fn generation_defaults(export: &Export) -> GenerationDefaults {
    let search = &export.genai_config["search"];
    let config = &export.generation_config;
    let sampled = config["do_sample"]
        .as_bool()
        .or(search["do_sample"].as_bool());
    let number = |name: &str| {
        config[name]
            .as_f64()
            .or(search[name].as_f64())
            .map(|value| value as f32)
    };
    GenerationDefaults {
        bos_token: export.begin_token_id(),
        add_bos_token: export.adds_begin_token(),
        eos_tokens: export.end_token_ids(),
        temperature: if sampled == Some(false) {
            Some(0.0)
        } else {
            number("temperature")
        },
        top_k: config["top_k"]
            .as_u64()
            .or(search["top_k"].as_u64())
            .and_then(|k| usize::try_from(k).ok()),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty").filter(|factor| *factor != 1.0),
        special_tokens: export.special_tokens(),
    }
}

fn model_name(export: &Export) -> String {
    let own = export.config["_name_or_path"]
        .as_str()
        .filter(|name| !name.is_empty() && !name.contains('/'));
    let folder = export
        .model
        .parent()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    own.map(str::to_owned)
        .or(folder)
        .unwrap_or_else(|| export.architecture())
}

fn source_file(path: &Path) -> Result<SourceFile, BuildError> {
    let failed = |source| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let size_bytes = std::io::copy(&mut file, &mut hasher).map_err(failed)?;
    Ok(SourceFile {
        name: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        size_bytes,
        blake3: hasher.finalize().to_hex().to_string(),
    })
}
