//! Writing `.niwaki` bundles.

mod bundle_writer;

pub use bundle_writer::{BundleWriter, MatrixWriter, PackError};
