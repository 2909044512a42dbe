//! Where the file lies: whether it can be there, and who may read it.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::domain::interfaces::StoreError;

use super::error::store_error;

/// What may be read and written by the owner alone.
const OWNER_ONLY: u32 = 0o600;

/// Makes the file where it is missing, for its owner alone: SQLite would let everybody read it. `-wal`
/// and `-shm` get its mode from SQLite. A file that is there keeps its mode.
pub(super) async fn prepare(path: &Path) -> Result<(), StoreError> {
    let path = path.to_path_buf();
    let prepared = tokio::task::spawn_blocking(move || {
        check(&path)?;
        make(&path)
    });
    prepared
        .await
        .unwrap_or_else(|crashed| Err(failed(true, crashed.to_string())))
}

fn check(path: &Path) -> Result<(), StoreError> {
    let problem = |text: &str, path: &Path| failed(false, format!("{} {text}", path.display()));
    if path.is_dir() {
        return Err(problem("is a folder, not a file", path));
    }
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let named = !folder.as_os_str().is_empty();
    if named && !folder.is_dir() {
        return Err(problem(
            "is no folder that exists; create it first",
            &folder,
        ));
    }
    Ok(())
}

/// A file that is there is not opened: to close it again would end the locks that SQLite holds on it in
/// this process.
fn make(path: &Path) -> Result<(), StoreError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => return Ok(()),
    }
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false);
    match options.mode(OWNER_ONLY).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(true, format!("{}: {error}", path.display()))),
    }
}

fn failed(may_pass: bool, problem: String) -> StoreError {
    store_error("open its file", may_pass, problem.into())
}
