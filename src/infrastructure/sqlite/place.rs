//! Where the file lies: whether it can be there, and who may read it.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::domain::interfaces::StoreError;

use super::error::{
    AUTH, BUSY, CANTOPEN, CORRUPT, LOCKED, NOTADB, PERM, READONLY, primary_code, store_error,
};

/// What was to be done.
pub(super) const OPEN: &str = "open its file";
/// What helps where the system refuses.
const ACCESS: &str = "the worker's user must be able to read and write the file and its folder";

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
    let ended = prepared.await;
    ended.unwrap_or_else(|crashed| Err(store_error(OPEN, false, crashed.into())))
}

fn check(path: &Path) -> Result<(), StoreError> {
    let problem = |path: &Path, text: &str| Err(failed(false, path, text));
    if path.is_dir() {
        return problem(path, "is a folder, not a file; name a file in it");
    }
    let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) else {
        return Ok(());
    };
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            problem(folder, &format!("cannot be looked into: {error}; {ACCESS}"))
        }
        _ => problem(folder, "is no folder that exists; create it first"),
    }
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
        Err(error) => {
            use io::ErrorKind::{QuotaExceeded, StorageFull};
            let full = matches!(error.kind(), StorageFull | QuotaExceeded);
            let remedy = if full { "make room" } else { ACCESS };
            let text = format!("cannot be made: {error}; {remedy}");
            Err(failed(full, path, &text))
        }
    }
}

/// The driver's error when the file is opened, with what helps. What can be wrong with the file itself
/// does not pass, other than while the worker runs: then it was right once.
pub(super) fn cannot_open(path: &Path, error: sqlx::Error) -> StoreError {
    let result = primary_code(&error);
    let (passes, remedy) = match result {
        Some(BUSY | LOCKED) => (true, "another program holds it and has to let it go"),
        Some(PERM | READONLY | CANTOPEN | AUTH) => (false, ACCESS),
        Some(CORRUPT) => (false, "restore a backup"),
        Some(NOTADB) => (false, "name another file, or move this one away"),
        _ => return super::error::failed(OPEN)(error),
    };
    // What the driver puts around it says the same again.
    let text = match &error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    };
    failed(passes, path, &format!("cannot be opened: {text}; {remedy}"))
}

fn failed(may_pass: bool, path: &Path, problem: &str) -> StoreError {
    let source = format!("{} {problem}", path.display());
    store_error(OPEN, may_pass, source.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_place_does_not_pass_and_names_what_helps() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, remedy) in [
            (folder.path().to_owned(), "name a file in it"),
            (folder.path().join("missing/a.db"), "create it first"),
            (file.join("a.db"), "create it first"),
            (file.join("b/a.db"), ACCESS),
            ("/proc/nowhere.db".into(), ACCESS),
        ] {
            let error = check(&path).and_then(|()| make(&path)).unwrap_err();
            let text = crate::shared::error_chain::Chain(&error).to_string();
            assert!(error.is_final(), "{text}");
            assert!(text.contains(remedy), "{text}");
        }
    }
}
