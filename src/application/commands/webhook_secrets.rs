//! The signing secrets of webhooks: made here, shown once, sealed with the webhook's id.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;

use crate::{
    application::{
        endpoint::{Endpoint, SigningKey},
        webhook_settings::{authentication, compiled, webhook_settings},
    },
    domain::{
        entities::{SigningSecret, Webhook},
        values::{Timestamp, WebhookId},
    },
};

use super::{
    Ports,
    body::Body,
    fields::Fields,
    labels::expected_version,
    reply::{ErrorCode, Refusal},
    webhook,
    work::{CommandError, Outcome, Work, checked},
};

/// How long a secret is, in bytes.
const SECRET_BYTES: usize = 32;
/// How long the former secret signs too, when nothing is said.
const DEFAULT_OVERLAP: Duration = Duration::from_hours(24);
/// The longest overlap, in milliseconds: 7 d.
const LONGEST_OVERLAP: u64 = 7 * 24 * 3_600_000;

/// `rotate_secret {id, overlap?, expectedVersion?}`; answers the new secret, once.
pub(super) async fn rotate(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let overlap = fields.duration("overlap", 0..=LONGEST_OVERLAP);
    let id = checked(fields, id)?;

    let mut webhook = webhook::locked(work, id, expected).await?;
    let (secret, shown) = new_secret(work.ports, webhook.id, work.now)?;
    let overlap = overlap.unwrap_or(DEFAULT_OVERLAP);
    let change = webhook.rotate_secret(secret, overlap, work.actor(), work.now);
    let mut view = webhook::write(work, &webhook, change).await?;
    view["secret"] = Value::String(shown);
    Ok(view)
}

/// Makes a secret: sealed, and as it is shown once (`whsec_…`).
pub(super) fn new_secret(
    ports: &Ports,
    webhook: WebhookId,
    now: Timestamp,
) -> Result<(SigningSecret, String), CommandError> {
    let bytes = ports.clock.secret_bytes(SECRET_BYTES);
    let secret = SigningSecret {
        sealed: ports.cipher.seal(&bytes, &webhook.to_string())?,
        created_at: now,
        expires_at: None,
    };
    Ok((secret, format!("whsec_{}", STANDARD.encode(bytes))))
}

/// Makes a webhook ready to send, with the secrets that sign at `now`.
pub(super) fn endpoint(
    ports: &Ports,
    webhook: &Webhook,
    now: Timestamp,
) -> Result<Endpoint, CommandError> {
    // What was saved under other rules may be refused today; an address is, when it is sent to.
    let settings = webhook_settings(&webhook.config.shown, None)?;
    let context = webhook.id.to_string();
    let mut keys = Vec::with_capacity(webhook.secrets.len());
    let signs = |secret: &&SigningSecret| secret.expires_at.is_none_or(|end| end > now);
    for secret in webhook.secrets.iter().filter(signs) {
        let bytes = ports.cipher.open(&secret.sealed, &context)?;
        keys.push(SigningKey {
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            expires_at: secret.expires_at,
        });
    }
    let authentication = authentication(&webhook.config, |s| ports.cipher.open(s, &context))?;
    let expressions = ports.settings.expressions.as_ref();
    compiled(expressions, "transform", settings.transform.as_deref())
        .and_then(|transform| {
            let endpoint = Endpoint::compile(settings, keys)?.with_transform(transform);
            endpoint.with_authentication(authentication)
        })
        .map_err(|problem| Refusal::at(ErrorCode::ValidationFailed, "config", problem).into())
}
