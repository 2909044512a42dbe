//! The signing secrets of webhooks: made here, shown once, sealed with the webhook's id.

use std::time::Duration;

use serde_json::Value;

use crate::{
    application::{
        endpoint::{Endpoint, SigningKey},
        ports::Scope,
        webhook_settings::{authentication, compiled, signing, webhook_settings},
    },
    domain::{
        entities::{Signing, SigningSecret, Webhook},
        policies::{NewSecret, SignatureKey},
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

/// How long the former secret signs too, when nothing is said.
const DEFAULT_OVERLAP: Duration = Duration::from_hours(24);
/// The longest overlap, in milliseconds: 7 d.
const LONGEST_OVERLAP: u64 = 7 * 24 * 3_600_000;

/// A secret as it is answered, once.
pub(super) struct Shown {
    secret: String,
    public_key: Option<String>,
}

impl Shown {
    /// Adds `secret`, and `publicKey` where there is one.
    pub(super) fn put(self, view: &mut Value) {
        view["secret"] = Value::String(self.secret);
        if let Some(public_key) = self.public_key {
            view["publicKey"] = Value::String(public_key);
        }
    }
}

/// `rotate_secret {id, overlap?, expectedVersion?}`; answers the new secret, once. It signs as
/// `config.signing` says now; former ones sign as they always did.
pub(super) async fn rotate(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let overlap = fields.duration("overlap", 0..=LONGEST_OVERLAP);
    let id = checked(fields, id)?;

    let mut webhook = webhook::locked(work, id, expected).await?;
    let signing = signing(&webhook.config.shown);
    let (secret, shown) = new_secret(work.ports, webhook.id, signing, work.now)?;
    let overlap = overlap.unwrap_or(DEFAULT_OVERLAP);
    let change = webhook.rotate_secret(secret, overlap, work.actor(), work.now);
    let mut view = webhook::write(work, &webhook, change).await?;
    shown.put(&mut view);
    Ok(view)
}

/// Makes a secret: sealed, and as it is shown once.
pub(super) fn new_secret(
    ports: &Ports,
    webhook: WebhookId,
    signing: Signing,
    now: Timestamp,
) -> Result<(SigningSecret, Shown), CommandError> {
    let random = ports.clock.secret_bytes(NewSecret::BYTES);
    let made = NewSecret::make(signing, random)
        .ok_or_else(|| Refusal::new(ErrorCode::Internal, "no signing secret could be made"))?;
    let secret = SigningSecret {
        sealed: ports.cipher.seal(&made.plain, &webhook.to_string())?,
        created_at: now,
        expires_at: None,
    };
    let shown = Shown {
        secret: made.secret,
        public_key: made.public_key,
    };
    Ok((secret, shown))
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
            key: SignatureKey::from_plain(&bytes),
            expires_at: secret.expires_at,
        });
    }
    let authentication = authentication(&webhook.config, |s| ports.cipher.open(s, &context))?;
    let expressions = ports.settings.expressions.as_ref();
    let transform = settings.transform.as_deref();
    compiled(expressions, "transform", transform, Scope::Event)
        .and_then(|transform| {
            let endpoint = Endpoint::compile(settings, keys)?.with_transform(transform);
            endpoint.with_authentication(webhook.id, authentication)
        })
        .map_err(|problem| Refusal::at(ErrorCode::ValidationFailed, "config", problem).into())
}
