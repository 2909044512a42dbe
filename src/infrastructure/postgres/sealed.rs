//! What is sealed, to be sealed anew.
//!
//! A webhook's row is locked before its signing secrets are changed, as every rotation does, so that
//! neither writes over the other.

use async_trait::async_trait;
use sqlx::postgres::PgBindIterExt as _;
use uuid::Uuid;

use crate::domain::{
    interfaces::{
        CommandKey, Resealed, SealedKind, SealedPlace, SealedStore, StoreError, StoredSealed,
    },
    values::{SealedSecrets, TenantId},
};

use super::{PostgresStore, error::during, text::clean};

const READ: &str = "read what is sealed";
const WRITE: &str = "write what was sealed anew";

#[async_trait]
impl SealedStore for PostgresStore {
    async fn sealed_otherwise(
        &self,
        kind: SealedKind,
        key_id: &str,
        after: Option<&SealedPlace>,
        limit: u32,
    ) -> Result<Vec<StoredSealed>, StoreError> {
        match kind {
            SealedKind::Replies => self.replies(key_id, after, limit).await,
            SealedKind::Integrations => self.secrets(INTEGRATIONS, key_id, after, limit).await,
            SealedKind::Webhooks => self.secrets(WEBHOOKS, key_id, after, limit).await,
            SealedKind::SigningSecrets => self.secrets(SIGNING_SECRETS, key_id, after, limit).await,
        }
    }

    async fn reseal(&self, kind: SealedKind, changes: &[Resealed]) -> Result<u64, StoreError> {
        if changes.is_empty() {
            return Ok(0);
        }
        let sql = match kind {
            SealedKind::Replies => return self.reseal_replies(changes).await,
            SealedKind::Integrations => RESEAL_INTEGRATIONS,
            SealedKind::Webhooks => RESEAL_WEBHOOKS,
            SealedKind::SigningSecrets => RESEAL_SIGNING_SECRETS,
        };
        let ids = changes.iter().map(|change| id_of(&change.before.place).0);
        let before = changes.iter().map(|c| c.before.sealed.bytes.as_slice());
        let after = changes.iter().map(|change| change.after.bytes.as_slice());
        let keys = changes.iter().map(|change| change.after.key_id.as_str());
        let done = sqlx::query(sql)
            .bind(ids.bind_iter())
            .bind(before.bind_iter())
            .bind(after.bind_iter())
            .bind(keys.bind_iter())
            .execute(&self.pool)
            .await
            .map_err(during(WRITE))?;
        Ok(done.rows_affected())
    }
}

impl PostgresStore {
    async fn secrets(
        &self,
        sql: &'static str,
        key_id: &str,
        after: Option<&SealedPlace>,
        limit: u32,
    ) -> Result<Vec<StoredSealed>, StoreError> {
        let (id, position) = after.map_or((Uuid::nil(), -1), id_of);
        let rows: Vec<(Uuid, Option<i32>, String, Vec<u8>)> = sqlx::query_as(sql)
            .bind(key_id)
            .bind(id)
            .bind(position)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(during(READ))?;
        let secrets = rows.into_iter().map(|(id, position, key_id, bytes)| {
            let place = match position {
                Some(position) => SealedPlace::SigningSecret(id, position),
                None => SealedPlace::Credentials(id),
            };
            let sealed = SealedSecrets { key_id, bytes };
            StoredSealed { place, sealed }
        });
        Ok(secrets.collect())
    }

    async fn replies(
        &self,
        key_id: &str,
        after: Option<&SealedPlace>,
        limit: u32,
    ) -> Result<Vec<StoredSealed>, StoreError> {
        let after = after.and_then(command_of);
        let after = after.map_or(("", "", ""), |after| {
            (after.tenant.as_str(), &after.action, &after.key)
        });
        let rows: Vec<(String, String, String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT tenant, action, key, key_id, reply FROM idempotency
             WHERE key_id <> $1 AND (tenant, action, key) > ($2, $3, $4)
             ORDER BY tenant, action, key LIMIT $5",
        )
        .bind(key_id)
        .bind(after.0)
        .bind(clean(after.1))
        .bind(clean(after.2))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(during(READ))?;
        let replies = rows
            .into_iter()
            .map(|(tenant, action, key, key_id, bytes)| {
                let tenant = TenantId::try_new(&tenant).map_err(|error| StoreError::BadRow {
                    table: "idempotency",
                    column: "tenant",
                    id: format!("{tenant}, {action}, {key}"),
                    problem: error.to_string(),
                })?;
                let command = CommandKey {
                    tenant,
                    action,
                    key,
                };
                Ok(StoredSealed {
                    place: SealedPlace::Reply(command),
                    sealed: SealedSecrets { key_id, bytes },
                })
            });
        replies.collect()
    }

