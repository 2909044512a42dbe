//! Reads the settings of a webhook from its configuration: when it is saved, and when it is loaded.

use serde_json::{Map, Value};

use crate::domain::{entities::WebhookSettings, policies::EgressPolicy, values::Faults};

/// Reads `config` (its shown form will do) and lists everything that is wrong with it under `config.…`.
///
/// # Errors
/// All faults: missing, unknown and unsupported fields, limits, refused literal addresses.
pub fn webhook_settings(
    config: &Map<String, Value>,
    egress: &EgressPolicy,
) -> Result<WebhookSettings, Faults> {
    let _ = (config, egress);
    let mut faults = Faults::default();
    faults.add("config", "not read yet");
    Err(faults)
}
