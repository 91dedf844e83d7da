//! Output files that appear whole or not at all, and what Ctrl-C does.

use niwaki::Cancellation;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Directories to remove when the process is interrupted.
static STAGED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Exit codes from here on tell which signal ended the process, as shells count: 130 for Ctrl-C.
#[cfg(unix)]
const SIGNALLED: i32 = 128;

/// A folder for files that live only as long as the command.
pub(super) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// A folder where the system keeps temporary files.
    pub(super) fn new() -> io::Result<Scratch> {
        Scratch::inside(&std::env::temp_dir())
    }

    /// A hidden folder inside another one.
    fn inside(parent: &Path) -> io::Result<Scratch> {
        let mut staged = staged();
        let directory = tempfile::Builder::new()
            .prefix(".niwaki-")
            .tempdir_in(parent)?;
        staged.push(directory.path().to_owned());
        Ok(Scratch { directory })
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        staged().retain(|path| path != self.directory.path());
    }
}

/// An output file that is written beside its place first.
///
/// [`publish`](Staging::publish) moves what was written to the target's place; without it everything is
/// removed again.
pub(super) struct Staging {
    scratch: Scratch,
    parent: PathBuf,
    target: PathBuf,
    name: OsString,
}

impl Staging {
    /// Prepares writing to `target`; its folder has to exist.
    ///
    /// # Errors
    /// When the target has no file name, or its folder cannot be written to.
    pub(super) fn new(target: &Path) -> io::Result<Staging> {
        let name = target.file_name().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path does not end in a file name",
            )
        })?;
        if target.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a folder",
            ));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Said without the name of the hidden folder.
        std::fs::metadata(parent)?;
        Ok(Staging {
            scratch: Scratch::inside(parent)?,
            parent: parent.to_owned(),
            target: target.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Where to write the output meanwhile; further files may be put beside it.
    pub(super) fn path(&self) -> PathBuf {
        self.scratch.path().join(&self.name)
    }

    /// Bytes of all files written so far.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn size_bytes(&self) -> io::Result<u64> {
        let mut size_bytes = 0;
        for entry in std::fs::read_dir(self.scratch.path())? {
            size_bytes += entry?.metadata()?.len();
        }
        Ok(size_bytes)
    }

    /// Moves every written file to the target's folder, the target itself last.
    ///
    /// # Errors
    /// When a file cannot be moved.
    pub(super) fn publish(self) -> io::Result<()> {
        // Held while files move, so that Ctrl-C cannot come between them.
        let _staged = staged();
        for entry in std::fs::read_dir(self.scratch.path())? {
            let entry = entry?;
            if entry.file_name() != self.name {
                std::fs::rename(entry.path(), self.parent.join(entry.file_name()))?;
            }
        }
        std::fs::rename(self.path(), &self.target)
    }
}

/// What Ctrl-C cancels instead of ending the program.
static INTERRUPTIBLE: Mutex<Option<Cancellation>> = Mutex::new(None);

/// As long as this lives, the first Ctrl-C cancels something and nothing else.
pub(super) struct Interruptible(());

/// Lets Ctrl-C cancel this instead of ending the program.
pub(super) fn cancel_on_interrupt(cancellation: &Cancellation) -> Interruptible {
    *interruptible() = Some(cancellation.clone());
    Interruptible(())
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        *interruptible() = None;
    }
}

fn interruptible() -> MutexGuard<'static, Option<Cancellation>> {
    INTERRUPTIBLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on Ctrl-C, and being asked to end, removes what is staged first.
#[cfg(unix)]
pub(super) fn clean_up_on_interrupt() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    // Without the handler the process ends as it would have; only the cleaning up is lost.
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else {
        return;
    };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGINT
                && let Some(cancellation) = interruptible().take()
            {
                cancellation.cancel();
                continue;
            }
            for directory in staged().drain(..) {
                let _ = std::fs::remove_dir_all(directory);
            }
            std::process::exit(SIGNALLED + signal);
        }
    });
}

/// Elsewhere the system ends the process at once, and hidden folders may stay.
#[cfg(not(unix))]
pub(super) fn clean_up_on_interrupt() {}

fn staged() -> MutexGuard<'static, Vec<PathBuf>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Staging;
    use std::fs;

    #[test]
    fn published_files_take_their_place_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.onnx");
        let staging = Staging::new(&target).unwrap();
        fs::write(staging.path(), "graph").unwrap();
        fs::write(staging.path().with_file_name("model.onnx.data"), "weights").unwrap();
        staging.publish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "graph");
        assert_eq!(
            fs::read_to_string(folder.path().join("model.onnx.data")).unwrap(),
            "weights"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_not_published_disappears_and_the_old_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.niwaki");
        fs::write(&target, "old").unwrap();
        let staging = Staging::new(&target).unwrap();
        fs::write(staging.path(), "half").unwrap();
        drop(staging);
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_refused_as_target() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Staging::new(folder.path()).is_err());
    }
}
