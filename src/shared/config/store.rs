//! Where things are kept, and with which keys they are sealed.

use std::{fmt, path::PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::{keys::parse_keys, reader::Reader};

/// The database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Where it is.
    pub location: DatabaseLocation,
    /// Connections at most, 2 to 1,000.
    pub max_connections: u32,
}

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DatabaseLocation {
    /// PostgreSQL, by a URL that may hold a password.
    Postgres(SecretString),
    /// A file of SQLite.
    Sqlite(PathBuf),
}

impl DatabaseLocation {
    /// `postgresql` or `sqlite`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Sqlite(_) => "sqlite",
        }
    }
}

/// Shows where it is, without user, password and parameters.
impl fmt::Display for DatabaseLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => {
                let url = Url::parse(url.expose_secret()).ok();
                let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
                let port = url.as_ref().and_then(Url::port).unwrap_or(5432);
                let path = url.as_ref().map(Url::path).unwrap_or_default();
                write!(f, "postgresql://{host}:{port}{path}")
            }
        }
    }
}

/// Where the encryption keys are read from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A file, which may be read again.
    File(PathBuf),
    /// The environment.
    Inline(SecretString),
}

impl DatabaseConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let location = reader.parse("DATABASE_URL", None, |text| parse_location(text).map(Some));
        if reader.given("DATABASE_URL").is_none() {
            reader.faults.add(
                "DATABASE_URL",
                "is missing: postgresql://user:password@host:port/database or sqlite://path",
            );
        }
        let connections = reader.number("DATABASE_MAX_CONNECTIONS", 2..=1_000);
        Some(Self {
            location: location?,
            max_connections: u32::try_from(connections).unwrap_or(u32::MAX),
        })
    }
}

fn parse_location(text: &str) -> Result<DatabaseLocation, String> {
    if let Some(path) = text.strip_prefix("sqlite://") {
        return match path {
            "" => Err("names no file: sqlite://path".to_owned()),
            _ if path.contains(":memory:") => {
                Err("a database in memory would lose everything: sqlite://path".to_owned())
            }
            _ if path.contains('?') => Err("sqlite://path takes no parameters".to_owned()),
            _ => Ok(DatabaseLocation::Sqlite(PathBuf::from(path))),
        };
    }
    if text.starts_with("sqlite:") {
        return Err("a file of SQLite is written sqlite://path".to_owned());
    }
    let url = Url::parse(text).map_err(|error| {
        format!(
            "is no URL ({error}): postgresql://user:password@host:port/database or sqlite://path"
        )
    })?;
    if !matches!(url.scheme(), "postgresql" | "postgres") {
        return Err(format!(
            "{}:// is not supported: postgresql:// or sqlite://",
            url.scheme()
        ));
    }
    check_postgres(&url)?;
    Ok(DatabaseLocation::Postgres(text.to_owned().into()))
}

fn check_postgres(url: &Url) -> Result<(), String> {
    const SSL_MODES: [&str; 6] = [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ];
    let parameter = |name| url.query_pairs().find(|(key, _)| key == name);
    if url.host_str().is_none_or(str::is_empty) && parameter("host").is_none() {
        return Err("names no host: postgresql://user:password@host:port/database".to_owned());
    }
    if url.path().trim_start_matches('/').is_empty() && parameter("dbname").is_none() {
        return Err("names no database: postgresql://user:password@host:port/database".to_owned());
    }
    match parameter("sslmode") {
        Some((_, mode)) if !SSL_MODES.contains(&&*mode) => {
            Err(format!("sslmode is one of {}", SSL_MODES.join(", ")))
        }
        _ => Ok(()),
    }
}

impl KeySource {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let file = reader.file("ENCRYPTION_KEYS_FILE", check_keys);
        let inline = reader.secret("ENCRYPTION_KEYS");
        if let Some(Err(problem)) = inline.as_ref().map(|keys| check_keys(keys.expose_secret())) {
            reader.faults.add("ENCRYPTION_KEYS", problem);
        }
        match (file, inline) {
            (Some(file), None) => Some(Self::File(file)),
            (None, Some(keys)) => Some(Self::Inline(keys)),
            (Some(_), Some(_)) => {
                reader.faults.add(
                    "ENCRYPTION_KEYS",
                    "is set besides ENCRYPTION_KEYS_FILE: give one of them",
                );
                None
            }
            (None, None) => {
                reader.faults.add(
                    "ENCRYPTION_KEYS_FILE",
                    "is missing: a file with one key a line, <id>:<base64 of 32 bytes> \
                     (`integration-worker keys rotate --file PATH` makes one), or ENCRYPTION_KEYS",
                );
                None
            }
        }
    }
}

fn check_keys(text: &str) -> Result<(), String> {
    parse_keys(text)
        .map(drop)
        .map_err(|faults| faults.join("; "))
}
