//! The driver's errors, as the domain knows them.

use sqlx::error::DatabaseError;

use crate::domain::interfaces::StoreError;

/// Turns an error of the driver into one of the store; for `map_err`.
pub(super) fn during(operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| {
        let source = Box::new(error);
        if is_passing(&source) {
            StoreError::Unavailable { operation, source }
        } else {
            StoreError::Failed { operation, source }
        }
    }
}

/// Something other than the database's answer stands in the way.
pub(super) fn failed(
    operation: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Failed {
        operation,
        source: source.into(),
    }
}

/// Whether a unique constraint of this name was violated.
pub(super) fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    error
        .as_database_error()
        .is_some_and(|e| e.is_unique_violation() && e.constraint() == Some(constraint))
}

/// Whether the table that was asked for does not exist.
pub(super) fn is_missing_table(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(DatabaseError::code)
        .is_some_and(|code| code == "42P01")
}

/// Whether the server does not take us at all under this address: the user, the password or the database
/// in it is wrong.
pub fn is_refusal(error: &StoreError) -> bool {
    let StoreError::Failed { source, .. } = error else {
        return false;
    };
    match source.downcast_ref() {
        Some(sqlx::Error::Configuration(_)) => true,
        Some(sqlx::Error::Database(error)) => {
            error.code().is_some_and(|code| is_refusal_code(&code))
        }
        _ => false,
    }
}

fn is_refusal_code(code: &str) -> bool {
    // No such role or not let in, a wrong password, no such database.
    ["28000", "28P01", "3D000"].contains(&code)
}

/// Whether trying again may help.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing_code(&code)),
        _ => false,
    }
}

fn is_passing_code(code: &str) -> bool {
    // Connections, resources, an operator at work, a standby that is about to lead.
    const CLASSES: [&str; 3] = ["08", "53", "57P"];
    const CODES: [&str; 7] = [
        "25006", // read-only: a standby
        "25P03", // idle in a transaction for too long
        "40001", // serialisation failure
        "40003", // unknown whether a statement was completed
        "40P01", // deadlock
        "55P03", // lock timeout
        "57014", // statement timeout, or cancelled by an operator
    ];
    CLASSES.iter().any(|class| code.starts_with(class)) || CODES.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_locks_and_deadlocks_are_worth_another_try() {
        for code in [
            "08006", "53300", "57P01", "57P02", "57P03", "40001", "40P01", "55P03", "57014",
        ] {
            assert!(is_passing_code(code), "{code}");
        }
        for code in ["23505", "23503", "42P01", "22021", "42501", "28P01"] {
            assert!(!is_passing_code(code), "{code}");
        }
    }

    #[test]
    fn a_wrong_user_password_or_database_is_a_refusal_and_a_missing_table_or_right_is_not() {
        for code in ["28000", "28P01", "3D000"] {
            assert!(is_refusal_code(code) && !is_passing_code(code), "{code}");
        }
        for code in ["42P01", "42501", "57P03", "53300"] {
            assert!(!is_refusal_code(code), "{code}");
        }
        let bad_certificate = || sqlx::Error::Configuration("no such file".into());
        assert!(is_refusal(&during("connect")(bad_certificate())));
        assert!(!is_refusal(&during("connect")(sqlx::Error::RowNotFound)));
        assert!(!is_refusal(&StoreError::Conflict));
    }

    #[test]
    fn a_pool_without_a_free_connection_is_an_outage_and_a_missing_row_is_a_defect() {
        let error = during("count")(sqlx::Error::PoolTimedOut);
        assert!(matches!(error, StoreError::Unavailable { .. }));
        assert!(error.is_retryable());
        let error = during("count")(sqlx::Error::RowNotFound);
        assert!(matches!(error, StoreError::Failed { .. }));
        assert_eq!(error.to_string(), "the database refused to count");
    }
}
