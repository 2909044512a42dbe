//! The things with an identity and a life of their own.

mod delivery;
mod integration;
mod meta;
mod replay;
mod webhook;

pub use delivery::{Attempt, Batching, Delivery, DeliveryStatus, LanePlace};
pub use integration::{Integration, IntegrationStatus, IntegrationType};
pub use meta::{EntityMeta, InvalidTransition, Labels};
pub use replay::{Replay, ReplayCursor, ReplayKind, ReplaySelection, ReplayStatus};
pub use webhook::{
    BatchRule, BodyFormat, HttpMethod, NewWebhook, OnExhausted, Ordering, ResponseSettings,
    Signing, SigningSecret, Webhook, WebhookSettings, WebhookStatus,
};
