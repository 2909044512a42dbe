//! A webhook: which events go to which address, and how.

use std::{fmt, time::Duration};

use crate::domain::{
    events::{Change, WebhookChange},
    policies::{RateLimit, RetryPolicy},
    values::{EventPattern, IntegrationId, SealedSecrets, SecretConfig, Timestamp, WebhookId},
};

use super::EntityMeta;

/// The HTTP method of a delivery; each carries the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    /// GET
    Get,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
}

impl HttpMethod {
    /// All methods, in the order of the contract.
    pub const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == text)
    }
}

/// What the body of a delivery looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// `{"type","timestamp","data"}` of Standard Webhooks.
    Standard,
    /// CloudEvents 1.0, structured JSON.
    CloudEvents,
    /// CloudEvents 1.0, binary: attributes in `ce-` headers, the body is the data.
    CloudEventsBinary,
    /// The message as it was published.
    Raw,
}

impl BodyFormat {
    /// All formats, in the order of the contract.
    pub const ALL: [Self; 4] = [
        Self::Standard,
        Self::CloudEvents,
        Self::CloudEventsBinary,
        Self::Raw,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::CloudEvents => "cloudevents",
            Self::CloudEventsBinary => "cloudevents-binary",
            Self::Raw => "raw",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }
}

/// How the secrets of a webhook sign. What `config.signing` says is what new secrets are; each secret
/// signs in its own way for as long as it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Signing {
    /// HMAC-SHA256 with a shared secret.
    #[default]
    V1,
    /// ed25519: the receiver needs the public key alone.
    V1a,
}

impl Signing {
    /// All ways, in the order of the contract.
    pub const ALL: [Self; 2] = [Self::V1, Self::V1a];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1a => "v1a",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|signing| signing.as_str() == text)
    }
}

/// What a delivery needs to know of a webhook's configuration; read from its shown form. URL and headers
/// may hold secrets.
#[derive(Clone, PartialEq)]
pub struct WebhookSettings {
    /// Where to: `http` or `https`, no userinfo.
    pub url: String,
    /// How.
    pub method: HttpMethod,
    /// Further headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Connecting, sending and reading the answer.
    pub timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// What the body looks like.
    pub format: BodyFormat,
    /// The expression that decides whether an event goes out.
    pub filter: Option<String>,
    /// The expression that makes the `data` of the body.
    pub transform: Option<String>,
    /// Which deliveries wait for each other, if any do.
    pub ordering: Option<Ordering>,
    /// How many events go out in one request, if not one.
    pub batch: Option<BatchRule>,
    /// How many requests it may get in a time, from all workers together.
    pub rate_limit: Option<RateLimit>,
    /// How many requests one worker may have under way there; `None` is as many as for any endpoint.
    pub max_in_flight: Option<u32>,
    /// What becomes of an endpoint's answer, if anything does.
    pub response: Option<ResponseSettings>,
}

/// When events that wait are sent together: as soon as one of these is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRule {
    /// Events in one request at most: 2–1,000.
    pub max_events: u32,
    /// Bytes of one request's body at most, 1 KiB–1 MiB; a single event may have more.
    pub max_bytes: u32,
    /// How long an event waits for others: up to 5 min.
    pub max_wait: Duration,
}

impl BatchRule {
    /// What `max_events` may be.
    pub const EVENTS: std::ops::RangeInclusive<u32> = 2..=1_000;
    /// What `max_bytes` may be.
    pub const BYTES: std::ops::RangeInclusive<u32> = 1_024..=1_048_576;
    /// The longest `max_wait`.
    pub const LONGEST_WAIT: Duration = Duration::from_mins(5);
}

impl Default for BatchRule {
    fn default() -> Self {
        Self {
            max_events: 100,
            max_bytes: 262_144,
            max_wait: Duration::from_secs(1),
        }
    }
}

/// A 2xx answer becomes an event for the ERP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseSettings {
    /// The event's type.
    pub event: String,
    /// The expression that makes its data of event and answer; without one the answer is the data.
    pub data: Option<String>,
}

impl ResponseSettings {
    /// Longest type, in bytes: with `ERP_RESPONSE_SUBJECT` before it, it is a NATS subject.
    pub const MAX_TYPE: usize = 127;
}

/// Deliveries with the same key go out one after the other, in the order of the source stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordering {
    /// An expression over the event.
    pub key: String,
    /// What becomes of those behind one that is exhausted.
    pub on_exhausted: OnExhausted,
}

/// What becomes of a lane whose front is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// The next one goes out.
    Continue,
    /// All wait until it is retried, cancelled, or the webhook no longer asks for this.
    Block,
}

impl OnExhausted {
    /// All, in the order of the contract.
    pub const ALL: [Self; 2] = [Self::Continue, Self::Block];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Block => "block",
        }
    }
}

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings")
            .field("method", &self.method)
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

