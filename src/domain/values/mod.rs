//! Values that cannot be wrong once they exist.

mod faults;
mod ids;
mod lane;
mod pattern;
mod secret_config;
mod tenant;
mod time;
mod trace;

pub use crate::shared::duration::{DurationError, parse_duration};
pub use faults::{Fault, Faults};
pub use ids::{BatchId, CommandId, DeliveryId, IntegrationId, ReplayId, WebhookId};
pub use lane::LaneKey;
pub use pattern::{EventPattern, PatternError, PatternToken};
pub use secret_config::{
    Credentials, SealedSecrets, SecretConfig, is_credential_mark, keeps_credentials,
    split_credentials,
};
pub use tenant::{TenantError, TenantId};
pub use time::{Timestamp, format_time, truncate_to_millis};
pub use trace::TraceContext;
