//! The tokens of webhooks with a rate limit. Whoever takes some has the turn to write, and with it all
//! of them.

use sqlx::{SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::StoreError,
        policies::{Bucket, RateLimit},
        values::{Timestamp, WebhookId},
    },
    infrastructure::buckets::{Buckets, Limit, rule},
};

use super::{
    SqliteStore,
    batch::hex_array,
    error::failed,
    rows::{Cells, to_time},
};

/// How far ahead of now a bucket may be refilled.
const AHEAD: std::time::Duration = std::time::Duration::from_mins(1);

fn read(row: &SqliteRow) -> Result<Limit, StoreError> {
    let cells = Cells::new(row, "rate_limits");
    Ok(Limit {
        webhook: cells.get("id")?,
        rule: rule(cells.get("requests")?, cells.get("per_ms")?),
        bucket: Bucket {
            level: cells.get("level")?,
            refilled_at: cells.time("refilled_at")?,
        },
    })
}

/// Implements [`crate::domain::interfaces::UnitOfWork::put_rate_limit`].
pub(super) async fn put(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
    rule: Option<RateLimit>,
) -> Result<(), StoreError> {
    const PUT: &str = "keep a rate limit";
    let Some(rule) = rule else {
        sqlx::query("DELETE FROM rate_limits WHERE webhook_id = ?1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(failed(PUT))?;
        return Ok(());
    };
    let former = of(connection, std::iter::once(webhook.0)).await?;
    let bucket = former.first().map_or_else(
        || rule.full(),
        |former| rule.instead_of(former.rule, former.bucket),
    );
    sqlx::query(
        "INSERT INTO rate_limits (webhook_id, requests, per_ms, level, refilled_at, ready_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT (webhook_id) DO UPDATE SET
            requests = excluded.requests, per_ms = excluded.per_ms, level = excluded.level,
            refilled_at = excluded.refilled_at, ready_at = excluded.ready_at",
    )
    .bind(webhook.0)
    .bind(rule.requests())
    .bind(rule.per_ms())
    .bind(bucket.level)
    .bind(bucket.refilled_at.timestamp_millis())
    .bind(rule.ready_at(bucket).timestamp_millis())
    .execute(connection)
    .await
    .map_err(failed(PUT))?;
    Ok(())
}

/// The tokens of these webhooks, as they are until the transaction ends.
pub(super) async fn lock(
    connection: &mut SqliteConnection,
    webhooks: impl Iterator<Item = Uuid>,
    now: Timestamp,
) -> Result<Buckets, StoreError> {
    Ok(Buckets::new(of(connection, webhooks).await?, now))
}

/// The webhooks from which taking is worth it, each with its tokens, for SQL to read.
pub(super) async fn ready(
    reader: &mut SqliteConnection,
    now: Timestamp,
) -> Result<sqlx::types::Json<Vec<(String, u32)>>, StoreError> {
    let rows = sqlx::query(
        "SELECT webhook_id AS id, * FROM rate_limits
        WHERE ready_at <= ?1",
    )
    .bind(now.timestamp_millis())
    .fetch_all(reader)
    .await
    .map_err(failed("read rate limits"))?;
    let limits = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let tokens = limits.into_iter().map(|limit| {
        let bucket = limit.rule.refilled(limit.bucket, now);
        let id = limit.webhook.simple().to_string();
        (id, limit.rule.tokens(bucket))
    });
    Ok(sqlx::types::Json(
        tokens.filter(|(_, tokens)| *tokens > 0).collect(),
    ))
}

async fn of(
    connection: &mut SqliteConnection,
    webhooks: impl Iterator<Item = Uuid>,
) -> Result<Vec<Limit>, StoreError> {
    let rows = sqlx::query(
        "SELECT webhook_id AS id, * FROM rate_limits
        WHERE webhook_id IN (SELECT unhex(value) FROM json_each(?1))",
    )
    .bind(hex_array(webhooks))
    .fetch_all(connection)
    .await
    .map_err(failed("read rate limits"))?;
    rows.iter().map(read).collect()
}

/// Writes what is left of the tokens.
pub(super) async fn spend(
    connection: &mut SqliteConnection,
    buckets: Buckets,
) -> Result<(), StoreError> {
    let spent = buckets.into_spent();
    if spent.is_empty() {
        return Ok(());
    }
    let spent: Vec<_> = spent
        .iter()
        .map(|limit| {
            serde_json::json!([
                limit.webhook.simple().to_string(),
                limit.bucket.level,
                limit.bucket.refilled_at.timestamp_millis(),
                limit.rule.ready_at(limit.bucket).timestamp_millis(),
            ])
        })
        .collect();
    sqlx::query(
        "UPDATE rate_limits SET level = v.value ->> 1, refilled_at = v.value ->> 2,
            ready_at = v.value ->> 3
        FROM json_each(?1) v WHERE webhook_id = unhex(v.value ->> 0)",
    )
    .bind(sqlx::types::Json(spent))
    .execute(connection)
    .await
    .map_err(failed("spend tokens of rate limits"))?;
    Ok(())
}

/// Time is this machine's here, and somebody may set it back: buckets that are far ahead of it go on from
/// now, else they would give nothing for as long.
pub(super) async fn follow_clock(store: &SqliteStore, now: Timestamp) -> Result<(), StoreError> {
    const FOLLOW: &str = "follow the clock with rate limits";
    let far = (now + AHEAD).timestamp_millis();
    let ahead: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM rate_limits WHERE refilled_at > ?1)")
            .bind(far)
            .fetch_one(&mut *store.read(FOLLOW).await?)
            .await
            .map_err(failed(FOLLOW))?;
    if ahead {
        let query = sqlx::query(
            "UPDATE rate_limits SET refilled_at = ?1, ready_at = ?1 WHERE refilled_at > ?2",
        )
        .bind(now.timestamp_millis())
        .bind(far);
        store.execute(FOLLOW, query).await?;
    }
    Ok(())
}

