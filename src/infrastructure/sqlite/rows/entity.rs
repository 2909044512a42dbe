//! Integrations and webhooks.

use serde::Deserialize;
use sqlx::sqlite::SqliteRow;

use crate::domain::{
    entities::{
        EntityMeta, Integration, IntegrationStatus, IntegrationType, SigningSecret, Webhook,
        WebhookStatus,
    },
    interfaces::{StoreError, UnreadableWebhook},
    values::{EventPattern, IntegrationId, SealedSecrets, SecretConfig, WebhookId},
};

use super::{Cells, to_time};

pub(in super::super) fn integration(row: &SqliteRow) -> Result<Integration, StoreError> {
    let cells = Cells::new(row, "integrations");
    let status = match cells.get("status")? {
        "pending" => IntegrationStatus::Pending,
        "active" => IntegrationStatus::Active,
        "inactive" => IntegrationStatus::Inactive,
        "error" => IntegrationStatus::Error {
            error: cells.present("error")?,
        },
        _ => return Err(cells.bad("status", "an unknown value")),
    };
    Ok(Integration {
        id: IntegrationId(cells.get("id")?),
        meta: meta(cells)?,
        kind: cells.parse("type", IntegrationType::parse)?,
        status,
        config: config(cells)?,
    })
}

/// A webhook with its secrets, which stand in the column `secrets` as JSON.
pub(in super::super) fn webhook(row: &SqliteRow) -> Result<Webhook, StoreError> {
    let cells = Cells::new(row, "webhooks");
    let status = match cells.get("status")? {
        "pending" => WebhookStatus::Pending,
        "active" => WebhookStatus::Active,
        "inactive" => WebhookStatus::Inactive,
        "error" => WebhookStatus::Error {
            error: cells.present("error")?,
        },
        _ => return Err(cells.bad("status", "an unknown value")),
    };
    let events = cells.json::<Vec<EventPattern>>("events")?;
    if events.is_empty() {
        return Err(cells.bad("events", "it is empty"));
    }
    Ok(Webhook {
        id: WebhookId(cells.get("id")?),
        integration_id: IntegrationId(cells.get("integration_id")?),
        meta: meta(cells)?,
        events,
        status,
        config: config(cells)?,
        secrets: secrets(row)?,
    })
}

/// What of a webhook is needed when the rest cannot be read; `None` when it receives nothing.
pub(in super::super) fn needed_of_webhook(
    row: &SqliteRow,
    problem: String,
) -> Option<UnreadableWebhook> {
    let cells = Cells::new(row, "webhooks");
    if cells.get::<&str>("status").ok() == Some(WebhookStatus::Inactive.as_str()) {
        return None;
    }
    let events = cells.json::<Vec<EventPattern>>("events").ok();
    Some(UnreadableWebhook {
        id: WebhookId(cells.get("id").ok()?),
        integration_id: IntegrationId(cells.get("integration_id").ok()?),
        tenant: cells.tenant().ok()?,
        events: events.filter(|events| !events.is_empty()),
        problem,
    })
}

fn meta(cells: Cells<'_>) -> Result<EntityMeta, StoreError> {
    Ok(EntityMeta {
        tenant: cells.tenant()?,
        name: cells.get("name")?,
        description: cells.get("description")?,
        tags: cells.json("tags")?,
        version: cells.get("version")?,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
        created_by: cells.get("created_by")?,
        updated_by: cells.get("updated_by")?,
    })
}

fn config(cells: Cells<'_>) -> Result<SecretConfig, StoreError> {
    Ok(SecretConfig {
        shown: cells.json("config")?,
        sealed: cells.credentials()?,
    })
}

/// One element of the column `secrets`.
#[derive(Deserialize)]
struct Secret {
    sealed: String,
    key_id: String,
    created_at: i64,
    expires_at: Option<i64>,
}

fn secrets(row: &SqliteRow) -> Result<Vec<SigningSecret>, StoreError> {
    let cells = Cells::new(row, "signing_secrets");
    let time = |column, millis| to_time(millis).ok_or_else(|| cells.bad(column, "no time"));
    let secrets: Vec<Secret> = cells.json("secrets")?;
    let secrets = secrets.into_iter().map(|secret| {
        let expires_at = secret.expires_at.map(|end| time("expires_at", end));
        Ok(SigningSecret {
            sealed: SealedSecrets {
                key_id: secret.key_id,
                bytes: from_hex(&secret.sealed).ok_or_else(|| cells.bad("sealed", "no hex"))?,
            },
            created_at: time("created_at", secret.created_at)?,
            expires_at: expires_at.transpose()?,
        })
    });
    secrets.collect()
}

/// Reads what SQLite's `hex` wrote.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok());
    rest.is_empty().then(|| bytes.collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_and_everything_else_is_not() {
        assert_eq!(from_hex("00FFa5"), Some(vec![0, 255, 165]));
        assert_eq!(from_hex(""), Some(Vec::new()));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
