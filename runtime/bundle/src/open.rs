//! Opening a bundle: everything that is later relied on is checked here.

use super::error::{BundleError, Place};
use super::generation_defaults::GenerationDefaults;
use super::layout::{HEADER_BYTES, Header, SectionEntry, SectionKind};
use super::manifest::Manifest;
use super::map::Map;
use super::weight_table::WeightTable;
use crate::graph::{Graph, MatrixId, VectorId};
use niwaki_kernels::Matrix;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// How much of a bundle is compared with its hashes when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Every byte, and that all weights and scales are finite. Reads the whole file once.
    #[default]
    Full,
    /// Everything but the weights and the padding: for a file that was verified before and lies where
    /// nobody else writes.
    Structure,
}

/// An opened bundle: its small sections parsed, its weights mapped.
pub struct Bundle {
    map: Map,
    header: Header,
    manifest: Manifest,
    graph: Arc<Graph>,
    weight_table: WeightTable,
    matrix_ranges: Vec<Range<usize>>,
    vector_ranges: Vec<Range<usize>>,
    generation_defaults: GenerationDefaults,
    chat_template: Option<String>,
}

impl Bundle {
    /// Opens the bundle at `path`, which must hold nothing else.
    ///
    /// # Errors
    /// [`BundleError`] for a file that cannot be read or is not a valid bundle.
    pub fn open(path: impl AsRef<Path>, verify: Verify) -> Result<Bundle, BundleError> {
        let path = path.as_ref();
        Self::open_path(path, verify).map_err(|error| error.of_file(path))
    }

    fn open_path(path: &Path, verify: Verify) -> Result<Bundle, BundleError> {
        let file = File::open(path).map_err(io("open"))?;
        let length = file_bytes(&file)?;
        Self::open_file(&file, 0, Some(length), verify)
    }

    /// Opens a bundle that starts at `offset` of `file`: for example an uncompressed asset of an app package.
    ///
    /// `length` is the exact length of the bundle; with `None` the bundle's own length is taken and may be
    /// followed by other bytes.
    ///
    /// # Errors
    /// [`BundleError`] for a file that cannot be read or is not a valid bundle.
    pub fn open_file(
        file: &File,
        offset: u64,
        length: Option<u64>,
        verify: Verify,
    ) -> Result<Bundle, BundleError> {
        if !offset.is_multiple_of(4) {
            return Err(BundleError::Unaligned { offset });
        }
        let file_left = file_bytes(file)?.saturating_sub(offset);
        let available = length.map_or(file_left, |length| length.min(file_left));
        let map = map_part(file, offset, available)?;

        let copy = map
            .bytes()
            .iter()
            .take(HEADER_BYTES)
            .copied()
            .collect::<Vec<u8>>();
        let header = Header::decode(&copy, available)?;
        if let Some(length) = length
            && header.bundle_bytes != length
        {
            return Err(BundleError::invalid(
                Place::Header,
                16,
                format!(
                    "the bundle says it has {} bytes and the file gives it {length}",
                    header.bundle_bytes
                ),
            ));
        }
        if verify == Verify::Full {
            verify_all(&map, &header)?;
        }
        let bundle = Self::parse(map, header)?;
        if verify == Verify::Full {
            bundle.verify_finite()?;
        }
        Ok(bundle)
    }

    /// Refuses weights and scales that are not finite: nothing but nonsense is computed with them.
    fn verify_finite(&self) -> Result<(), BundleError> {
        let table = &self.weight_table;
        let matrices = table.matrices.iter().enumerate().map(|(id, entry)| {
            let finite = self.matrix(id).is_none_or(|matrix| matrix.is_finite());
            (&entry.name, entry.offset, finite)
        });
        let vectors = table.vectors.iter().enumerate().map(|(id, entry)| {
            let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
            (
                &entry.name,
                entry.offset,
                self.vector(id).is_none_or(finite),
            )
        });
        match matrices.chain(vectors).find(|(_, _, finite)| !finite) {
            None => Ok(()),
            Some((name, offset, _)) => {
                let kind = SectionKind::Weights;
                let start = self
                    .header
                    .section(kind)
                    .map_or(0, |section| section.offset);
                Err(BundleError::invalid(
                    Place::Section(kind),
                    start.saturating_add(offset),
                    format!("weights {name:?} hold a value or a scale that is not finite"),
                ))
            }
        }
    }

