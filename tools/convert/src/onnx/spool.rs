//! Tensors that are made while a model is rewritten, on disk, so that memory does not have to hold them all.

use super::map::{map_file, release};
use bytes::Bytes;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use tempfile::NamedTempFile;

/// A temporary file that grows.
pub(crate) struct Spool {
    file: BufWriter<NamedTempFile>,
    length: usize,
}

impl Spool {
    pub(crate) fn new() -> io::Result<Spool> {
        Ok(Spool {
            file: BufWriter::new(NamedTempFile::new()?),
            length: 0,
        })
    }

    /// How much was appended.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Appends data, and says where it will lie in what [`finish`](Self::finish) gives.
    pub(crate) fn append(&mut self, data: &[u8]) -> io::Result<Range<usize>> {
        self.file.write_all(data)?;
        let start = self.length;
        self.length += data.len();
        Ok(start..self.length)
    }

    /// Everything that was appended; the file goes when nobody holds it any more.
    pub(crate) fn finish(self) -> io::Result<Bytes> {
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        map_file(file.path())
    }
}

/// Writes bytes, and gives back the memory of those that are mapped on the way.
pub(crate) fn write_and_release(bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
    /// What a mapped source takes of memory meanwhile.
    const PIECE_BYTES: usize = 16 << 20;
    for piece in bytes.chunks(PIECE_BYTES) {
        to.write_all(piece)?;
        release(piece);
    }
    Ok(())
}
