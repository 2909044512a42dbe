//! Identifiers. Entity ids are UUIDv7; a delivery's id is derived from what it delivers.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::TenantId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An integration.
    IntegrationId
);
id!(
    /// A webhook.
    WebhookId
);
id!(
    /// One event to one webhook; also the `webhook-id` that the receiver sees.
    DeliveryId
);

impl DeliveryId {
    /// The delivery of an event to a webhook: name-based (UUIDv5), so that a redelivered or repeated
    /// event is the same delivery on every worker, before any row exists (ADR 0002).
    pub fn derive(webhook: WebhookId, tenant: &TenantId, event_id: &str) -> Self {
        let mut name = Vec::with_capacity(tenant.as_str().len() + 1 + event_id.len());
        name.extend_from_slice(tenant.as_str().as_bytes());
        name.push(0);
        name.extend_from_slice(event_id.as_bytes());
        Self(Uuid::new_v5(&webhook.0, &name))
    }

    /// The id of the domain event at `version` of this delivery, the same on every publication.
    pub fn event_id(self, version: i64) -> Uuid {
        Uuid::new_v5(&self.0, &version.to_be_bytes())
    }
}

/// A command's id: its idempotency key, else a UUIDv7.
pub type CommandId = String;

/// Attempt `number` (from 1) of a delivery.
pub type AttemptRef = (DeliveryId, i32);
