//! The rows as the driver reads them, and how they become what the domain knows.

mod delivery;
mod entity;
mod integration;
mod webhook;

pub(super) use delivery::{AttemptRow, DeliveryRow, EventRow, FirstAttemptRow, delivery_columns};
pub(super) use integration::{IntegrationRow, select_integrations};
pub(super) use webhook::{WebhookRow, select_webhooks};

use uuid::Uuid;

use crate::domain::interfaces::StoreError;

/// Which row is read: what an error names.
#[derive(Debug, Clone, Copy)]
struct RowRef {
    table: &'static str,
    id: Uuid,
}

impl RowRef {
    /// An error about one column; `problem` must not hold its content.
    fn broken(self, column: &'static str, problem: impl Into<String>) -> StoreError {
        StoreError::BadRow {
            table: self.table,
            column,
            id: self.id.to_string(),
            problem: problem.into(),
        }
    }
}

/// All rows, or the first that is broken.
pub(super) fn all<R, T>(rows: Vec<R>) -> Result<Vec<T>, StoreError>
where
    T: TryFrom<R, Error = StoreError>,
{
    rows.into_iter().map(T::try_from).collect()
}

#[cfg(test)]
mod tests;
