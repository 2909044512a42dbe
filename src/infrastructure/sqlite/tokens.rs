//! The tokens of webhooks, and who may get a new one.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;

use crate::domain::{
    interfaces::{StoreError, StoredToken, TokenState, TokenStore},
    values::{SealedSecrets, Timestamp, WebhookId},
};

use super::{SqliteStore, error::failed, rows::Cells};

fn read(row: &SqliteRow) -> Result<TokenState, StoreError> {
    let cells = Cells::new(row, "oauth_tokens");
    let token = if cells.is_null("sealed")? {
        None
    } else {
        Some(StoredToken {
            sealed: SealedSecrets {
                key_id: cells.present("key_id")?,
                bytes: cells.present("sealed")?,
            },
            got_at: cells.time("got_at")?,
            expires_at: cells.time("expires_at")?,
        })
    };
    Ok(TokenState {
        token,
        fetch_until: cells.optional_time("fetch_until")?,
        epoch: cells.get("epoch")?,
    })
}

#[async_trait]
impl TokenStore for SqliteStore {
    async fn token_state(&self, webhook: WebhookId) -> Result<TokenState, StoreError> {
        const READ: &str = "read the token of a webhook";
        let mut connection = self.read(READ).await?;
        let row = sqlx::query("SELECT webhook_id AS id, * FROM oauth_tokens WHERE webhook_id = ?1")
            .bind(webhook.0)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed(READ))?;
        let read = row.as_ref().map(read).transpose()?;
        Ok(read.unwrap_or_default())
    }

    async fn claim_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, StoreError> {
        const CLAIM: &str = "take the right to get a token";
        let mut transaction = self.write(CLAIM).await?;
        let claimed = sqlx::query_scalar(
            "INSERT INTO oauth_tokens (webhook_id, epoch, fetch_until)
            SELECT id, ?2 + 1, ?4 FROM webhooks WHERE id = ?1
            ON CONFLICT (webhook_id) DO UPDATE SET epoch = epoch + 1, fetch_until = ?4
                WHERE epoch = ?2 AND (fetch_until IS NULL OR fetch_until <= ?3)
            RETURNING epoch",
        )
        .bind(webhook.0)
        .bind(epoch)
        .bind(now.timestamp_millis())
        .bind(until.timestamp_millis())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed(CLAIM))?;
        transaction.commit().await.map_err(failed(CLAIM))?;
        Ok(claimed)
    }

    async fn put_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        token: &StoredToken,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "UPDATE oauth_tokens SET epoch = epoch + 1, fetch_until = NULL,
                sealed = ?3, key_id = ?4, got_at = ?5, expires_at = ?6
            WHERE webhook_id = ?1 AND epoch = ?2",
        )
        .bind(webhook.0)
        .bind(epoch)
        .bind(token.sealed.bytes.as_slice())
        .bind(&token.sealed.key_id)
        .bind(token.got_at.timestamp_millis())
        .bind(token.expires_at.timestamp_millis());
        Ok(self.execute("keep the token of a webhook", query).await? > 0)
    }

    async fn release_token(&self, webhook: WebhookId, epoch: i64) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE oauth_tokens SET epoch = epoch + 1, fetch_until = NULL
            WHERE webhook_id = ?1 AND epoch = ?2",
        )
        .bind(webhook.0)
        .bind(epoch);
        self.execute("give back the right to get a token", query)
            .await
            .map(drop)
    }

    async fn prune_tokens(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        // A text that holds it by chance only lets its token be until that has expired.
        let query = sqlx::query(
            "DELETE FROM oauth_tokens WHERE webhook_id IN
                (SELECT t.webhook_id FROM oauth_tokens t JOIN webhooks w ON w.id = t.webhook_id
                WHERE (t.fetch_until IS NULL OR t.fetch_until <= ?1)
                    AND (t.expires_at IS NULL OR t.expires_at <= ?1
                        OR instr(w.config, '\"oauth2\"') = 0)
                LIMIT ?2)",
        )
        .bind(now.timestamp_millis())
        .bind(limit);
        self.execute("prune the tokens of webhooks", query).await
    }
}
