//! How endpoints are.

use sqlx::{SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use crate::domain::{
    interfaces::StoreError,
    policies::{Breaker, EndpointState},
    values::{Timestamp, WebhookId},
};

use super::{SqliteStore, batch::hex_array, error::failed, rows::Cells};

fn read(row: &SqliteRow) -> Result<(WebhookId, EndpointState), StoreError> {
    let cells = Cells::new(row, "endpoint_states");
    let times = count(cells.get("opened_times")?);
    let until = cells.optional_time("open_until")?;
    let state = EndpointState {
        failures: count(cells.get("failures")?),
        failing_since: cells.optional_time("failing_since")?,
        breaker: until.map_or(Breaker::Closed, |until| Breaker::Open { until, times }),
    };
    Ok((WebhookId(cells.get("id")?), state))
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

pub(super) async fn state(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
) -> Result<EndpointState, StoreError> {
    let row = sqlx::query("SELECT webhook_id AS id, * FROM endpoint_states WHERE webhook_id = ?1")
        .bind(webhook.0)
        .fetch_optional(connection)
        .await
        .map_err(failed("read how an endpoint is"))?;
    let read = row.as_ref().map(read).transpose()?;
    Ok(read.map_or_else(EndpointState::default, |(_, state)| state))
}

pub(super) async fn put(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
    state: &EndpointState,
) -> Result<(), StoreError> {
    const PUT: &str = "keep how an endpoint is";
    if state.is_well() {
        sqlx::query("DELETE FROM endpoint_states WHERE webhook_id = ?1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(failed(PUT))?;
        return Ok(());
    }
    let (until, times) = match state.breaker {
        Breaker::Closed => (None, 0),
        Breaker::Open { until, times } => (Some(until.timestamp_millis()), times),
    };
    sqlx::query(
        "INSERT INTO endpoint_states (webhook_id, failures, failing_since, open_until, opened_times)
        VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (webhook_id) DO UPDATE SET
            failures = excluded.failures, failing_since = excluded.failing_since,
            open_until = excluded.open_until, opened_times = excluded.opened_times,
            probe_until = CASE WHEN open_until = excluded.open_until THEN probe_until END",
    )
    .bind(webhook.0)
    .bind(state.failures)
    .bind(state.failing_since.map(|at| at.timestamp_millis()))
    .bind(until)
    .bind(times)
    .execute(connection)
    .await
    .map_err(failed(PUT))?;
    Ok(())
}

pub(super) async fn states(
    store: &SqliteStore,
    limit: u32,
) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
    const READ: &str = "read how endpoints are";
    let mut connection = store.read(READ).await?;
    let rows = sqlx::query(
        "SELECT webhook_id AS id, * FROM endpoint_states
        ORDER BY open_until IS NULL, webhook_id LIMIT ?1",
    )
    .bind(limit)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(READ))?;
    rows.iter().map(read).collect()
}

pub(super) async fn states_of(
    store: &SqliteStore,
    webhooks: &[WebhookId],
) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
    const READ: &str = "read how some endpoints are";
    let mut connection = store.read(READ).await?;
    let rows = sqlx::query(
        "SELECT webhook_id AS id, * FROM endpoint_states
        WHERE webhook_id IN (SELECT unhex(value) FROM json_each(?1))",
    )
    .bind(hex_array(webhooks.iter().map(|id| id.0)))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(READ))?;
    rows.iter().map(read).collect()
}

pub(super) async fn take_probes(
    store: &SqliteStore,
    webhooks: &[WebhookId],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<WebhookId>, StoreError> {
    const TAKE: &str = "take probes of endpoints";
    let mut transaction = store.write(TAKE).await?;
    let taken: Vec<Uuid> = sqlx::query_scalar(
        "UPDATE endpoint_states SET probe_until = ?3
        WHERE webhook_id IN (SELECT unhex(value) FROM json_each(?1)) AND open_until <= ?2
            AND (probe_until IS NULL OR probe_until <= ?2)
        RETURNING webhook_id",
    )
    .bind(hex_array(webhooks.iter().map(|id| id.0)))
    .bind(now.timestamp_millis())
    .bind(until.timestamp_millis())
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed(TAKE))?;
    transaction.commit().await.map_err(failed(TAKE))?;
    Ok(taken.into_iter().map(WebhookId).collect())
}

pub(super) async fn give_probes_back(
    store: &SqliteStore,
    rights: &[(WebhookId, Timestamp)],
) -> Result<(), StoreError> {
    let rights = rights.iter().map(|(id, until)| {
        let id = id.0.simple().to_string();
        (id, until.timestamp_millis())
    });
    let query = sqlx::query(
        "UPDATE endpoint_states SET probe_until = NULL
        WHERE (webhook_id, probe_until) IN (
            SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?1))",
    )
    .bind(sqlx::types::Json(rights.collect::<Vec<_>>()));
    store
        .execute("give probes of endpoints back", query)
        .await?;
    Ok(())
}
