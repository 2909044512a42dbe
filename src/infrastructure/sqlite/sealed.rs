//! What is sealed, to be sealed anew. One writer at a time: each statement is a transaction by itself.

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use crate::domain::{
    interfaces::{
        CommandKey, Resealed, SealedKind, SealedPlace, SealedStore, StoreError, StoredSealed,
    },
    values::SealedSecrets,
};

use super::{SqliteStore, error::failed, rows::Cells};

#[async_trait]
impl SealedStore for SqliteStore {
    async fn sealed_otherwise(
        &self,
        kind: SealedKind,
        key_id: &str,
        after: Option<&SealedPlace>,
        limit: u32,
    ) -> Result<Vec<StoredSealed>, StoreError> {
        const READ: &str = "read what is sealed";
        let (sql, table) = match kind {
            SealedKind::Integrations => (INTEGRATIONS, "integrations"),
            SealedKind::Webhooks => (WEBHOOKS, "webhooks"),
            SealedKind::SigningSecrets => (SIGNING_SECRETS, "signing_secrets"),
            SealedKind::Replies => (REPLIES, "idempotency"),
        };
        let (id, position) = after.map_or((Uuid::nil(), -1), id_of);
        let command = after.and_then(command_of);
        let mut connection = self.read(READ).await?;
        let rows = sqlx::query(sql)
            .bind(key_id)
            .bind(limit)
            .bind(id)
            .bind(position)
            .bind(command.map_or("", |command| command.tenant.as_str()))
            .bind(command.map_or("", |command| &command.action))
            .bind(command.map_or("", |command| &command.key))
            .fetch_all(&mut *connection)
            .await
            .map_err(failed(READ))?;
        rows.iter()
            .map(|row| stored(kind, Cells::new(row, table)))
            .collect()
    }

    async fn reseal(&self, kind: SealedKind, changes: &[Resealed]) -> Result<u64, StoreError> {
        if changes.is_empty() {
            return Ok(0);
        }
        let sql = match kind {
            SealedKind::Integrations => RESEAL_INTEGRATIONS,
            SealedKind::Webhooks => RESEAL_WEBHOOKS,
            SealedKind::SigningSecrets => RESEAL_SIGNING_SECRETS,
            SealedKind::Replies => RESEAL_REPLIES,
        };
        let changes: Vec<serde_json::Value> = changes.iter().map(change).collect();
        let query = sqlx::query(sql).bind(json!(changes).to_string());
        self.execute("write what was sealed anew", query).await
    }
}

fn stored(kind: SealedKind, cells: Cells<'_>) -> Result<StoredSealed, StoreError> {
    let place = match kind {
        SealedKind::Integrations | SealedKind::Webhooks => {
            SealedPlace::Credentials(cells.get("id")?)
        }
        SealedKind::SigningSecrets => {
            SealedPlace::SigningSecret(cells.get("id")?, cells.get("position")?)
        }
        SealedKind::Replies => SealedPlace::Reply(CommandKey {
            tenant: cells.tenant()?,
            action: cells.get("action")?,
            key: cells.get("key")?,
        }),
    };
    let sealed = SealedSecrets {
        key_id: cells.present("key_id")?,
        bytes: cells.present("sealed")?,
    };
    Ok(StoredSealed { place, sealed })
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

/// As the statements read it: ids and bytes in hex.
fn change(change: &Resealed) -> serde_json::Value {
    let command = command_of(&change.before.place);
    json!({
        "id": id_of(&change.before.place).0.simple().to_string(),
        "tenant": command.map(|command| command.tenant.as_str()),
        "action": command.map(|command| &command.action),
        "key": command.map(|command| &command.key),
        "before": hex(&change.before.sealed.bytes),
        "after": hex(&change.after.bytes),
        "key_id": change.after.key_id,
    })
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| DIGITS.get(usize::from(digit)))
        .collect()
}

// Every statement takes all parameters: ?1 the key, ?2 the limit, ?3 to ?7 the place.
macro_rules! select_credentials {
    ($table:literal) => {
        concat!(
            "SELECT id, credentials_key_id AS key_id, credentials AS sealed FROM ",
            $table,
            " WHERE credentials_key_id <> ?1 AND id > ?3 AND ?4 || ?5 || ?6 || ?7 IS NOT NULL
            ORDER BY id LIMIT ?2"
        )
    };
}

const INTEGRATIONS: &str = select_credentials!("integrations");
const WEBHOOKS: &str = select_credentials!("webhooks");
const SIGNING_SECRETS: &str = "SELECT webhook_id AS id, position, key_id, sealed
    FROM signing_secrets
    WHERE key_id <> ?1 AND (webhook_id, position) > (?3, ?4) AND ?5 || ?6 || ?7 IS NOT NULL
    ORDER BY webhook_id, position LIMIT ?2";
const REPLIES: &str = "SELECT key AS id, tenant, action, key, key_id, reply AS sealed
    FROM idempotency
    WHERE key_id <> ?1 AND (tenant, action, key) > (?5, ?6, ?7) AND ?3 || ?4 IS NOT NULL
    ORDER BY tenant, action, key LIMIT ?2";

macro_rules! reseal {
    ($update:literal) => {
        concat!(
            "WITH new AS MATERIALIZED (
                SELECT unhex(value ->> 'id') AS id, value ->> 'tenant' AS tenant,
                    value ->> 'action' AS action, value ->> 'key' AS key,
                    unhex(value ->> 'before') AS before, unhex(value ->> 'after') AS after,
                    value ->> 'key_id' AS key_id
                FROM json_each(?1)
            ) UPDATE ",
            $update
        )
    };
}

const RESEAL_INTEGRATIONS: &str = reseal!(
    "integrations SET credentials = new.after, credentials_key_id = new.key_id FROM new
    WHERE integrations.id = new.id AND integrations.credentials = new.before"
);
const RESEAL_WEBHOOKS: &str = reseal!(
    "webhooks SET credentials = new.after, credentials_key_id = new.key_id FROM new
    WHERE webhooks.id = new.id AND webhooks.credentials = new.before"
);
const RESEAL_SIGNING_SECRETS: &str = reseal!(
    "signing_secrets SET sealed = new.after, key_id = new.key_id FROM new
    WHERE signing_secrets.webhook_id = new.id AND signing_secrets.sealed = new.before"
);
const RESEAL_REPLIES: &str = reseal!(
    "idempotency SET reply = new.after, key_id = new.key_id FROM new
    WHERE idempotency.tenant = new.tenant AND idempotency.action = new.action
        AND idempotency.key = new.key AND idempotency.reply = new.before"
);