    fn parse(map: Map, header: Header) -> Result<Bundle, BundleError> {
        let manifest = required_json(&map, &header, SectionKind::Manifest)?;
        let weight_table: WeightTable = required_json(&map, &header, SectionKind::WeightTable)?;
        let table_at = header
            .section(SectionKind::WeightTable)
            .map_or(0, |s| s.offset);
        let weights = *header
            .section(SectionKind::Weights)
            .ok_or_else(|| missing(SectionKind::Weights))?;
        weight_table.check(weights.length).map_err(|problem| {
            BundleError::invalid(Place::Section(SectionKind::WeightTable), table_at, problem)
        })?;
        let range = |offset: u64, length: u64| {
            absolute_range(&weights, offset, length).ok_or_else(|| {
                BundleError::invalid(
                    Place::Section(SectionKind::WeightTable),
                    table_at,
                    "a weight lies beyond the address space of this machine",
                )
            })
        };
        let matrix_ranges = weight_table
            .matrices
            .iter()
            .map(|matrix| range(matrix.offset, matrix.length))
            .collect::<Result<Vec<_>, _>>()?;
        let vector_ranges = weight_table
            .vectors
            .iter()
            .map(|vector| range(vector.offset, vector.len as u64 * 4))
            .collect::<Result<Vec<_>, _>>()?;

        let graph: Graph = required_json(&map, &header, SectionKind::Graph)?;
        let graph_at = header.section(SectionKind::Graph).map_or(0, |s| s.offset);
        graph
            .check(&weight_table)
            .map_err(|source| BundleError::Graph {
                offset: graph_at,
                source,
            })?;

        let generation_defaults: GenerationDefaults =
            optional_json(&map, &header, SectionKind::GenerationDefaults)?.unwrap_or_default();
        let chat_template = match section_bytes(&map, &header, SectionKind::ChatTemplate)? {
            None => None,
            Some((entry, bytes)) => Some(String::from_utf8(bytes).map_err(|error| {
                BundleError::invalid(
                    Place::Section(entry.kind),
                    entry.offset + error.utf8_error().valid_up_to() as u64,
                    "the text is not UTF-8",
                )
            })?),
        };
        Ok(Bundle {
            map,
            header,
            manifest,
            graph: Arc::new(graph),
            weight_table,
            matrix_ranges,
            vector_ranges,
            generation_defaults,
            chat_template,
        })
    }

    /// What the model is and how it was made.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The lowered graph, checked against the weights.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Where the weights lie.
    pub fn weight_table(&self) -> &WeightTable {
        &self.weight_table
    }

    /// The header with the section table.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How to generate when the caller does not say; empty when the bundle does not say either.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation_defaults
    }

    /// The chat template, when there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The bytes of tokenizer.json, copied out and compared with their hash; `None` when there is none.
    ///
    /// # Errors
    /// [`BundleError::HashMismatch`] when the file changed since it was opened.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, BundleError> {
        Ok(section_bytes(&self.map, &self.header, SectionKind::Tokenizer)?.map(|(_, bytes)| bytes))
    }

    /// The quality report, when there is one.
    ///
    /// # Errors
    /// [`BundleError`] when it is not JSON or the file changed since it was opened.
    pub fn quality_report(&self) -> Result<Option<serde_json::Value>, BundleError> {
        optional_json(&self.map, &self.header, SectionKind::QualityReport)
    }

    /// A matrix of the weight table, borrowed from the mapping; `None` for an id that is not in the table.
    pub fn matrix(&self, id: MatrixId) -> Option<Matrix<'_>> {
        let entry = self.weight_table.matrices.get(id)?;
        let bytes = self.map.bytes().get(self.matrix_ranges.get(id)?.clone())?;
        entry.view(bytes)
    }

    /// A vector of the weight table, borrowed from the mapping; `None` for an id that is not in the table.
    pub fn vector(&self, id: VectorId) -> Option<&[f32]> {
        self.map.f32s(self.vector_ranges.get(id)?.clone())
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle")
            .field("name", &self.manifest.name)
            .field("header", &self.header)
            .finish()
    }
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> BundleError {
    move |source| BundleError::Io {
        action,
        path: None,
        source,
    }
}

