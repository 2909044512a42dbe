//! The tokens of webhooks with a rate limit.
//!
//! A claim locks the row of each such webhook that it takes from, so that no token is taken twice; one
//! that another claim has locked is left to that. Claims wait for nobody here, so whoever waits for a
//! claim gets its turn.

use sqlx::postgres::{PgBindIterExt as _, PgConnection};
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::StoreError,
        policies::{Bucket, RateLimit},
        values::{Timestamp, WebhookId},
    },
    infrastructure::buckets::{Buckets, Limit, rule},
};

use super::{error::during, pool::Pool};

#[derive(sqlx::FromRow)]
struct LimitRow {
    webhook_id: Uuid,
    requests: i64,
    per_ms: i64,
    level: i64,
    refilled_at: Timestamp,
}

impl From<LimitRow> for Limit {
    fn from(row: LimitRow) -> Self {
        Self {
            webhook: row.webhook_id,
            rule: rule(row.requests, row.per_ms),
            bucket: Bucket {
                level: row.level,
                refilled_at: row.refilled_at,
            },
        }
    }
}

/// Implements [`crate::domain::interfaces::UnitOfWork::put_rate_limit`].
pub(super) async fn put(
    connection: &mut PgConnection,
    webhook: WebhookId,
    rule: Option<RateLimit>,
) -> Result<(), StoreError> {
    const OPERATION: &str = "keep a rate limit";
    let Some(rule) = rule else {
        sqlx::query("DELETE FROM rate_limits WHERE webhook_id = $1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(during(OPERATION))?;
        return Ok(());
    };
    let former: Option<LimitRow> =
        sqlx::query_as("SELECT * FROM rate_limits WHERE webhook_id = $1 FOR UPDATE")
            .bind(webhook.0)
            .fetch_optional(&mut *connection)
            .await
            .map_err(during(OPERATION))?;
    let bucket = former.map(Limit::from).map_or_else(
        || rule.full(),
        |former| rule.instead_of(former.rule, former.bucket),
    );
    sqlx::query(
        "INSERT INTO rate_limits (webhook_id, requests, per_ms, level, refilled_at, ready_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (webhook_id) DO UPDATE SET
             requests = EXCLUDED.requests, per_ms = EXCLUDED.per_ms, level = EXCLUDED.level,
             refilled_at = EXCLUDED.refilled_at, ready_at = EXCLUDED.ready_at",
    )
    .bind(webhook.0)
    .bind(i64::from(rule.requests()))
    .bind(rule.per_ms())
    .bind(bucket.level)
    .bind(bucket.refilled_at)
    .bind(rule.ready_at(bucket))
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}

/// The tokens of these webhooks, locked until the transaction ends; those that are locked are left out.
pub(super) async fn lock(
    connection: &mut PgConnection,
    webhooks: impl Iterator<Item = Uuid> + Clone,
    now: Timestamp,
) -> Result<Buckets, StoreError> {
    let rows: Vec<LimitRow> = sqlx::query_as(
        "SELECT webhook_id, requests, per_ms, level, refilled_at FROM rate_limits
         WHERE webhook_id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED",
    )
    .bind(webhooks.bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during("lock rate limits"))?;
    Ok(Buckets::new(rows.into_iter().map(Limit::from), now))
}

/// Writes what is left of the tokens that were locked.
pub(super) async fn spend(
    connection: &mut PgConnection,
    buckets: Buckets,
) -> Result<(), StoreError> {
    let spent = buckets.into_spent();
    if spent.is_empty() {
        return Ok(());
    }
    let buckets = || spent.iter().map(|limit| limit.bucket);
    sqlx::query(
        "UPDATE rate_limits r
         SET level = s.level, refilled_at = s.refilled_at, ready_at = s.ready_at
         FROM UNNEST($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[])
             AS s (webhook_id, level, refilled_at, ready_at)
         WHERE r.webhook_id = s.webhook_id",
    )
    .bind(spent.iter().map(|limit| limit.webhook).bind_iter())
    .bind(buckets().map(|bucket| bucket.level).bind_iter())
    .bind(buckets().map(|bucket| bucket.refilled_at).bind_iter())
    .bind(spent.iter().map(|l| l.rule.ready_at(l.bucket)).bind_iter())
    .execute(connection)
    .await
    .map_err(during("spend tokens of rate limits"))?;
    Ok(())
}

/// Gives so many tokens back to each of these webhooks.
pub(super) async fn give_back(pool: &Pool, tokens: &[(Uuid, i64)]) -> Result<(), StoreError> {
    if tokens.is_empty() {
        return Ok(());
    }
    // Locked by id first, so that no two of these wait for each other. What is more than the bucket
    // holds is cut off when it is refilled.
    sqlx::query(
        "WITH locked AS MATERIALIZED (
             SELECT l.webhook_id FROM rate_limits l WHERE l.webhook_id = ANY($1::uuid[])
             ORDER BY l.webhook_id FOR UPDATE
         )
         UPDATE rate_limits r
         SET level = r.level + r.per_ms * b.tokens, ready_at = r.refilled_at
         FROM UNNEST($1::uuid[], $2::bigint[]) AS b (webhook_id, tokens)
         WHERE (SELECT count(*) FROM locked) > 0 AND r.webhook_id = b.webhook_id",
    )
    .bind(tokens.iter().map(|(webhook, _)| *webhook).bind_iter())
    .bind(tokens.iter().map(|(_, tokens)| *tokens).bind_iter())
    .execute(pool)
    .await
    .map_err(during("give tokens of rate limits back"))?;
    Ok(())
}
