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
    /// A replay or backfill of a webhook.
    ReplayId
);
id!(
    /// One event to one webhook; also the `webhook-id` that the receiver sees.
    DeliveryId
);
id!(
    /// Several deliveries that are claimed together and go out in one request. Once they were sent it is
    /// the `webhook-id` that the receiver saw of it.
    BatchId
);

impl BatchId {
    /// The batch of these deliveries in this order: name-based (UUIDv5), so that the same ones are always
    /// sent under the same id, and others never are (ADR 0011).
    pub fn of(members: impl IntoIterator<Item = DeliveryId>) -> Self {
        let name: Vec<u8> = members
            .into_iter()
            .flat_map(|id| *id.0.as_bytes())
            .collect();
        Self(Uuid::new_v5(&Uuid::nil(), &name))
    }
}

impl DeliveryId {
    /// The delivery of an event to a webhook: name-based (UUIDv5), so that a redelivered or repeated
    /// event is the same delivery on every worker, before any row exists (ADR 0002).
    pub fn derive(webhook: WebhookId, tenant: &TenantId, event_id: &str) -> Self {
        Self::named(webhook, &[tenant.as_str(), event_id])
    }

    /// The delivery of what the command `action` (`webhook.trigger`) sends to a webhook. The id of a
    /// command is chosen by the user and may be that of a business event: the name has a part more,
    /// which no event's has (neither a tenant nor an id holds a NUL), so the two are never one delivery.
    pub fn derive_for_command(
        webhook: WebhookId,
        tenant: &TenantId,
        command_id: &str,
        action: &str,
    ) -> Self {
        Self::named(webhook, &[tenant.as_str(), command_id, action])
    }

    /// The parts with a NUL between them.
    fn named(webhook: WebhookId, parts: &[&str]) -> Self {
        Self(Uuid::new_v5(&webhook.0, parts.join("\0").as_bytes()))
    }

    /// The id of the event that is made of the endpoint's answer, the same on every publication.
    pub fn response_id(self) -> Uuid {
        Uuid::new_v5(&self.0, b"event made of the answer")
    }

    /// The id of the domain event at `version` of this delivery, the same on every publication.
    pub fn event_id(self, version: i64) -> Uuid {
        Uuid::new_v5(&self.0, &version.to_be_bytes())
    }
}

/// A command's id: its idempotency key, else a UUIDv7.
pub type CommandId = String;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_known_by_who_is_in_it_and_their_order() {
        let of =
            |members: &[u128]| BatchId::of(members.iter().map(|n| DeliveryId(Uuid::from_u128(*n))));
        assert_eq!(of(&[1, 2, 3]), of(&[1, 2, 3]));
        for others in [&[1, 2][..], &[1, 3, 2], &[1, 2, 3, 4], &[3], &[]] {
            assert_ne!(of(&[1, 2, 3]), of(others), "{others:?}");
        }
    }

    #[test]
    fn a_commands_delivery_is_never_that_of_an_event() {
        let webhook = WebhookId(Uuid::from_u128(1));
        let tenant = TenantId::try_new("nord").unwrap();
        let of_event = |id| DeliveryId::derive(webhook, &tenant, id);
        let of_command = |id, action| DeliveryId::derive_for_command(webhook, &tenant, id, action);
        let triggered = of_command("evt-1", "webhook.trigger");
        assert_eq!(triggered, of_command("evt-1", "webhook.trigger"));
        assert_ne!(triggered, of_command("evt-2", "webhook.trigger"));
        assert_ne!(triggered, of_command("evt-1", "webhook.test"));
        for id in ["evt-1", "webhook.trigger", "evt-1webhook.trigger"] {
            assert_ne!(triggered, of_event(id), "{id}");
        }
        // Receivers and rows have those of events: they stay what they are.
        let name = "nord\0evt-1".as_bytes();
        assert_eq!(of_event("evt-1").0, Uuid::new_v5(&webhook.0, name));
    }
}
