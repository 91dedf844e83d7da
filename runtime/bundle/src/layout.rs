//! The header: magic, version, section table, and their bytes.

use super::error::{BundleError, Place};
use std::fmt;

/// First bytes of every bundle.
pub const MAGIC: [u8; 8] = *b"NIWAKI\0\0";
/// Version of the format written and read here.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest niwaki that reads [`FORMAT_VERSION`]; stored so that an older one can say what it lacks.
pub const NEEDS_VERSION: &str = "0.1.0";
/// Length of the header, and where the first section starts.
pub const HEADER_BYTES: usize = 16 * 1024;
/// Every section starts at a multiple of this: the page size of Apple devices and of Android 15.
pub const SECTION_ALIGNMENT: u64 = 16 * 1024;
/// Every weight starts at a multiple of this inside the weights section: a cache line.
pub const WEIGHT_ALIGNMENT: u64 = 64;
/// Most entries a section table may have.
pub const MAX_SECTIONS: usize = 128;

const VERSION_AT: usize = 8;
const COUNT_AT: usize = 12;
const LENGTH_AT: usize = 16;
const NEEDS_AT: usize = 24;
const NEEDS_BYTES: usize = 16;
const TABLE_AT: usize = 64;
const ENTRY_BYTES: usize = 64;
const HASH_BYTES: usize = 32;
const HEADER_HASH_AT: usize = HEADER_BYTES - HASH_BYTES;
const FLAG_OPTIONAL: u32 = 1;

const _: () = assert!(TABLE_AT + MAX_SECTIONS * ENTRY_BYTES <= HEADER_HASH_AT);

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SectionKind {
    /// JSON: what the model is and how it was made.
    Manifest,
    /// JSON: the lowered operator list.
    Graph,
    /// JSON: where each weight lies in the weights section.
    WeightTable,
    /// Packed matrices and vectors.
    Weights,
    /// The bytes of tokenizer.json.
    Tokenizer,
    /// A chat template, UTF-8.
    ChatTemplate,
    /// JSON: how to generate when the caller does not say.
    GenerationDefaults,
    /// JSON: measured quality.
    QualityReport,
    /// A kind from a later version.
    Unknown(u32),
}

impl SectionKind {
    /// Kinds that every bundle has.
    pub const REQUIRED: [SectionKind; 4] = [
        SectionKind::Manifest,
        SectionKind::Graph,
        SectionKind::WeightTable,
        SectionKind::Weights,
    ];

    /// The number stored in the section table.
    pub fn code(self) -> u32 {
        match self {
            SectionKind::Manifest => 1,
            SectionKind::Graph => 2,
            SectionKind::WeightTable => 3,
            SectionKind::Weights => 4,
            SectionKind::Tokenizer => 5,
            SectionKind::ChatTemplate => 6,
            SectionKind::GenerationDefaults => 7,
            SectionKind::QualityReport => 8,
            SectionKind::Unknown(code) => code,
        }
    }

    /// The kind of a stored number.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => SectionKind::Manifest,
            2 => SectionKind::Graph,
            3 => SectionKind::WeightTable,
            4 => SectionKind::Weights,
            5 => SectionKind::Tokenizer,
            6 => SectionKind::ChatTemplate,
            7 => SectionKind::GenerationDefaults,
            8 => SectionKind::QualityReport,
            other => SectionKind::Unknown(other),
        }
    }

    /// Most bytes a section of this kind may have; `None` where only the file bounds it.
    ///
    /// Sections that are read into memory are bounded, so that a hostile file costs a bounded allocation.
    pub fn limit_bytes(self) -> Option<u64> {
        const MIB: u64 = 1 << 20;
        match self {
            SectionKind::Manifest | SectionKind::ChatTemplate | SectionKind::GenerationDefaults => {
                Some(MIB)
            }
            SectionKind::Graph | SectionKind::WeightTable | SectionKind::QualityReport => {
                Some(16 * MIB)
            }
            SectionKind::Tokenizer => Some(64 * MIB),
            SectionKind::Weights | SectionKind::Unknown(_) => None,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SectionKind::Manifest => "manifest",
            SectionKind::Graph => "graph",
            SectionKind::WeightTable => "weight table",
            SectionKind::Weights => "weights",
            SectionKind::Tokenizer => "tokenizer",
            SectionKind::ChatTemplate => "chat template",
            SectionKind::GenerationDefaults => "generation defaults",
            SectionKind::QualityReport => "quality report",
            SectionKind::Unknown(code) => return write!(f, "of unknown kind {code}"),
        })
    }
}

