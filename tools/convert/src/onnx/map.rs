//! The one place of the tool that maps files.
#![allow(unsafe_code)]

use std::{fs::File, io, path::Path};

use bytes::Bytes;

/// Maps a regular file read-only and hands it out as reference-counted bytes; slices of it share the mapping.
///
/// The file must not be changed while the mapping lives, as for every program that maps its input: a file that shrinks
/// meanwhile ends the process with SIGBUS.
///
/// # Errors
/// When the file cannot be opened or mapped, or is not a regular file.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only, lives as long as the Bytes that own it, and its bytes are only ever
    // read as plain integers. That nobody rewrites the file meanwhile is the caller's part, stated above.
    let mapping = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(mapping))
}