/// Gives a token back for each of these, where the webhook has a rate limit. What is more than the bucket
/// holds is cut off when it is refilled.
pub(super) async fn give_back(
    connection: &mut SqliteConnection,
    webhooks: &[Uuid],
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rate_limits SET level = level + per_ms * v.tokens, ready_at = refilled_at
        FROM (SELECT unhex(value) AS id, count(*) AS tokens FROM json_each(?1) GROUP BY 1) v
        WHERE webhook_id = v.id",
    )
    .bind(hex_array(webhooks.iter().copied()))
    .execute(connection)
    .await
    .map_err(failed("give tokens of rate limits back"))?;
    Ok(())
}

/// When a webhook gets a token that has none and whose deliveries are due.
pub(super) async fn next_token_at(
    reader: &mut SqliteConnection,
    now: Timestamp,
    exclude: &[WebhookId],
    in_lanes: bool,
) -> Result<Option<Timestamp>, StoreError> {
    let next: Option<i64> = sqlx::query_scalar(
        "SELECT min(r.ready_at) FROM rate_limits r
        WHERE r.ready_at > ?1 AND r.webhook_id NOT IN (SELECT unhex(value) FROM json_each(?2))
            AND CASE WHEN ?3 THEN EXISTS (SELECT 1 FROM deliveries d
                    WHERE d.status = 'pending' AND d.lane_key IS NOT NULL
                        AND d.webhook_id = r.webhook_id AND d.due_at <= ?1)
                ELSE EXISTS (SELECT 1 FROM deliveries d
                    WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
                        AND d.webhook_id = r.webhook_id AND d.due_at <= ?1) END",
    )
    .bind(now.timestamp_millis())
    .bind(hex_array(exclude.iter().map(|id| id.0)))
    .bind(in_lanes)
    .fetch_one(reader)
    .await
    .map_err(failed("look for the next token"))?;
    Ok(next.and_then(to_time))
}