/// One line of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// What it holds.
    pub kind: SectionKind,
    /// A reader that does not know the kind may pass over it.
    pub optional: bool,
    /// First byte, from the start of the bundle; a multiple of [`SECTION_ALIGNMENT`].
    pub offset: u64,
    /// Length in bytes without padding.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}

/// The first [`HEADER_BYTES`] of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole bundle in bytes.
    pub bundle_bytes: u64,
    /// The sections, in the order of their offsets.
    pub sections: Vec<SectionEntry>,
}

impl Header {
    /// The header as stored, its own hash included.
    ///
    /// Entries past [`MAX_SECTIONS`] are not stored; the writer never makes that many.
    pub fn encode(&self) -> Vec<u8> {
        let sections = &self.sections[..self.sections.len().min(MAX_SECTIONS)];
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((sections.len() as u32).to_le_bytes());
        bytes.extend(self.bundle_bytes.to_le_bytes());
        bytes.extend(NEEDS_VERSION.as_bytes());
        bytes.resize(TABLE_AT, 0);
        for section in sections {
            bytes.extend(section.kind.code().to_le_bytes());
            bytes.extend((if section.optional { FLAG_OPTIONAL } else { 0 }).to_le_bytes());
            bytes.extend(section.offset.to_le_bytes());
            bytes.extend(section.length.to_le_bytes());
            bytes.extend([0; 8]);
            bytes.extend(section.hash);
        }
        bytes.resize(HEADER_HASH_AT, 0);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// Reads and checks the header of a bundle of which `available_bytes` bytes exist.
    ///
    /// Afterwards every section lies inside the bundle, is aligned, overlaps no other, appears once, is
    /// not longer than its kind may be, and every required section is there.
    ///
    /// # Errors
    /// [`BundleError`] with the place of the first thing that is wrong.
    pub fn decode(bytes: &[u8], available_bytes: u64) -> Result<Header, BundleError> {
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(BundleError::NotABundle);
        }
        let truncated = || BundleError::Truncated {
            place: Place::Header,
            offset: 0,
            needed: HEADER_BYTES as u64,
            available: available_bytes,
        };
        // The version comes first: a later format may change everything after it but the place of `needs`.
        let version = u32_at(bytes, VERSION_AT).ok_or_else(truncated)?;
        if version < FORMAT_VERSION {
            return Err(BundleError::OldVersion { found: version });
        }
        if version > FORMAT_VERSION {
            return Err(BundleError::UnsupportedVersion {
                found: version,
                needs: needs(bytes),
            });
        }
        let header = bytes.get(..HEADER_BYTES).ok_or_else(truncated)?;
        let (hashed, hash) = header.split_at(HEADER_HASH_AT);
        if blake3::hash(hashed).as_bytes().as_slice() != hash {
            return Err(BundleError::HashMismatch {
                place: Place::Header,
                offset: 0,
            });
        }
        let count = u32_at(header, COUNT_AT).ok_or_else(truncated)? as usize;
        if count > MAX_SECTIONS {
            return Err(BundleError::invalid(
                Place::Header,
                COUNT_AT as u64,
                format!(
                    "the section table says it has {count} entries, at most {MAX_SECTIONS} are allowed"
                ),
            ));
        }
        let bundle_bytes = u64_at(header, LENGTH_AT).ok_or_else(truncated)?;
        if bundle_bytes > available_bytes {
            return Err(BundleError::Truncated {
                place: cut_section(header, count, available_bytes),
                offset: 0,
                needed: bundle_bytes,
                available: available_bytes,
            });
        }
        let mut sections: Vec<SectionEntry> = Vec::with_capacity(count);
        let mut free_from = HEADER_BYTES as u64;
        for index in 0..count {
            let entry_at = TABLE_AT + index * ENTRY_BYTES;
            let entry = entry_at_index(header, index).ok_or_else(truncated)?;
            check_entry(&entry, entry_at as u64, free_from, bundle_bytes)?;
            if let SectionKind::Unknown(code) = entry.kind
                && !entry.optional
            {
                return Err(BundleError::invalid(
                    Place::Header,
                    entry_at as u64,
                    format!(
                        "section kind {code} is required and this version of niwaki does not know it; use niwaki {} or later",
                        needs(header)
                    ),
                ));
            }
            if !matches!(entry.kind, SectionKind::Unknown(_))
                && sections.iter().any(|s| s.kind == entry.kind)
            {
                return Err(BundleError::invalid(
                    Place::Header,
                    entry_at as u64,
                    format!("section {} is listed twice", entry.kind),
                ));
            }
            free_from = entry.offset + entry.length;
            sections.push(entry);
        }
        for section in SectionKind::REQUIRED {
            if !sections.iter().any(|s| s.kind == section) {
                return Err(BundleError::Missing {
                    section,
                    offset: TABLE_AT as u64,
                });
            }
        }
        Ok(Header {
            bundle_bytes,
            sections,
        })
    }

