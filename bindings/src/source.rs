//! Where a bundle lies, and the one place where a number becomes a file.
#![allow(unsafe_code)]

use crate::error::NiwakiError;
use std::fs::File;
use std::os::fd::BorrowedFd;

/// Where a bundle lies.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum BundleSource {
    /// A file of its own.
    Path {
        /// Where.
        path: String,
    },
    /// A part of an open file: an uncompressed asset of an app package, a document that the user picked.
    Descriptor {
        /// The open file. It is borrowed: the caller keeps it open during the call and closes it afterwards.
        fd: i32,
        /// Where the bundle begins, in bytes.
        offset: u64,
        /// Its exact length in bytes; when absent the bundle's own length is taken.
        length: Option<u64>,
    },
}

/// A file of our own for an open file of the caller.
pub(crate) fn duplicate(fd: i32) -> Result<File, NiwakiError> {
    if fd < 0 {
        return Err(NiwakiError::InvalidArgument {
            details: format!("{fd} is no file descriptor"),
        });
    }
    // SAFETY: `fd` is not -1. It is used for one `dup` only, which fails for a number that is no open file;
    // nothing is read, written or closed through it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let file = borrowed.try_clone_to_owned().map(File::from);
    file.map_err(|error| NiwakiError::FileUnreadable {
        details: format!("file descriptor {fd} cannot be used: {error}"),
    })
}
