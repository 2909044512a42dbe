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
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            code.is_some_and(|extended| PASSING.contains(&(extended & 0xff)))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        | sqlx::Error::InvalidSavePointStatement => true,
        _ => false,
    }
}

/// Primary result codes, <https://www.sqlite.org/rescode.html>: `BUSY`, `LOCKED`, `NOMEM`, `READONLY`,
/// `INTERRUPT`, `IOERR`, `FULL`, `CANTOPEN`, `PROTOCOL`.
const PASSING: [u32; 9] = [5, 6, 7, 8, 9, 10, 13, 14, 15];
