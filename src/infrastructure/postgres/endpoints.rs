//! How endpoints are, as all workers know it.

use sqlx::postgres::{PgBindIterExt as _, PgConnection};
use uuid::Uuid;

use crate::domain::{
    interfaces::StoreError,
    policies::{Breaker, EndpointState},
    values::{Timestamp, WebhookId},
};

use super::{error::during, pool::Pool};

#[derive(sqlx::FromRow)]
struct StateRow {
    webhook_id: Uuid,
    failures: i64,
    failing_since: Option<Timestamp>,
    open_until: Option<Timestamp>,
    opened_times: i64,
}

impl From<StateRow> for (WebhookId, EndpointState) {
    fn from(row: StateRow) -> Self {
        let breaker = row
            .open_until
            .map_or(Breaker::Closed, |until| Breaker::Open {
                until,
                times: count(row.opened_times),
            });
        let state = EndpointState {
            failures: count(row.failures),
            failing_since: row.failing_since,
            breaker,
        };
        (WebhookId(row.webhook_id), state)
    }
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

pub(super) async fn state(
    connection: &mut PgConnection,
    webhook: WebhookId,
) -> Result<EndpointState, StoreError> {
    let row: Option<StateRow> =
        sqlx::query_as("SELECT * FROM endpoint_states WHERE webhook_id = $1")
            .bind(webhook.0)
            .fetch_optional(connection)
            .await
            .map_err(during("read how an endpoint is"))?;
    Ok(row.map_or_else(EndpointState::default, |row| <(_, _)>::from(row).1))
}

pub(super) async fn put(
    connection: &mut PgConnection,
    webhook: WebhookId,
    state: &EndpointState,
) -> Result<(), StoreError> {
    const OPERATION: &str = "keep how an endpoint is";
    if state.is_well() {
        sqlx::query("DELETE FROM endpoint_states WHERE webhook_id = $1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(during(OPERATION))?;
        return Ok(());
    }
    let (until, times) = match state.breaker {
        Breaker::Closed => (None, 0),
        Breaker::Open { until, times } => (Some(until), times),
    };
    sqlx::query(
        "INSERT INTO endpoint_states AS s
             (webhook_id, failures, failing_since, open_until, opened_times)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (webhook_id) DO UPDATE SET
             failures = EXCLUDED.failures, failing_since = EXCLUDED.failing_since,
             open_until = EXCLUDED.open_until, opened_times = EXCLUDED.opened_times,
             probe_until = CASE WHEN s.open_until = EXCLUDED.open_until THEN s.probe_until END",
    )
    .bind(webhook.0)
    .bind(i64::from(state.failures))
    .bind(state.failing_since)
    .bind(until)
    .bind(i64::from(times))
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}

pub(super) async fn states(
    pool: &Pool,
    limit: u32,
) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
    let rows: Vec<StateRow> = sqlx::query_as(
        "SELECT * FROM endpoint_states ORDER BY open_until IS NULL, webhook_id LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(during("read how endpoints are"))?;
    Ok(rows.into_iter().map(Into::into).collect())
}

pub(super) async fn states_of(
    pool: &Pool,
    webhooks: &[WebhookId],
) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
    let rows: Vec<StateRow> =
        sqlx::query_as("SELECT * FROM endpoint_states WHERE webhook_id = ANY($1::uuid[])")
            .bind(webhooks.iter().map(|id| id.0).bind_iter())
            .fetch_all(pool)
            .await
            .map_err(during("read how some endpoints are"))?;
    Ok(rows.into_iter().map(Into::into).collect())
}

pub(super) async fn take_probes(
    pool: &Pool,
    webhooks: &[WebhookId],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<WebhookId>, StoreError> {
    // In the order of the ids and past what another one takes just now, so that no two workers wait for
    // each other.
    let taken: Vec<Uuid> = sqlx::query_scalar(
        "WITH free AS MATERIALIZED (
             SELECT webhook_id FROM endpoint_states
             WHERE webhook_id = ANY($1::uuid[]) AND open_until <= $2
                 AND (probe_until IS NULL OR probe_until <= $2)
             ORDER BY webhook_id FOR UPDATE SKIP LOCKED
         )
         UPDATE endpoint_states s SET probe_until = $3
         FROM free WHERE s.webhook_id = free.webhook_id
         RETURNING s.webhook_id",
    )
    .bind(webhooks.iter().map(|id| id.0).bind_iter())
    .bind(now)
    .bind(until)
    .fetch_all(pool)
    .await
    .map_err(during("take probes of endpoints"))?;
    Ok(taken.into_iter().map(WebhookId).collect())
}

pub(super) async fn give_probes_back(
    pool: &Pool,
    rights: &[(WebhookId, Timestamp)],
) -> Result<(), StoreError> {
    sqlx::query(
        "WITH held AS MATERIALIZED (
             SELECT s.webhook_id FROM endpoint_states s
             JOIN UNNEST($1::uuid[], $2::timestamptz[]) AS r (webhook_id, until)
                 ON r.webhook_id = s.webhook_id AND r.until = s.probe_until
             ORDER BY s.webhook_id FOR UPDATE OF s
         )
         UPDATE endpoint_states s SET probe_until = NULL
         FROM held h WHERE h.webhook_id = s.webhook_id",
    )
    .bind(rights.iter().map(|(id, _)| id.0).bind_iter())
    .bind(rights.iter().map(|(_, until)| *until).bind_iter())
    .execute(pool)
    .await
    .map_err(during("give probes of endpoints back"))?;
    Ok(())
}
