//! Rows to domain values; a row that cannot be understood names its table, column and key.

mod delivery;
mod entity;

pub(super) use delivery::{attempt, claimed, delivery, first_attempt};
pub(super) use entity::{integration, needed_of_webhook, webhook};

use sqlx::{ColumnIndex as _, Decode, Row as _, Sqlite, Type, ValueRef as _, sqlite::SqliteRow};
use uuid::Uuid;

use crate::domain::{
    interfaces::StoreError,
    values::{SealedSecrets, TenantId, Timestamp},
};

/// The cells of a row of one table.
#[derive(Clone, Copy)]
pub(super) struct Cells<'r> {
    row: &'r SqliteRow,
    table: &'static str,
}

impl<'r> Cells<'r> {
    /// `row` must have a column `id`.
    pub(super) fn new(row: &'r SqliteRow, table: &'static str) -> Self {
        Self { row, table }
    }

    pub(super) fn get<T>(self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.row.try_get(column).map_err(|error| match error {
            sqlx::Error::ColumnDecode { source, .. } => self.bad(column, &source.to_string()),
            other => self.bad(column, &other.to_string()),
        })
    }

    /// A cell that may be NULL in other rows: SQLite reads NULL as an empty text or 0.
    pub(super) fn present<T>(self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.get::<Option<T>>(column)?
            .ok_or_else(|| self.bad(column, "missing"))
    }

    pub(super) fn time(self, column: &'static str) -> Result<Timestamp, StoreError> {
        let millis = self.get(column)?;
        to_time(millis).ok_or_else(|| self.bad(column, "no time"))
    }

    pub(super) fn optional_time(
        self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let millis: Option<i64> = self.get(column)?;
        let time = millis.map(|millis| to_time(millis).ok_or_else(|| self.bad(column, "no time")));
        time.transpose()
    }

    pub(super) fn tenant(self) -> Result<TenantId, StoreError> {
        TenantId::try_new(self.get("tenant")?)
            .map_err(|error| self.bad("tenant", &error.to_string()))
    }

    pub(super) fn credentials(self) -> Result<Option<SealedSecrets>, StoreError> {
        match (self.get("credentials")?, self.get("credentials_key_id")?) {
            (Some(bytes), Some(key_id)) => Ok(Some(SealedSecrets { key_id, bytes })),
            (None, None) => Ok(None),
            _ => Err(self.bad("credentials_key_id", "set without the other")),
        }
    }

    /// A text that `read` understands.
    pub(super) fn parse<T>(
        self,
        column: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        read(self.get(column)?).ok_or_else(|| self.bad(column, "an unknown value"))
    }

    /// A JSON text. Its content stays untold: it may hold what nobody should see.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        self,
        column: &'static str,
    ) -> Result<T, StoreError> {
        serde_json::from_str(self.get(column)?)
            .map_err(|_| self.bad(column, "no JSON of the expected shape"))
    }

    pub(super) fn is_null(self, column: &'static str) -> Result<bool, StoreError> {
        let value = self.row.try_get_raw(column);
        let value = value.map_err(|error| self.bad(column, &error.to_string()))?;
        Ok(value.is_null())
    }

    pub(super) fn bad(self, column: &'static str, problem: &str) -> StoreError {
        StoreError::BadRow {
            table: self.table,
            column,
            id: self.key(),
            problem: problem.to_owned(),
        }
    }

    fn key(self) -> String {
        if let Ok(id) = self.row.try_get::<Uuid, _>("id") {
            return id.to_string();
        }
        // An id that is broken itself; or the row has none, which is a defect of ours.
        let raw = "id"
            .index(self.row)
            .ok()
            .and_then(|index| self.row.try_get::<&[u8], _>(index).ok());
        format!("{:02x?}", raw.unwrap_or_default())
    }
}

pub(super) fn to_time(millis: i64) -> Option<Timestamp> {
    Timestamp::from_timestamp_millis(millis)
}
