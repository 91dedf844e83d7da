//! LoRA adapters that are merged before quantizing.

use super::recipe::file_name;
use crate::commands::error::CommandError;
use niwaki_convert::lora::Adapter;
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An adapter's folder, and how strongly it is merged: `DIR` or `DIR:0.5`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct LoraFolder {
    folder: PathBuf,
    strength: f32,
}

impl FromStr for LoraFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<LoraFolder, String> {
        let (folder, strength) = match text.rsplit_once(':') {
            // What is no number belongs to the path.
            Some((folder, number)) => match number.parse::<f32>() {
                Ok(strength) if strength.is_finite() => (folder, strength),
                Ok(_) => return Err(format!("`{number}` is no strength; give one as in 0.5")),
                Err(_) => (text, 1.0),
            },
            None => (text, 1.0),
        };
        match folder.is_empty() {
            true => {
                Err("give a folder, and a strength if it is not 1, as in adapter:0.5".to_owned())
            }
            false => Ok(LoraFolder {
                folder: folder.into(),
                strength,
            }),
        }
    }
}

impl TryFrom<String> for LoraFolder {
    type Error = String;

    fn try_from(text: String) -> Result<LoraFolder, String> {
        text.parse()
    }
}

/// As it is given, without the folders that it lies in.
impl fmt::Display for LoraFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&file_name(&self.folder))?;
        match self.strength {
            1.0 => Ok(()),
            strength => write!(f, ":{strength}"),
        }
    }
}

impl LoraFolder {
    /// With the folder's path beginning at another.
    pub(super) fn begin_at(&mut self, folder: &Path) {
        self.folder = folder.join(&self.folder);
    }

    /// Its tensors.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.join("adapter_model.safetensors")
    }

    /// The adapter and its strength.
    pub(super) fn open(&self) -> Result<(Adapter, f32), CommandError> {
        let adapter = Adapter::open(&self.folder).map_err(|source| CommandError::Adapter {
            path: self.folder.clone(),
            source,
        })?;
        Ok((adapter, self.strength))
    }
}