fn file_bytes(file: &File) -> Result<u64, BundleError> {
    Ok(file.metadata().map_err(io("measure"))?.len())
}

fn map_part(file: &File, offset: u64, available: u64) -> Result<Map, BundleError> {
    let too_large = || std::io::Error::other("it is larger than the address space of this machine");
    let length = usize::try_from(available)
        .ok()
        .filter(|length| isize::try_from(*length).is_ok())
        .ok_or_else(|| io("map")(too_large()))?;
    if length == 0 {
        // Some systems refuse to map nothing; an empty file is no bundle anyway.
        return Err(BundleError::NotABundle);
    }
    Map::new(file, offset, length).map_err(io("map"))
}

/// The bytes of a section that [`Header::decode`] found to lie inside the bundle.
fn mapped<'a>(map: &'a Map, entry: &SectionEntry) -> Result<&'a [u8], BundleError> {
    absolute_range(entry, 0, entry.length)
        .and_then(|range| map.bytes().get(range))
        .ok_or(BundleError::Truncated {
            place: Place::Section(entry.kind),
            offset: entry.offset,
            needed: entry.length,
            available: (map.bytes().len() as u64).saturating_sub(entry.offset),
        })
}

fn absolute_range(section: &SectionEntry, offset: u64, length: u64) -> Option<Range<usize>> {
    let start = section.offset.checked_add(offset)?;
    let end = start.checked_add(length)?;
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// Compares every section with its hash, and the bytes between sections with zero.
fn verify_all(map: &Map, header: &Header) -> Result<(), BundleError> {
    let mut end = HEADER_BYTES as u64;
    for entry in &header.sections {
        verify_zero(map, end, entry.offset)?;
        verify_hash(entry, mapped(map, entry)?)?;
        end = entry.offset + entry.length;
    }
    verify_zero(map, end, header.bundle_bytes)
}

fn verify_zero(map: &Map, from: u64, to: u64) -> Result<(), BundleError> {
    let range =
        usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(to).unwrap_or(usize::MAX);
    match map
        .bytes()
        .get(range)
        .unwrap_or_default()
        .iter()
        .position(|byte| *byte != 0)
    {
        None => Ok(()),
        Some(at) => Err(BundleError::invalid(
            Place::Padding,
            from + at as u64,
            "a byte that must be zero is not",
        )),
    }
}

fn verify_hash(entry: &SectionEntry, bytes: &[u8]) -> Result<(), BundleError> {
    if *blake3::hash(bytes).as_bytes() == entry.hash {
        Ok(())
    } else {
        Err(BundleError::HashMismatch {
            place: Place::Section(entry.kind),
            offset: entry.offset,
        })
    }
}

/// A copy of a small section, compared with its hash: what is parsed is what was verified.
fn section_bytes(
    map: &Map,
    header: &Header,
    kind: SectionKind,
) -> Result<Option<(SectionEntry, Vec<u8>)>, BundleError> {
    let Some(entry) = header.section(kind) else {
        return Ok(None);
    };
    let bytes = mapped(map, entry)?.to_vec();
    verify_hash(entry, &bytes)?;
    Ok(Some((*entry, bytes)))
}

fn optional_json<T: DeserializeOwned>(
    map: &Map,
    header: &Header,
    kind: SectionKind,
) -> Result<Option<T>, BundleError> {
    let Some((entry, bytes)) = section_bytes(map, header, kind)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| BundleError::Json {
            place: Place::Section(kind),
            offset: entry.offset + json_error_at(&bytes, &source),
            source,
        })
}

fn required_json<T: DeserializeOwned>(
    map: &Map,
    header: &Header,
    kind: SectionKind,
) -> Result<T, BundleError> {
    optional_json(map, header, kind)?.ok_or_else(|| missing(kind))
}

fn missing(section: SectionKind) -> BundleError {
    BundleError::Missing { section, offset: 0 }
}

/// The byte a JSON error speaks of, from its line and column.
fn json_error_at(bytes: &[u8], error: &serde_json::Error) -> u64 {
    let line_start = match error.line().checked_sub(2) {
        None => 0,
        Some(newlines_before) => bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(newlines_before)
            .map_or(0, |(at, _)| at + 1),
    };
    (line_start + error.column().saturating_sub(1)).min(bytes.len()) as u64
}
