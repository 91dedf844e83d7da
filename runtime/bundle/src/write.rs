//! Streams weights into a bundle and replaces the target file only when everything is written.

use crate::graph::{Graph, GraphError, MatrixId, VectorId};
use crate::{
    Bundle, BundleError, GenerationDefaults, HEADER_BYTES, Header, Manifest, MatrixEntry,
    RowOrigin, SECTION_ALIGNMENT, SectionEntry, SectionKind, VectorEntry, Verify, WEIGHT_ALIGNMENT,
    WeightTable,
};
use niwaki_kernels::{Codebook, MatrixFormat};
use serde::Serialize;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Large, because the system keeps a file in memory in pieces of the size it was written in, and maps it piece by piece: after
/// writes of 1 MiB the first pass over 143 MB of weights took 6.4 ms, after writes of 4 MiB it takes 2.1 ms.
const WRITE_BUFFER_BYTES: usize = 4 << 20;

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The bundle's path, or its folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A weight has another size than its format takes.
    #[error("weight {name}: {rows} x {cols} takes {needed} bytes, {written} were given")]
    WeightSize {
        /// Its name.
        name: String,
        /// Output channels.
        rows: usize,
        /// Input channels.
        cols: usize,
        /// Bytes its format takes.
        needed: u64,
        /// Bytes that were given.
        written: u64,
    },
    /// A weight is larger than any file.
    #[error("weight {name}: {rows} x {cols} is too large")]
    TooLarge {
        /// Its name.
        name: String,
        /// Output channels.
        rows: usize,
        /// Input channels.
        cols: usize,
    },
    /// A section is longer than the format allows.
    #[error("section {kind} has {length} bytes, the format allows {limit}")]
    SectionTooLong {
        /// Which section.
        kind: SectionKind,
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The weight table makes no sense.
    #[error("weight table: {0}")]
    WeightTable(String),
    /// The graph does not fit the weights.
    #[error("the lowered graph does not fit the weights")]
    Graph(#[from] GraphError),
    /// A section could not be turned into JSON.
    #[error("section {kind} cannot be written as JSON")]
    Json {
        /// Which section.
        kind: SectionKind,
        /// What the JSON writer says.
        #[source]
        source: serde_json::Error,
    },
    /// The written bundle does not open.
    #[error("the written bundle does not open again")]
    Verify(#[source] Box<BundleError>),
}

/// Writes one bundle: weights first, as they come, then everything else in [`finish`](Self::finish).
///
/// The bytes go to a temporary file beside the target, which replaces the target in one step at the end;
/// a writer that is dropped before leaves nothing behind.
pub struct BundleWriter {
    target: PathBuf,
    output: BufWriter<NamedTempFile>,
    position: u64,
    weights_hash: blake3::Hasher,
    table: WeightTable,
    extra: Vec<(SectionKind, Vec<u8>)>,
}

impl BundleWriter {
    /// Begins the bundle that will lie at `path`.
    ///
    /// # Errors
    /// [`WriteError::Io`] when no file can be made in its folder.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, WriteError> {
        let target = path.as_ref().to_path_buf();
        let folder = folder_of(&target);
        let file =
            temporary_file(&folder).map_err(|source| io("create a file in", &folder, source))?;
        let mut writer = BundleWriter {
            target,
            output: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
            position: 0,
            weights_hash: blake3::Hasher::new(),
            table: WeightTable::default(),
            extra: Vec::new(),
        };
        writer.write(&vec![0; HEADER_BYTES])?;
        Ok(writer)
    }

    /// Adds a matrix packed by `niwaki_kernels::pack`, of a format without a codebook, and answers its id.
    ///
    /// # Errors
    /// [`WriteError::WeightSize`] when `bytes` is not what the format takes, [`WriteError::Io`].
    pub fn add_matrix(
        &mut self,
        name: impl Into<String>,
        format: MatrixFormat,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<MatrixId, WriteError> {
        let mut matrix = self.begin_matrix(name, format, rows, cols)?;
        matrix.write(bytes)?;
        matrix.finish()
    }

    /// Begins a matrix whose packed bytes come piecewise: runs of rows that are multiples of 16.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], [`WriteError::Io`].
    pub fn begin_matrix(
        &mut self,
        name: impl Into<String>,
        format: MatrixFormat,
        rows: usize,
        cols: usize,
    ) -> Result<MatrixWriter<'_>, WriteError> {
        let name = name.into();
        let Some(length) = format.size_bytes(rows, cols) else {
            return Err(WriteError::TooLarge { name, rows, cols });
        };
        let offset = self.align_weight()?;
        let entry = MatrixEntry::new(name, format, rows, cols, offset, length as u64);
        Ok(MatrixWriter {
            writer: self,
            entry,
            written: 0,
        })
    }

    /// Adds a vector of `f32` and answers its id.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn add_vector(
        &mut self,
        name: impl Into<String>,
        values: &[f32],
    ) -> Result<VectorId, WriteError> {
        let offset = self.align_weight()?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.write_weight(&bytes)?;
        self.table.vectors.push(VectorEntry {
            name: name.into(),
            len: values.len(),
            offset,
        });
        Ok(self.table.vectors.len() - 1)
    }

    /// The weights added so far.
    pub fn weight_table(&self) -> &WeightTable {
        &self.table
    }

    /// Stores the bytes of tokenizer.json.
    pub fn set_tokenizer(&mut self, tokenizer_json: Vec<u8>) {
        self.set(SectionKind::Tokenizer, tokenizer_json);
    }

    /// Stores a chat template.
    pub fn set_chat_template(&mut self, template: &str) {
        self.set(SectionKind::ChatTemplate, template.as_bytes().to_vec());
    }

    /// Stores how to generate when the caller does not say.
    ///
    /// # Errors
    /// [`WriteError::Json`].
    pub fn set_generation_defaults(
        &mut self,
        defaults: &GenerationDefaults,
    ) -> Result<(), WriteError> {
        self.set(
            SectionKind::GenerationDefaults,
            json(SectionKind::GenerationDefaults, defaults)?,
        );
        Ok(())
    }

    /// Stores measured quality.
    ///
    /// # Errors
    /// [`WriteError::Json`].
    pub fn set_quality_report(&mut self, report: &serde_json::Value) -> Result<(), WriteError> {
        self.set(
            SectionKind::QualityReport,
            json(SectionKind::QualityReport, report)?,
        );
        Ok(())
    }

    /// Checks graph and weights, writes the remaining sections and the header, flushes everything to the
    /// disk, and puts the bundle at its path. Answers its size in bytes.
    ///
    /// # Errors
    /// [`WriteError`]; the target is then as it was before.
    pub fn finish(mut self, manifest: &Manifest, graph: &Graph) -> Result<u64, WriteError> {
        let weights = SectionEntry {
            kind: SectionKind::Weights,
            optional: false,
            offset: HEADER_BYTES as u64,
            length: self.position - HEADER_BYTES as u64,
            hash: *self.weights_hash.finalize().as_bytes(),
        };
        self.table
            .check(weights.length)
            .map_err(WriteError::WeightTable)?;
        graph.check(&self.table)?;

        let mut sections = vec![weights];
        let mut bodies = vec![
            (
                SectionKind::Manifest,
                json(SectionKind::Manifest, manifest)?,
            ),
            (SectionKind::Graph, json(SectionKind::Graph, graph)?),
            (
                SectionKind::WeightTable,
                json(SectionKind::WeightTable, &self.table)?,
            ),
        ];
        bodies.append(&mut self.extra);
        for (kind, body) in bodies {
            sections.push(self.write_section(kind, &body)?);
        }
        self.align(SECTION_ALIGNMENT)?;
        let bundle_bytes = self.position;
        let header = Header {
            bundle_bytes,
            sections,
        }
        .encode();
        self.publish(&header)?;
        Ok(bundle_bytes)
    }

    fn publish(mut self, header: &[u8]) -> Result<(), WriteError> {
        let target = &self.target;
        let write_error = |source| io("write", target, source);
        self.output.seek(SeekFrom::Start(0)).map_err(write_error)?;
        self.output.write_all(header).map_err(write_error)?;
        let file = self
            .output
            .into_inner()
            .map_err(|error| write_error(error.into_error()))?;
        file.as_file().sync_all().map_err(write_error)?;
        Bundle::open(file.path(), Verify::Structure)
            .map_err(|error| WriteError::Verify(Box::new(error)))?;
        file.persist(target)
            .map_err(|error| io("replace", target, error.error))?;
        sync_folder(&folder_of(target)).map_err(write_error)
    }

    fn set(&mut self, kind: SectionKind, body: Vec<u8>) {
        self.extra.retain(|(other, _)| *other != kind);
        self.extra.push((kind, body));
    }

    fn write_section(
        &mut self,
        kind: SectionKind,
        body: &[u8],
    ) -> Result<SectionEntry, WriteError> {
        let length = body.len() as u64;
        if let Some(limit) = kind.limit_bytes()
            && length > limit
        {
            return Err(WriteError::SectionTooLong {
                kind,
                length,
                limit,
            });
        }
        self.align(SECTION_ALIGNMENT)?;
        let offset = self.position;
        self.write(body)?;
        let optional = !SectionKind::REQUIRED.contains(&kind);
        Ok(SectionEntry {
            kind,
            optional,
            offset,
            length,
            hash: *blake3::hash(body).as_bytes(),
        })
    }

    /// Pads to the next weight boundary; answers the offset in the weights section.
    fn align_weight(&mut self) -> Result<u64, WriteError> {
        let padding = self.position.next_multiple_of(WEIGHT_ALIGNMENT) - self.position;
        self.write_weight(&vec![0; padding as usize])?;
        Ok(self.position - HEADER_BYTES as u64)
    }

    fn write_weight(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.weights_hash.update(bytes);
        self.write(bytes)
    }

    fn align(&mut self, alignment: u64) -> Result<(), WriteError> {
        let padding = self.position.next_multiple_of(alignment) - self.position;
        self.write(&vec![0; padding as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.output
            .write_all(bytes)
            .map_err(|source| io("write", &self.target, source))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// A matrix being written.
pub struct MatrixWriter<'a> {
    writer: &'a mut BundleWriter,
    entry: MatrixEntry,
    written: u64,
}

impl MatrixWriter<'_> {
    /// Says which nodes of the export the rows come from, when they are several.
    #[must_use]
    pub fn with_origins(mut self, origins: Vec<RowOrigin>) -> Self {
        self.entry.origins = origins;
        self
    }

    /// Says what the codes stand for, which a matrix of [`MatrixFormat::CODEBOOK4`] needs.
    #[must_use]
    pub fn with_codebook(mut self, codebook: Codebook) -> Self {
        self.entry.codebook = Some(*codebook.values());
        self
    }

    /// Says how many of the first blocks of 32 columns of its inputs are quantized in two terms.
    #[must_use]
    pub fn with_refined(mut self, refined: usize) -> Self {
        self.entry.refined = refined;
        self
    }

    /// Appends packed bytes.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.written += bytes.len() as u64;
        self.writer.write_weight(bytes)
    }

    /// Ends the matrix and answers its id.
    ///
    /// # Errors
    /// [`WriteError::WeightSize`] when not all bytes came, or too many.
    pub fn finish(self) -> Result<MatrixId, WriteError> {
        let MatrixWriter {
            writer,
            entry,
            written,
        } = self;
        if written != entry.length {
            return Err(WriteError::WeightSize {
                needed: entry.length,
                written,
                name: entry.name,
                rows: entry.rows,
                cols: entry.cols,
            });
        }
        writer.table.matrices.push(entry);
        Ok(writer.table.matrices.len() - 1)
    }
}

fn json(kind: SectionKind, value: &impl Serialize) -> Result<Vec<u8>, WriteError> {
    serde_json::to_vec(value).map_err(|source| WriteError::Json { kind, source })
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> WriteError {
    WriteError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A temporary file with the permissions an ordinary new file has.
fn temporary_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".niwaki-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Makes the rename last through a power cut, where the system can.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