    async fn reseal_replies(&self, changes: &[Resealed]) -> Result<u64, StoreError> {
        let of = |change: &'_ Resealed| command_of(&change.before.place).cloned();
        let commands: Vec<(CommandKey, &Resealed)> = changes
            .iter()
            .filter_map(|change| Some((of(change)?, change)))
            .collect();
        let each = || commands.iter();
        let done = sqlx::query(
            "WITH new AS (
                 SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[],
                     $5::bytea[], $6::text[]) AS n (tenant, action, key, before, after, key_id)
             ), locked AS MATERIALIZED (
                 SELECT i.tenant, i.action, i.key FROM idempotency i
                 JOIN new n USING (tenant, action, key)
                 ORDER BY i.tenant, i.action, i.key FOR NO KEY UPDATE OF i
             )
             UPDATE idempotency i SET reply = n.after, key_id = n.key_id
             FROM new n JOIN locked l USING (tenant, action, key)
             WHERE i.tenant = n.tenant AND i.action = n.action AND i.key = n.key
                 AND i.reply = n.before",
        )
        .bind(each().map(|(key, _)| key.tenant.as_str()).bind_iter())
        .bind(each().map(|(key, _)| clean(&key.action)).bind_iter())
        .bind(each().map(|(key, _)| clean(&key.key)).bind_iter())
        .bind(
            each()
                .map(|(_, change)| change.before.sealed.bytes.as_slice())
                .bind_iter(),
        )
        .bind(
            each()
                .map(|(_, change)| change.after.bytes.as_slice())
                .bind_iter(),
        )
        .bind(
            each()
                .map(|(_, change)| change.after.key_id.as_str())
                .bind_iter(),
        )
        .execute(&self.pool)
        .await
        .map_err(during(WRITE))?;
        Ok(done.rows_affected())
    }
}

fn id_of(place: &SealedPlace) -> (Uuid, i32) {
    match place {
        SealedPlace::Credentials(id) => (*id, -1),
        SealedPlace::SigningSecret(id, position) => (*id, *position),
        SealedPlace::Reply(_) => (Uuid::nil(), -1),
    }
}

fn command_of(place: &SealedPlace) -> Option<&CommandKey> {
    match place {
        SealedPlace::Reply(key) => Some(key),
        _ => None,
    }
}

macro_rules! select_credentials {
    ($table:literal) => {
        concat!(
            "SELECT id, NULL::integer, credentials_key_id, credentials FROM ",
            $table,
            " WHERE credentials_key_id <> $1 AND id > $2 AND $3::integer IS NOT NULL
             ORDER BY id LIMIT $4"
        )
    };
}

const INTEGRATIONS: &str = select_credentials!("integrations");
const WEBHOOKS: &str = select_credentials!("webhooks");
const SIGNING_SECRETS: &str = "SELECT webhook_id, position, key_id, sealed FROM signing_secrets
    WHERE key_id <> $1 AND (webhook_id, position) > ($2, $3)
    ORDER BY webhook_id, position LIMIT $4";

macro_rules! reseal {
    ($locked:literal, $update:literal) => {
        concat!(
            "WITH new AS (
                 SELECT * FROM UNNEST($1::uuid[], $2::bytea[], $3::bytea[], $4::text[])
                     AS n (id, before, after, key_id)
             ), locked AS MATERIALIZED (
                 SELECT e.id FROM ",
            $locked,
            " e WHERE e.id IN (SELECT n.id FROM new n) ORDER BY e.id FOR NO KEY UPDATE OF e
             ) UPDATE ",
            $update
        )
    };
}

const RESEAL_INTEGRATIONS: &str = reseal!(
    "integrations",
    "integrations e SET credentials = n.after, credentials_key_id = n.key_id
     FROM new n JOIN locked l ON l.id = n.id WHERE e.id = n.id AND e.credentials = n.before"
);
const RESEAL_WEBHOOKS: &str = reseal!(
    "webhooks",
    "webhooks e SET credentials = n.after, credentials_key_id = n.key_id
     FROM new n JOIN locked l ON l.id = n.id WHERE e.id = n.id AND e.credentials = n.before"
);
const RESEAL_SIGNING_SECRETS: &str = reseal!(
    "webhooks",
    "signing_secrets e SET sealed = n.after, key_id = n.key_id
     FROM new n JOIN locked l ON l.id = n.id WHERE e.webhook_id = n.id AND e.sealed = n.before"
);
