//! Quantized matrices on disk: nothing that was computed is lost when a run is stopped, and memory holds one at a time.

use super::{BLOCK, QuantizedRows, Target};
use niwaki_bundle::graph::MatrixId;
use niwaki_kernels::Codebook;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Quantized matrices in a folder, a file each.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    found: usize,
}

/// Quantized matrices could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct ShelfError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whose matrices these are.
const LABEL: &str = "label";

const EXTENSION: &str = "quantized";

/// First in every file; changes when its layout does.
const MAGIC: &[u8; 8] = b"niwaki q";

/// Bytes of the hash that follows.
const HASH_BYTES: usize = 32;

impl Shelf {
    /// The shelf in `folder`, which is made if it is not there. `label` names everything that its matrices depend on: a shelf
    /// with another label is emptied first, and what is not whole goes.
    ///
    /// # Errors
    /// When the folder cannot be made, read or emptied.
    pub fn open(folder: &Path, label: &str) -> Result<Shelf, ShelfError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ShelfError {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
        let path = folder.join(LABEL);
        let is_ours = fs::read_to_string(&path).is_ok_and(|held| held == label);
        let mut found = 0;
        for entry in fs::read_dir(folder).map_err(failed("read the folder", folder))? {
            let path = entry.map_err(failed("read the folder", folder))?.path();
            match path.extension() {
                Some(extension) if extension == EXTENSION && is_ours && is_whole(&path) => {
                    found += 1
                }
                Some(extension) if extension == EXTENSION => {
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
                _ => {}
            }
        }
        if !is_ours {
            fs::write(&path, label).map_err(failed("write", &path))?;
        }
        Ok(Shelf {
            folder: folder.to_owned(),
            found,
        })
    }

    /// How many matrices lay there when it was opened.
    pub fn found(&self) -> usize {
        self.found
    }

    /// The place of a matrix that a quantizer of this description made.
    fn path(&self, matrix: MatrixId, target: Target, made_by: &str) -> PathBuf {
        let Target { code, grid } = target;
        let name = format!("{matrix} {} {grid:?} {made_by}", code.name());
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        };
        let name: String = name.to_lowercase().chars().map(plain).collect();
        self.folder.join(format!("{name}.{EXTENSION}"))
    }

    /// Whether a matrix is there.
    pub fn holds(&self, matrix: MatrixId, target: Target, made_by: &str) -> bool {
        self.path(matrix, target, made_by).exists()
    }

    /// Puts a matrix there, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(
        &self,
        matrix: MatrixId,
        target: Target,
        made_by: &str,
        quantized: &QuantizedRows,
    ) -> Result<(), ShelfError> {
        let path = self.path(matrix, target, made_by);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            let codes: &[i8] = &quantized.codes;
            let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
            let mut scales = Vec::with_capacity(quantized.scales.len() * 4);
            for scale in &quantized.scales {
                scales.extend(scale.to_le_bytes());
            }
            let codebook = match &quantized.codebook {
                Some(codebook) => codebook.values().map(|value| value as u8).to_vec(),
                None => vec![],
            };
            let mut hasher = blake3::Hasher::new();
            for part in [&codebook, &scales, &codes] {
                hasher.update(part);
            }
            let mut output = BufWriter::new(file.as_file_mut());
            output.write_all(MAGIC)?;
            output.write_all(hasher.finalize().as_bytes())?;
            for part in [&codebook, &scales, &codes] {
                output.write_all(part)?;
            }
            output.flush()?;
            drop(output);
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| ShelfError {
            action: "write",
            path: path.clone(),
            source,
        })
    }

    /// Takes a matrix of so many rows and columns; `None` if it is not there, or not whole.
    pub fn get(
        &self,
        matrix: MatrixId,
        target: Target,
        made_by: &str,
        rows: usize,
        columns: usize,
    ) -> Option<QuantizedRows> {
        let bytes = fs::read(self.path(matrix, target, made_by)).ok()?;
        let parts = parts(&bytes)?;
        let scales_bytes = rows.checked_mul(columns.div_ceil(BLOCK))?.checked_mul(4)?;
        let codes = rows.checked_mul(columns)?;
        let (codebook, rest) =
            parts.split_at_checked(parts.len().checked_sub(scales_bytes + codes)?)?;
        let (scales, codes) = rest.split_at_checked(scales_bytes)?;
        let codebook = match codebook.len() {
            0 => None,
            _ => {
                let values: [u8; 16] = codebook.try_into().ok()?;
                Some(Codebook::new(values.map(|value| value as i8)).ok()?)
            }
        };
        let scales = scales.as_chunks::<4>().0.iter();
        Some(QuantizedRows {
            codes: codes.iter().map(|code| *code as i8).collect(),
            scales: scales.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            codebook,
        })
    }
}

/// What a file holds, if it is whole.
fn parts(bytes: &[u8]) -> Option<&[u8]> {
    let (hash, parts) = bytes.strip_prefix(MAGIC)?.split_at_checked(HASH_BYTES)?;
    (blake3::hash(parts).as_bytes() == hash).then_some(parts)
}

fn is_whole(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| parts(&bytes).is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::Code;
    use crate::quantize::ScaleGrid;

    const TARGET: Target = Target {
        code: Code::Codebook4,
        grid: ScaleGrid::F16,
    };

    const BY: &str = "GPTQ, damping 0.05";

    fn quantized() -> QuantizedRows {
        QuantizedRows {
            codes: (0..80).map(|code| code % 16).collect(),
            scales: vec![0.5, -0.25, 0.0, 1.0],
            codebook: Some(Codebook::LINEAR),
        }
    }

    #[test]
    fn a_matrix_comes_back_as_it_was_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), "a").unwrap();
        assert!(!shelf.holds(3, TARGET, BY));
        shelf.put(3, TARGET, BY, &quantized()).unwrap();
        let again = Shelf::open(folder.path(), "a").unwrap();
        assert_eq!(again.found(), 1);
        assert!(again.holds(3, TARGET, BY));
        assert_eq!(again.get(3, TARGET, BY, 2, 40), Some(quantized()));
        let int8 = Target {
            code: Code::Int8,
            ..TARGET
        };
        assert_eq!(again.get(3, int8, BY, 2, 40), None);
    }

    #[test]
    fn a_shelf_of_another_label_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), "a").unwrap();
        shelf.put(0, TARGET, BY, &quantized()).unwrap();
        let other = Shelf::open(folder.path(), "b").unwrap();
        assert_eq!((other.found(), other.holds(0, TARGET, BY)), (0, false));
    }

    #[test]
    fn what_is_not_whole_or_of_another_shape_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), "a").unwrap();
        shelf.put(0, TARGET, BY, &quantized()).unwrap();
        assert_eq!(shelf.get(0, TARGET, BY, 3, 40), None);
        let path = shelf.path(0, TARGET, BY);
        let bytes = fs::read(&path).unwrap();
        for length in [0, 7, 8, 20, 40, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(shelf.get(0, TARGET, BY, 2, 40), None, "{length}");
            let again = Shelf::open(folder.path(), "a").unwrap();
            assert_eq!((again.found(), path.exists()), (0, false), "{length}");
        }
        let mut bytes = bytes;
        bytes[60] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(shelf.get(0, TARGET, BY, 2, 40), None);
    }
}
