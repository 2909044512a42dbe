//! The driver's errors in the store's words.

use sqlx::migrate::MigrateError;

use crate::domain::interfaces::StoreError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// For `map_err`: what was to be done.
pub(super) fn failed(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| {
        let may_pass = may_pass(&error);
        let source = match error {
            // What the driver puts around it says the same again.
            sqlx::Error::Database(error) => error.into_error(),
            other => other.into(),
        };
        store_error(operation, may_pass, source)
    }
}

pub(super) fn migration_failed(operation: &'static str) -> impl FnOnce(MigrateError) -> StoreError {
    move |error| {
        let may_pass = match &error {
            MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
                may_pass(cause)
            }
            _ => false,
        };
        store_error(operation, may_pass, error.into())
    }
}

pub(super) fn store_error(operation: &'static str, may_pass: bool, source: Source) -> StoreError {
    if may_pass {
        StoreError::Unavailable { operation, source }
    } else {
        StoreError::Failed { operation, source }
    }
}

/// Whether it is the machine's state, and not ours, that is at fault.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => primary_code(error).is_some_and(|code| PASSING.contains(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        | sqlx::Error::InvalidSavePointStatement => true,
        _ => false,
    }
}

/// The primary result code, where SQLite itself has answered.
pub(super) fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    let extended: u32 = code.parse().ok()?;
    Some(extended & 0xff)
}

// Primary result codes, <https://www.sqlite.org/rescode.html>.
pub(super) const PERM: u32 = 3;
pub(super) const BUSY: u32 = 5;
pub(super) const LOCKED: u32 = 6;
const NOMEM: u32 = 7;
pub(super) const READONLY: u32 = 8;
const INTERRUPT: u32 = 9;
const IOERR: u32 = 10;
pub(super) const CORRUPT: u32 = 11;
const FULL: u32 = 13;
pub(super) const CANTOPEN: u32 = 14;
const PROTOCOL: u32 = 15;
pub(super) const AUTH: u32 = 23;
pub(super) const NOTADB: u32 = 26;

const PASSING: [u32; 9] = [
    BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL,
];
