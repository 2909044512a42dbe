//! A lock that a process holds on a file for as long as it lives: the system lets go of it whatever the
//! process dies of.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process has it.
    #[error("in use by another process")]
    InUse,
    /// The system refuses.
    #[error(transparent)]
    Refused(#[from] io::Error),
}

/// Locks this file, which is made for its owner alone where it is missing, and stays: to remove it would
/// let two processes each lock one of that name. The lock ends when the answer is dropped.
///
/// # Errors
/// [`LockError`]; it does not wait.
pub(crate) fn lock(path: &Path) -> Result<File, LockError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LockError::InUse),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