    /// The section of a kind.
    pub fn section(&self, kind: SectionKind) -> Option<&SectionEntry> {
        self.sections.iter().find(|s| s.kind == kind)
    }
}

/// Checks one entry; sections are stored in ascending order, so `free_from` is the end of the one before.
fn check_entry(
    entry: &SectionEntry,
    entry_at: u64,
    free_from: u64,
    bundle_bytes: u64,
) -> Result<(), BundleError> {
    let place = Place::Section(entry.kind);
    if !entry.offset.is_multiple_of(SECTION_ALIGNMENT) {
        return Err(BundleError::invalid(
            place,
            entry_at,
            format!(
                "it starts at {}, which is not a multiple of {SECTION_ALIGNMENT}",
                entry.offset
            ),
        ));
    }
    if entry.offset < free_from {
        return Err(BundleError::invalid(
            place,
            entry_at,
            format!(
                "it starts at {}, inside what comes before it (which ends at {free_from}); \
                 sections must not overlap and are listed in ascending order",
                entry.offset
            ),
        ));
    }
    let available = bundle_bytes.saturating_sub(entry.offset);
    if entry.length > available {
        return Err(BundleError::Truncated {
            place,
            offset: entry.offset,
            needed: entry.length,
            available,
        });
    }
    match entry.kind.limit_bytes() {
        Some(limit) if entry.length > limit => Err(BundleError::TooLong {
            place,
            offset: entry.offset,
            length: entry.length,
            limit,
        }),
        _ => Ok(()),
    }
}

/// The first section that does not lie wholly in the bytes that exist, to name it in the error.
fn cut_section(header: &[u8], count: usize, available_bytes: u64) -> Place {
    (0..count)
        .filter_map(|index| entry_at_index(header, index))
        .find(|entry| {
            entry
                .offset
                .checked_add(entry.length)
                .is_none_or(|end| end > available_bytes)
        })
        .map_or(Place::Padding, |entry| Place::Section(entry.kind))
}

fn entry_at_index(header: &[u8], index: usize) -> Option<SectionEntry> {
    let at = TABLE_AT + index * ENTRY_BYTES;
    Some(SectionEntry {
        kind: SectionKind::from_code(u32_at(header, at)?),
        optional: u32_at(header, at + 4)? & FLAG_OPTIONAL != 0,
        offset: u64_at(header, at + 8)?,
        length: u64_at(header, at + 16)?,
        hash: header.get(at + 32..at + 64)?.try_into().ok()?,
    })
}

/// The version named in the header, made safe to print.
fn needs(bytes: &[u8]) -> String {
    let text: String = bytes
        .get(NEEDS_AT..NEEDS_AT + NEEDS_BYTES)
        .unwrap_or_default()
        .iter()
        .take_while(|byte| **byte != 0)
        .filter(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect();
    if text.is_empty() {
        "(a later version)".into()
    } else {
        text
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}
