//! The tokens of webhooks, and who may get a new one.

use async_trait::async_trait;

use crate::domain::{
    interfaces::{StoreError, StoredToken, TokenState, TokenStore},
    values::{SealedSecrets, Timestamp, WebhookId},
};

use super::{PostgresStore, error::during};

#[derive(sqlx::FromRow)]
struct Row {
    epoch: i64,
    fetch_until: Option<Timestamp>,
    sealed: Option<Vec<u8>>,
    key_id: Option<String>,
    got_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

impl From<Row> for TokenState {
    fn from(row: Row) -> Self {
        // All four are there, or none (a constraint).
        let sealed = row.key_id.zip(row.sealed);
        let token = sealed.zip(row.got_at.zip(row.expires_at));
        Self {
            token: token.map(|((key_id, bytes), (got_at, expires_at))| StoredToken {
                sealed: SealedSecrets { key_id, bytes },
                got_at,
                expires_at,
            }),
            fetch_until: row.fetch_until,
            epoch: row.epoch,
        }
    }
}

#[async_trait]
impl TokenStore for PostgresStore {
    async fn token_state(&self, webhook: WebhookId) -> Result<TokenState, StoreError> {
        let row: Option<Row> = sqlx::query_as("SELECT * FROM oauth_tokens WHERE webhook_id = $1")
            .bind(webhook.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(during("read the token of a webhook"))?;
        Ok(row.map(TokenState::from).unwrap_or_default())
    }

    async fn claim_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, StoreError> {
        // The webhook's row is locked as the reference to it would do, but before it can be gone.
        sqlx::query_scalar(
            "INSERT INTO oauth_tokens AS t (webhook_id, epoch, fetch_until)
             SELECT id, $2 + 1, $4 FROM webhooks WHERE id = $1 FOR KEY SHARE
             ON CONFLICT (webhook_id) DO UPDATE SET epoch = t.epoch + 1, fetch_until = $4
                 WHERE t.epoch = $2 AND (t.fetch_until IS NULL OR t.fetch_until <= $3)
             RETURNING epoch",
        )
        .bind(webhook.0)
        .bind(epoch)
        .bind(now)
        .bind(until)
        .fetch_optional(&self.pool)
        .await
        .map_err(during("take the right to get a token"))
    }

    async fn put_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        token: &StoredToken,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE oauth_tokens SET epoch = epoch + 1, fetch_until = NULL,
                 sealed = $3, key_id = $4, got_at = $5, expires_at = $6
             WHERE webhook_id = $1 AND epoch = $2",
        )
        .bind(webhook.0)
        .bind(epoch)
        .bind(token.sealed.bytes.as_slice())
        .bind(&token.sealed.key_id)
        .bind(token.got_at)
        .bind(token.expires_at)
        .execute(&self.pool)
        .await
        .map_err(during("keep the token of a webhook"))?;
        Ok(done.rows_affected() > 0)
    }

    async fn release_token(&self, webhook: WebhookId, epoch: i64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE oauth_tokens SET epoch = epoch + 1, fetch_until = NULL
             WHERE webhook_id = $1 AND epoch = $2",
        )
        .bind(webhook.0)
        .bind(epoch)
        .execute(&self.pool)
        .await
        .map_err(during("give back the right to get a token"))?;
        Ok(())
    }

    async fn prune_tokens(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        // A text that holds it by chance only lets its token be until that has expired.
        let done = sqlx::query(
            "WITH old AS MATERIALIZED (
                 SELECT t.webhook_id FROM oauth_tokens t JOIN webhooks w ON w.id = t.webhook_id
                 WHERE (t.fetch_until IS NULL OR t.fetch_until <= $1)
                     AND (t.expires_at IS NULL OR t.expires_at <= $1
                         OR w.config NOT LIKE '%\"oauth2\"%')
                 LIMIT $2 FOR UPDATE OF t SKIP LOCKED
             )
             DELETE FROM oauth_tokens t USING old WHERE t.webhook_id = old.webhook_id",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(during("prune the tokens of webhooks"))?;
        Ok(done.rows_affected())
    }
}
