//! External data: the files beside a model that hold its large tensors.
//!
//! A model is input from outside, so where it points is checked: the location must be relative, and what it resolves to
//! must lie in the folder of the model. A model that is itself a symbolic link (as in download caches that keep the
//! content elsewhere) may also use files beside the link's target.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::{OnnxError, map::map_file, proto::TensorProto};

/// The folder of a model, and the files of it that are mapped so far.
#[derive(Debug, Default)]
pub(super) struct ExternalFiles {
    /// The canonical folders in which external data may lie; none for a model that is not on disk.
    roots: Vec<PathBuf>,
    mapped: Mutex<HashMap<String, Bytes>>,
}

impl ExternalFiles {
    /// For the model file at `path`.
    pub(super) fn beside(path: &Path) -> Result<Self, OnnxError> {
        let read_error = |source| OnnxError::Read {
            path: path.to_owned(),
            source,
        };
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut roots = vec![parent.canonicalize().map_err(read_error)?];
        let target = path.canonicalize().map_err(read_error)?;
        if let Some(parent) = target
            .parent()
            .filter(|parent| *parent != roots[0].as_path())
        {
            roots.push(parent.to_owned());
        }
        Ok(Self {
            roots,
            mapped: Mutex::default(),
        })
    }

    /// The bytes of a tensor whose `data_location` is EXTERNAL; `size_bytes` is what its type and dimensions take.
    pub(super) fn read(&self, tensor: &TensorProto, size_bytes: usize) -> Result<Bytes, OnnxError> {
        let name = tensor.name();
        let (mut location, mut offset, mut length) = (None, None, None);
        for entry in &tensor.external_data {
            let place = match entry.key() {
                "location" => &mut location,
                "offset" => &mut offset,
                "length" => &mut length,
                _ => continue,
            };
            if place.replace(entry.value()).is_some() {
                return Err(OnnxError::tensor(
                    name,
                    format!("its external data gives {:?} twice", entry.key()),
                ));
            }
        }
        let location =
            location.ok_or_else(|| OnnxError::tensor(name, "its external data has no location"))?;
        let number = |value: Option<&str>, what: &str| match value {
            None => Ok(None),
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| {
                OnnxError::external(
                    name,
                    location,
                    format!("has the impossible {what} {text:?}"),
                )
            }),
        };
        let offset = number(offset, "offset")?.unwrap_or(0);
        let length = number(length, "length")?.unwrap_or(size_bytes);
        if length != size_bytes {
            return Err(OnnxError::external(
                name,
                location,
                format!("is {length} bytes long; the tensor takes {size_bytes}"),
            ));
        }
        if size_bytes == 0 {
            return Ok(Bytes::new());
        }
        let file = self.map(name, location)?;
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= file.len())
            .ok_or_else(|| {
                let size = file.len();
                OnnxError::external(
                    name,
                    location,
                    format!(
                        "reaches from byte {offset} for {length} bytes, but the file has {size}"
                    ),
                )
            })?;
        Ok(file.slice(offset..end))
    }

    /// Where the data of these tensors lie, each file once.
    pub(super) fn paths<'t>(
        &self,
        tensors: impl Iterator<Item = &'t TensorProto>,
    ) -> Result<Vec<PathBuf>, OnnxError> {
        let mut paths = BTreeSet::new();
        for tensor in tensors {
            let locations = tensor.external_data.iter();
            for entry in locations.filter(|entry| entry.key() == "location") {
                paths.insert(self.resolve(tensor.name(), entry.value())?);
            }
        }
        Ok(paths.into_iter().collect())
    }

    fn map(&self, tensor: &str, location: &str) -> Result<Bytes, OnnxError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = mapped.get(location) {
            return Ok(file.clone());
        }
        let path = self.resolve(tensor, location)?;
        let file = map_file(&path).map_err(|source| OnnxError::Read { path, source })?;
        mapped.insert(location.to_owned(), file.clone());
        Ok(file)
    }

    fn resolve(&self, tensor: &str, location: &str) -> Result<PathBuf, OnnxError> {
        let relative = Path::new(location);
        let stays = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !stays {
            return Err(OnnxError::external(
                tensor,
                location,
                "is refused: it must be a path inside the model's folder",
            ));
        }
        let Some(root) = self.roots.first() else {
            return Err(OnnxError::external(
                tensor,
                location,
                "cannot be found: the model was not read from a folder",
            ));
        };
        let path = root.join(relative);
        let target = path
            .canonicalize()
            .map_err(|source| OnnxError::Read { path, source })?;
        if !self.roots.iter().any(|root| target.starts_with(root)) {
            return Err(OnnxError::external(
                tensor,
                location,
                "is refused: it links to a file outside the model's folder",
            ));
        }
        Ok(target)
    }
}
