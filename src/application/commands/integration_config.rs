//! What an integration's configuration must be, as far as it is known; further fields are kept as given.

use serde_json::{Map, Value};
use url::Url;

use crate::{
    application::webhook_settings::{MAX_URL, has_userinfo, host_problem, http_url},
    domain::{entities::IntegrationType, values::Faults},
};

use super::{
    config_fields::{check_values, headers, retry_policy, timeout},
    fields::{Fields, Text},
};

/// Most requests per period.
const MAX_REQUESTS: i64 = 1_000_000;
/// The longest period, in milliseconds: 1 d.
const LONGEST_PERIOD: u64 = 86_400_000;

/// Checks a configuration for an integration of this type (if that is known).
pub(super) fn check(config: &Map<String, Value>, kind: Option<IntegrationType>) -> Faults {
    let mut fields = Fields::new(config.clone(), "config");
    let endpoint = fields.text("endpoint", Text::Line(MAX_URL));
    if let Some(problem) = endpoint.and_then(|endpoint| endpoint_problem(&endpoint, kind)) {
        fields.fault("endpoint", problem);
    }
    timeout(&mut fields);
    headers(&mut fields, |_| false);
    retry_policy(&mut fields);
    fields.object("rateLimit", |limit| {
        limit.need(&["requests", "per"]);
        limit.integer("requests", 1..=MAX_REQUESTS)?;
        limit.duration("per", 1..=LONGEST_PERIOD)
    });
    let mut faults = fields.finish_open();
    check_values(config, &mut faults);
    faults
}

/// Checks what the type of an integration asks of its configuration, when only one of the two was given.
pub(super) fn check_fit(config: &Map<String, Value>, kind: IntegrationType) -> Faults {
    let mut faults = Faults::default();
    let endpoint = config.get("endpoint").and_then(Value::as_str);
    if let Some(problem) = endpoint.and_then(|endpoint| endpoint_problem(endpoint, Some(kind))) {
        faults.add("config.endpoint", problem);
    }
    faults
}

/// An API and a receiver of webhooks are reached over HTTP; anything else may have any address (a path,
/// a database's URL), as long as it shows no password.
fn endpoint_problem(endpoint: &str, kind: Option<IntegrationType>) -> Option<String> {
    match kind {
        Some(IntegrationType::Api | IntegrationType::Webhook) => match http_url(endpoint) {
            Ok(url) => host_problem(&url).map(str::to_owned),
            Err(problem) => Some(problem),
        },
        _ => Url::parse(endpoint)
            .is_ok_and(|url| has_userinfo(&url) && url.password().is_some())
            .then(|| "must not hold a password: put it into credentials".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(kind: IntegrationType, config: Value) -> Vec<String> {
        let Value::Object(config) = config else {
            panic!("not an object")
        };
        let faults = check(&config, Some(kind)).into_vec();
        faults.into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn known_fields_are_checked_and_further_ones_kept() {
        let config = json!({
            "endpoint": "https://api.example.com",
            "credentials": { "apiKey": "your-api-key" },
            "timeout": 30000,
            "headers": { "Host": "api", "Accept": "*/*" },
            "retryPolicy": { "maxRetries": 2 },
            "rateLimit": { "requests": 50, "per": "1s" },
            "anything": { "else": [1, { "credentials": { "a": 1 } }] },
        });
        assert_eq!(paths(IntegrationType::Api, config), [""; 0]);
        let config = json!({
            "endpoint": "ftp://x",
            "credentials": "secret",
            "timeout": "1h",
            "headers": { "a": "b\r\nc" },
            "retryPolicy": { "schedule": [] },
            "rateLimit": { "requests": 0 },
            "list": [{ "credentials": null }, "a\0b", { "x\0": 1 }],
            "deep": { "credentials": { "a": null, "b": { "c": null }, "d": "e\0" } },
        });
        assert_eq!(
            paths(IntegrationType::Webhook, config),
            [
                "config.endpoint",
                "config.timeout",
                "config.headers.a",
                "config.retryPolicy.schedule",
                "config.rateLimit.per",
                "config.rateLimit.requests",
                "config.credentials",
                "config.list[0].credentials",
                "config.list[1]",
                "config.list[2].x",
                "config.deep.credentials.a",
                "config.deep.credentials.d",
            ]
        );
    }

    #[test]
    fn other_types_have_any_endpoint_without_a_password() {
        for endpoint in [
            "/data/exports",
            "postgresql://user@db/erp",
            "nats://bus:4222",
            "C:\\exports",
        ] {
            let config = json!({ "endpoint": endpoint });
            assert_eq!(paths(IntegrationType::File, config), [""; 0], "{endpoint}");
        }
        let config = json!({ "endpoint": "postgresql://user:secret@db/erp" });
        assert_eq!(
            paths(IntegrationType::Database, config),
            ["config.endpoint"]
        );
    }

    #[test]
    fn an_endpoint_over_http_is_one_that_can_be_reached() {
        for endpoint in ["https://api..example.com", "https://api.example.com:0/"] {
            let config = json!({ "endpoint": endpoint });
            assert_eq!(paths(IntegrationType::Api, config), ["config.endpoint"]);
        }
    }

    #[test]
    fn a_configuration_is_bounded() {
        let config = json!({ "x": "y".repeat(64 * 1024) });
        assert_eq!(paths(IntegrationType::Api, config), ["config"]);
    }
}
