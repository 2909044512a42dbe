//! The folder that everything lies in: a temporary one, or a given one that lasts.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    app::{
        error::RunError,
        lock::{self, LockError},
    },
    application::ports::Clock,
    shared::config::keys::{KEY_BYTES, key_line},
};

/// The id of the key that is made.
const KEY_ID: &str = "k1";

/// A folder; a temporary one is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    place: Place,
    /// Holds the lock on the folder.
    _lock: File,
}

#[derive(Debug)]
enum Place {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Folder {
    /// A new one below the system's folder for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn temporary(name: &str) -> Result<Self, RunError> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("integration-worker-{name}-"))
            .tempdir()
            .map_err(|error| failed("a temporary folder cannot be made", &error))?;
        let lock = lock(folder.path())?;
        Ok(Self {
            place: Place::Temporary(folder),
            _lock: lock,
        })
    }

    /// This one; it is made where it is missing, for its owner alone, and stays.
    ///
    /// # Errors
    /// When it cannot be made, or another process uses it.
    pub(crate) fn given(path: &Path) -> Result<Self, RunError> {
        let what = || format!("the folder {} cannot be used", path.display());
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed(&what(), &error))?;
        let path = path
            .canonicalize()
            .map_err(|error| failed(&what(), &error))?;
        let lock = lock(&path)?;
        Ok(Self {
            place: Place::Given(path),
            _lock: lock,
        })
    }

    /// Where it is, from the root.
    pub(crate) fn path(&self) -> &Path {
        match &self.place {
            Place::Temporary(folder) => folder.path(),
            Place::Given(path) => path,
        }
    }

    /// Whether it is removed in the end.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self.place, Place::Temporary(_))
    }

    /// Leaves it where it is in the end, for whoever wants to look into it.
    pub(crate) fn keep(&mut self) {
        if let Place::Temporary(folder) = &mut self.place {
            folder.disable_cleanup(true);
        }
    }

    /// The file of the encryption keys; it is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keys_file(&self, clock: &dyn Clock) -> Result<PathBuf, RunError> {
        let path = self.path().join("encryption_keys");
        if path.exists() {
            return Ok(path);
        }
        let line = key_line(KEY_ID, &clock.secret_bytes(KEY_BYTES));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .map_err(|error| failed(&format!("{} cannot be written", path.display()), &error))?;
        Ok(path)
    }
}

/// Two servers on one JetStream store would ruin it.
fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join("lock");
    lock::lock(&path).map_err(|error| match error {
        LockError::InUse => RunError::Embedded(format!(
            "the folder {} is in use by another process",
            folder.display()
        )),
        LockError::Refused(error) => {
            failed(&format!("{} cannot be locked", path.display()), &error)
        }
    })
}

fn failed(what: &str, error: &io::Error) -> RunError {
    RunError::Embedded(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use crate::{infrastructure::clock::SystemClock, shared::config::keys::parse_keys};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let folder = Folder::temporary("test").unwrap();
        let path = folder.keys_file(&SystemClock::new()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(parse_keys(&text).unwrap().len(), 1);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.keys_file(&SystemClock::new()).unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_temporary_folder_is_removed_unless_it_is_kept_and_a_given_one_stays() {
        let folder = Folder::temporary("test").unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());

        let mut folder = Folder::temporary("test").unwrap();
        let path = folder.path().to_owned();
        folder.keep();
        drop(folder);
        assert!(path.exists());

        drop(Folder::given(&path).unwrap());
        assert!(path.exists());
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = Folder::given(&path).unwrap();
        let refused = Folder::given(&path).unwrap_err().to_string();
        assert!(
            refused.ends_with("is in use by another process"),
            "{refused}"
        );
        drop(first);
        assert!(Folder::given(&path).is_ok());
    }

    #[test]
    fn only_the_owner_may_enter_folders_that_are_made() {
        let parent = tempfile::tempdir().unwrap();
        let there = parent.path().join("there");
        fs::create_dir(&there).unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).unwrap();
        let _folder = Folder::given(&there.join("a/b")).unwrap();
        for (path, mode) in [("there", 0o755), ("there/a", 0o700), ("there/a/b", 0o700)] {
            let found = parent.path().join(path).metadata().unwrap();
            assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
        }
    }
}
