//! The bundle: one mapped file that holds a model (`docs/bundle-format.md` specifies it to the byte).
//!
//! [`Bundle`] opens it and checks everything that is later relied on; [`graph`] is what the model computes. With the
//! feature `write`, [`mod@write`] makes bundles: the offline tool does, and tests.

mod error;
mod generation_defaults;
pub mod graph;
mod layout;
mod manifest;
mod map;
mod open;
mod weight_table;
#[cfg(feature = "write")]
pub mod write;

pub use error::{BundleError, Place};
pub use generation_defaults::GenerationDefaults;
pub use layout::{
    FORMAT_VERSION, HEADER_BYTES, Header, MAGIC, MAX_SECTIONS, NEEDS_VERSION, SECTION_ALIGNMENT,
    SectionEntry, SectionKind, WEIGHT_ALIGNMENT,
};
pub use manifest::{Manifest, Provenance, SourceFile};
pub use open::{Bundle, Verify};
pub use weight_table::{ElementKind, MatrixEntry, RowOrigin, ScaleKind, VectorEntry, WeightTable};
