//! Which nats-server there is: the one that `NATS_SERVER_BIN` names, else the one on the PATH.

use std::{io, process::Stdio, time::Duration};

use tokio::process::Command;

use crate::{app::error::RunError, shared::config::environment};

/// The oldest version that will do.
const OLDEST: (u32, u32) = (2, 10);
/// How long a program may take to tell its version.
const PATIENCE: Duration = Duration::from_secs(10);
/// What helps when there is none.
const REMEDY: &str = "`make dev` and `make demo` fetch one; or install nats-server 2.10 or newer, \
                      or name one in NATS_SERVER_BIN";

/// A nats-server that will do.
#[derive(Debug)]
pub(super) struct Binary {
    /// The program.
    pub(super) program: String,
    /// Its version, as `2.10.29`.
    pub(super) version: String,
}

/// Looks for it and asks for its version.
///
/// # Errors
/// When there is none or it is too old, with what helps.
pub(super) async fn find() -> Result<Binary, RunError> {
    let named = environment("NATS_SERVER_BIN").filter(|name| !name.trim().is_empty());
    let (program, place) = match named {
        Some(program) => (program, "NATS_SERVER_BIN"),
        None => ("nats-server".to_owned(), "the PATH"),
    };
    let asking = Command::new(&program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let said = match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refusal(&format!(
                "no nats-server: there is no {program} ({place})"
            )));
        }
        Ok(Err(error)) => {
            return Err(refusal(&format!(
                "{program} ({place}) cannot be run: {error}"
            )));
        }
        Err(_) => {
            return Err(refusal(&format!(
                "{program} ({place}) does not tell its version"
            )));
        }
    };
    match read(&said) {
        Some((numbers, version)) if numbers >= OLDEST => Ok(Binary { program, version }),
        Some((_, version)) => Err(refusal(&format!(
            "{program} ({place}) is nats-server {version}, which is too old"
        ))),
        None => Err(refusal(&format!("{program} ({place}) is no nats-server"))),
    }
}

fn refusal(problem: &str) -> RunError {
    RunError::Embedded(format!("{problem}\n{REMEDY}"))
}

/// Major and minor number, and the whole version, of `nats-server: v2.10.29`.
fn read(said: &str) -> Option<((u32, u32), String)> {
    let version = said
        .strip_prefix("nats-server:")?
        .trim()
        .strip_prefix('v')?;
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(((major, minor), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nats_server_tells_them() {
        for (said, expected) in [
            ("nats-server: v2.10.29", Some(((2, 10), "2.10.29"))),
            ("nats-server: v2.9.25", Some(((2, 9), "2.9.25"))),
            (
                "nats-server: v2.12.0-preview.1",
                Some(((2, 12), "2.12.0-preview.1")),
            ),
            ("nats-server: v3", None),
            ("nats-server: 2.10.0", None),
            ("GNU bash, version 5.2", None),
            ("", None),
        ] {
            let expected = expected.map(|(numbers, version)| (numbers, version.to_owned()));
            assert_eq!(read(said), expected, "{said}");
        }
        assert!((2, 9) < OLDEST && (2, 10) >= OLDEST && (3, 0) >= OLDEST);
    }
}
