//! The encryption keys as a file.

use std::{
    fs::{self, Metadata},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{
    application::{ports::Clock, rewrap::Rewrapped},
    shared::config::keys::{KEY_BYTES, is_key_id, key_line, parse_keys},
};

use super::{Exit, Output, Trouble};

/// Prints the ids of these keys, and which of them the database needs, where it was asked.
///
/// # Errors
/// [`Trouble`] with everything that is wrong with them, never a part of a key.
pub fn list_keys(
    text: &str,
    needed: Option<&[String]>,
    json: bool,
    output: &mut Output<'_>,
) -> Result<Exit, Trouble> {
    let ids = ids_of(text)?;
    if json {
        let mut list = serde_json::json!({ "keys": ids });
        if let Some(needed) = needed {
            list["needed"] = needed.into();
        }
        output.line(list);
        return Ok(Exit::Done);
    }
    for (index, id) in ids.iter().enumerate() {
        let use_of = if index == 0 {
            "encrypts and decrypts"
        } else {
            "decrypts"
        };
        let need = match needed {
            None => "",
            Some(needed) if needed.contains(id) => ", the database needs it",
            Some(_) if index == 0 => "",
            Some(_) => ", the database does not need it",
        };
        output.line(format_args!("{id}  {use_of}{need}"));
    }
    for id in needed.unwrap_or_default() {
        if !ids.contains(id) {
            output.line(format_args!("{id}  is missing, the database needs it"));
        }
    }
    Ok(Exit::Done)
}

/// Prints what was sealed anew under this key, and which keys the database still needs.
pub fn tell_rewrapped(
    done: &Rewrapped,
    key_id: &str,
    needed: &[String],
    output: &mut Output<'_>,
) -> Exit {
    output.line(format_args!(
        "{} rows were sealed anew with {key_id}: credentials of integrations {}, credentials of \
         webhooks {}, signing secrets {}, kept replies {}",
        done.rows(),
        done.integrations,
        done.webhooks,
        done.signing_secrets,
        done.replies
    ));
    let needed = if needed.is_empty() {
        "none".to_owned()
    } else {
        needed.join(", ")
    };
    output.line(format_args!("keys that the database needs: {needed}"));
    for (reason, rows) in &done.unopened {
        output.remark(format_args!("{rows} rows were left as they are: {reason}"));
    }
    if done.left > 0 {
        output.remark(format_args!(
            "{} rows were changed by workers meanwhile: run it again",
            done.left
        ));
    }
    if done.left == 0 && done.unopened.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    }
}

/// Puts a new key first in the file, atomically, and leaves everything else in it, its owner and its
/// mode as they are. A file that is not there is made, for its owner alone.
///
/// # Errors
/// [`Trouble`]; the file is unchanged then.
pub fn rotate_keys(
    path: &Path,
    id: Option<&str>,
    clock: &dyn Clock,
    output: &mut Output<'_>,
) -> Result<Exit, Trouble> {
    let failed = |error: &io::Error| Trouble::failed(format!("{}: {error}", path.display()));
    // A link stays a link.
    let (path, former) = match fs::canonicalize(path) {
        Ok(path) => {
            let text = fs::read_to_string(&path).map_err(|error| failed(&error))?;
            let metadata = fs::metadata(&path).map_err(|error| failed(&error))?;
            (path, Some((text, metadata)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(failed(&error)),
    };
    let ids = match &former {
        Some((text, _)) => ids_of(text)?,
        None => Vec::new(),
    };
    let id = new_id(id, &ids)?;
    let text = former
        .as_ref()
        .map(|(text, _)| text.as_str())
        .unwrap_or_default();
    let line = key_line(&id, &clock.secret_bytes(KEY_BYTES));
    let metadata = former.as_ref().map(|(_, metadata)| metadata);
    replace(&path, &format!("{line}\n{text}"), metadata).map_err(|error| failed(&error))?;
    output.line(format_args!(
        "{id} is now the key that encrypts, in {}",
        path.display()
    ));
    output.remark(match former {
        Some(_) => {
            "Give every worker this file before the first of them uses it, then send them SIGHUP.\n\
             Keep the old keys: they decrypt what was sealed before. `keys rewrap` seals it anew."
        }
        None => "The file is new. Keep a copy: who loses it loses every stored secret.",
    });
    Ok(Exit::Done)
}

fn ids_of(text: &str) -> Result<Vec<String>, Trouble> {
    match parse_keys(text) {
        Ok(keys) => Ok(keys.into_iter().map(|(id, _)| id).collect()),
        Err(faults) => Err(Trouble {
            exit: Exit::Configuration,
            text: format!("the encryption keys have faults\n  {}", faults.join("\n  ")),
        }),
    }
}

/// The given id, else `k` and a number above all others.
fn new_id(given: Option<&str>, known: &[String]) -> Result<String, Trouble> {
    let Some(id) = given else {
        let numbers = known
            .iter()
            .filter_map(|id| id.strip_prefix('k')?.parse().ok());
        return Ok(format!(
            "k{}",
            numbers.max().unwrap_or(0_u32).saturating_add(1)
        ));
    };
    if !is_key_id(id) {
        return Err(Trouble::usage(
            "--id is 1 to 64 letters, digits, '_', '.' or '-'",
        ));
    }
    if known.iter().any(|known| known == id) {
        return Err(Trouble::failed(format!("there is a key {id:?} already")));
    }
    Ok(id.to_owned())
}

/// Writes a new file beside the old one and puts it in its place.
fn replace(path: &Path, text: &str, former: Option<&Metadata>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    // Made with mode 0600.
    let mut file = NamedTempFile::new_in(&folder)?;
    file.write_all(text.as_bytes())?;
    if let Some(former) = former {
        let made = file.as_file().metadata()?;
        if (made.uid(), made.gid()) != (former.uid(), former.gid()) {
            chown(file.path(), Some(former.uid()), Some(former.gid()))?;
        }
        file.as_file().set_permissions(former.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}