/// Where a webhook stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookStatus {
    /// New; it receives events at once.
    Pending,
    /// It has had a success, or was activated.
    Active,
    /// Turned off by a user; nothing is matched.
    Inactive,
    /// Disabled by the worker; what matches stays parked until it is activated.
    Error {
        /// Why.
        error: String,
    },
}

impl WebhookStatus {
    /// The name on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Error { .. } => "error",
        }
    }
}

/// One signing secret; the newest has no end, the older ones sign until theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningSecret {
    /// The sealed key; plain as `NewSecret::plain` says, so that it tells how it signs.
    pub sealed: SealedSecrets,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it signs; `None` for the current one.
    pub expires_at: Option<Timestamp>,
}

/// What a new webhook is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct NewWebhook {
    /// Its id.
    pub id: WebhookId,
    /// The integration that it belongs to.
    pub integration_id: IntegrationId,
    /// Name, version, history.
    pub meta: EntityMeta,
    /// What it receives; at least one.
    pub events: Vec<EventPattern>,
    /// How to deliver; credentials sealed.
    pub config: SecretConfig,
    /// Its first signing secret.
    pub secret: SigningSecret,
}

/// Which events go where.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// The integration that it belongs to.
    pub integration_id: IntegrationId,
    /// Name, version, history.
    pub meta: EntityMeta,
    /// What it receives; at least one.
    pub events: Vec<EventPattern>,
    /// Where it stands.
    pub status: WebhookStatus,
    /// How to deliver, as given; credentials sealed.
    pub config: SecretConfig,
    /// Newest first; at most [`Webhook::MAX_SECRETS`].
    pub secrets: Vec<SigningSecret>,
}

impl Webhook {
    /// How many signing secrets are valid at a time: each signs every request.
    pub const MAX_SECRETS: usize = 5;
    /// How many patterns one webhook may list.
    pub const MAX_EVENTS: usize = 100;

    /// A new webhook: `pending`, and receiving events at once.
    pub fn create(new: NewWebhook) -> (Self, WebhookChange) {
        let change = WebhookChange {
            id: new.id,
            version: new.meta.version,
            change: Change::Created,
        };
        let webhook = Self {
            id: new.id,
            integration_id: new.integration_id,
            meta: new.meta,
            events: new.events,
            status: WebhookStatus::Pending,
            config: new.config,
            secrets: vec![new.secret],
        };
        (webhook, change)
    }

    /// Any other state → `active`; nothing to do when it is active.
    #[must_use]
    pub fn activate(&mut self, actor: &str, now: Timestamp) -> Option<WebhookChange> {
        if self.status == WebhookStatus::Active {
            return None;
        }
        Some(self.move_to(WebhookStatus::Active, Change::Activated, actor, now))
    }

    /// The first success of a `pending` webhook makes it `active`.
    #[must_use]
    pub fn first_success(&mut self, now: Timestamp) -> Option<WebhookChange> {
        if self.status == WebhookStatus::Pending {
            self.activate("system", now)
        } else {
            None
        }
    }

    /// Any state → `inactive`; nothing to do when it is inactive.
    #[must_use]
    pub fn deactivate(&mut self, actor: &str, now: Timestamp) -> Option<WebhookChange> {
        if self.status == WebhookStatus::Inactive {
            return None;
        }
        Some(self.move_to(WebhookStatus::Inactive, Change::Deactivated, actor, now))
    }

    /// The worker gives up on the address: `pending`, `active` → `error`.
    #[must_use]
    pub fn disable(&mut self, reason: &str, now: Timestamp) -> Option<WebhookChange> {
        if !matches!(self.status, WebhookStatus::Pending | WebhookStatus::Active) {
            return None;
        }
        let status = WebhookStatus::Error {
            error: reason.to_owned(),
        };
        Some(self.move_to(status, Change::Disabled, "system", now))
    }

    /// Makes `secret` the current one; former ones sign until `now + overlap` at the latest.
    pub fn rotate_secret(
        &mut self,
        secret: SigningSecret,
        overlap: Duration,
        actor: &str,
        now: Timestamp,
    ) -> WebhookChange {
        // None of the former ones signs for longer than this, so an overlap of 0 ends them all.
        let end = now + overlap;
        for former in &mut self.secrets {
            former.expires_at = Some(former.expires_at.map_or(end, |its_own| its_own.min(end)));
        }
        self.secrets
            .retain(|s| s.expires_at.is_none_or(|end| end > now));
        self.secrets.insert(0, secret);
        self.secrets.truncate(Self::MAX_SECRETS);
        self.changed(Change::SecretRotated, actor, now)
    }

    /// Counts a change that is no transition.
    pub fn changed(&mut self, change: Change, actor: &str, now: Timestamp) -> WebhookChange {
        self.meta.touch(actor, now);
        WebhookChange {
            id: self.id,
            version: self.meta.version,
            change,
        }
    }

    fn move_to(
        &mut self,
        status: WebhookStatus,
        change: Change,
        actor: &str,
        now: Timestamp,
    ) -> WebhookChange {
        self.status = status;
        self.changed(change, actor, now)
    }
}
