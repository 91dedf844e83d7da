//! What can be wrong with a bundle, and where.

use super::layout::{FORMAT_VERSION, SectionKind};
use crate::graph::GraphError;
use std::fmt;
use std::path::{Path, PathBuf};

/// The part of a bundle an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The fixed header with the section table.
    Header,
    /// One section.
    Section(SectionKind),
    /// The zero bytes between sections.
    Padding,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("the header"),
            Place::Section(kind) => write!(f, "section {kind}"),
            Place::Padding => f.write_str("the padding between sections"),
        }
    }
}

/// Why a bundle was refused. Offsets count bytes from the start of the bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The operating system would not open, size or map the file.
    #[error("cannot {action} {}", in_words(path))]
    Io {
        /// What was tried: open, measure, map.
        action: &'static str,
        /// The file, where it was opened by its path.
        path: Option<PathBuf>,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The bundle starts at an offset of its file at which its numbers cannot be read in place.
    #[error(
        "the bundle starts at offset {offset} of its file, which is not a multiple of 4; align the asset (zipalign does)"
    )]
    Unaligned {
        /// Where it starts in the file.
        offset: u64,
    },
    /// The first bytes are not those of a bundle.
    #[error(
        "not a .niwaki bundle: the magic bytes at offset 0 are missing; make one with `niwaki build`"
    )]
    NotABundle,
    /// A format that this version does not read any more.
    #[error(
        "bundle format {found} is older than the one this version of niwaki reads ({FORMAT_VERSION}); \
         make the bundle again from its export, with `niwaki build`"
    )]
    OldVersion {
        /// Format version in the file.
        found: u32,
    },
    /// A format this version does not know.
    #[error(
        "bundle format {found} is newer than the one this version of niwaki reads ({FORMAT_VERSION}); \
         it needs niwaki {needs}, or pack the model again with this version"
    )]
    UnsupportedVersion {
        /// Format version in the file.
        found: u32,
        /// The oldest niwaki that reads it, as the file says.
        needs: String,
    },
    /// The file ends before this part does.
    #[error(
        "{place} at offset {offset} needs {needed} bytes and the bundle has {available} there: \
         the file is truncated or altered; copy it again"
    )]
    Truncated {
        /// Which part.
        place: Place,
        /// Where it starts.
        offset: u64,
        /// Bytes it should have.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The stored hash is not the hash of the bytes.
    #[error(
        "{place} at offset {offset} does not match its hash: the file was altered or damaged; copy it again"
    )]
    HashMismatch {
        /// Which part.
        place: Place,
        /// Where it starts.
        offset: u64,
    },
    /// A section that every bundle must have is absent.
    #[error("section {section} is missing from the section table at offset {offset}")]
    Missing {
        /// Which section.
        section: SectionKind,
        /// Where the section table starts.
        offset: u64,
    },
    /// A section is longer than any real one.
    #[error("{place} at offset {offset} has {length} bytes, more than the {limit} allowed")]
    TooLong {
        /// Which part.
        place: Place,
        /// Where it starts.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A section is not the JSON it should be.
    #[error("{place}: not valid at offset {offset}")]
    Json {
        /// Which part.
        place: Place,
        /// Where reading stopped.
        offset: u64,
        /// What the JSON reader says.
        #[source]
        source: serde_json::Error,
    },
    /// A value in the bundle makes no sense.
    #[error("{place}, offset {offset}: {problem}")]
    Invalid {
        /// Which part.
        place: Place,
        /// Offset of the field, or of the section where the field has no fixed place.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// The lowered graph does not fit itself or the weights.
    #[error("section graph, offset {offset}: the operator list is not valid")]
    Graph {
        /// Where the section starts.
        offset: u64,
        /// What does not fit.
        #[source]
        source: GraphError,
    },
}

fn in_words(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => path.display().to_string(),
        None => "the bundle".to_owned(),
    }
}

impl BundleError {
    /// Names the file that a system's answer is about.
    pub(crate) fn of_file(self, name: &Path) -> Self {
        match self {
            BundleError::Io { action, source, .. } => BundleError::Io {
                action,
                path: Some(name.to_owned()),
                source,
            },
            other => other,
        }
    }

    pub(crate) fn invalid(place: Place, offset: u64, problem: impl Into<String>) -> Self {
        BundleError::Invalid {
            place,
            offset,
            problem: problem.into(),
        }
    }
}
