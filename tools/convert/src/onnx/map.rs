//! The one place of the tool that maps files.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use memmap2::Mmap;

/// What is mapped, to find the mapping that some bytes lie in.
static MAPPED: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

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
    let mapping = Arc::new(unsafe { Mmap::map(&file)? });
    let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    mapped.retain(|mapping| mapping.strong_count() > 0);
    mapped.push(Arc::downgrade(&mapping));
    Ok(Bytes::from_owner(Owner(mapping)))
}

/// Says that these bytes are not needed for a while. If they lie in a mapped file, the memory that holds them is given
/// back; who reads them again reads the file again. Does nothing with other bytes, and where the system cannot do it.
pub fn release(bytes: &[u8]) {
    #[cfg(unix)]
    {
        let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        let place = mapped.iter().filter_map(Weak::upgrade).find_map(|mapping| {
            let offset = bytes.as_ptr().addr().checked_sub(mapping.as_ptr().addr())?;
            (offset + bytes.len() <= mapping.len()).then_some((mapping, offset))
        });
        drop(mapped);
        let Some((mapping, offset)) = place else {
            return;
        };
        // SAFETY: whether a page of a read-only mapping is in memory or only in its file cannot be told by its bytes: they
        // are the file's, which nobody changes while it is mapped, as `map_file` asks.
        let _ = unsafe {
            mapping.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len())
        };
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

/// [`release`]s all that is mapped.
pub fn release_all() {
    let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let all: Vec<Arc<Mmap>> = mapped.iter().filter_map(Weak::upgrade).collect();
    drop(mapped);
    all.iter().for_each(|mapping| release(mapping));
}

struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Kilobytes of this process that files back.
    #[cfg(target_os = "linux")]
    fn file_backed_kb(mapping: &[u8]) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", mapping.as_ptr().addr());
        let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines
            .skip(1)
            .find(|line| line.starts_with("Rss:"))
            .unwrap()
            .to_owned();
        rss.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_released_leaves_memory_and_reads_the_same_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..4 << 20).map(|index: u32| (index % 251) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let mapped = map_file(file.path()).unwrap();
        assert!(mapped == content);
        assert!(file_backed_kb(&mapped) >= 4096);
        release(&mapped[1 << 20..]);
        assert!(file_backed_kb(&mapped) <= 1024 + 64);
        release_all();
        assert!(file_backed_kb(&mapped) <= 64);
        assert!(mapped == content);
    }

    #[test]
    fn bytes_that_are_no_file_are_left_alone() {
        let bytes = vec![7u8; 1 << 16];
        release(&bytes);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
