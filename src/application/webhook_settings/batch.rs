//! `batch` of a webhook's configuration: several events in one request.

use serde_json::{Map, Value};

use crate::{
    application::commands::fields::Fields,
    domain::entities::{BatchRule, BodyFormat},
};

/// `batch {maxEvents, maxBytes, maxWait}`, each with a default. `config` is the whole configuration: an
/// event that has to wait for its turn, whose attributes are headers, or whose answer is read cannot
/// share a request.
pub(super) fn read(fields: &mut Fields, config: &Map<String, Value>) -> Option<BatchRule> {
    if !fields.has("batch") {
        return None;
    }
    for other in ["ordering", "response"] {
        if config.contains_key(other) {
            fields.fault("batch", format!("cannot be used together with {other}"));
        }
    }
    let binary = BodyFormat::CloudEventsBinary.as_str();
    if config.get("format").and_then(Value::as_str) == Some(binary) {
        let message = format!("cannot be used with the format {binary}, which is one event");
        fields.fault("batch", message);
    }
    fields.object("batch", |batch| {
        let default = BatchRule::default();
        let range = |range: std::ops::RangeInclusive<u32>| {
            i64::from(*range.start())..=i64::from(*range.end())
        };
        let longest = u64::try_from(BatchRule::LONGEST_WAIT.as_millis()).unwrap_or(u64::MAX);
        let events = batch.integer("maxEvents", range(BatchRule::EVENTS));
        let bytes = batch.integer("maxBytes", range(BatchRule::BYTES));
        let wait = batch.duration("maxWait", 0..=longest);
        let number = |given: Option<i64>| given.and_then(|given| u32::try_from(given).ok());
        Some(BatchRule {
            max_events: number(events).unwrap_or(default.max_events),
            max_bytes: number(bytes).unwrap_or(default.max_bytes),
            max_wait: wait.unwrap_or(default.max_wait),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::application::webhook_settings::webhook_settings;

    /// The rule, or every fault as `path: message`.
    fn read(more: &Value) -> Result<Option<BatchRule>, Vec<String>> {
        let mut config = json!({ "url": "https://example.com/hook" });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        let settings = webhook_settings(config.as_object().unwrap(), None);
        settings.map(|settings| settings.batch).map_err(|faults| {
            let faults = faults.into_vec().into_iter();
            faults
                .map(|f| format!("{}: {}", f.path, f.message))
                .collect()
        })
    }

    fn rule(max_events: u32, max_bytes: u32, wait: Duration) -> BatchRule {
        BatchRule {
            max_events,
            max_bytes,
            max_wait: wait,
        }
    }

    #[test]
    fn what_is_not_given_has_a_default_and_nothing_is_no_batch() {
        let second = Duration::from_secs(1);
        for (given, expected) in [
            (json!({}), None),
            (json!({ "batch": {} }), Some(rule(100, 262_144, second))),
            (
                json!({ "batch": { "maxEvents": 2, "maxBytes": 1_024, "maxWait": 0 } }),
                Some(rule(2, 1_024, Duration::ZERO)),
            ),
            (
                json!({ "batch": { "maxEvents": 1_000, "maxBytes": 1_048_576, "maxWait": "5m" } }),
                Some(rule(1_000, 1_048_576, Duration::from_mins(5))),
            ),
            (
                json!({ "batch": { "maxWait": "250ms" }, "format": "raw" }),
                Some(rule(100, 262_144, Duration::from_millis(250))),
            ),
        ] {
            assert_eq!(read(&given), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_is_beyond_a_bound_or_cannot_share_a_request_is_a_fault() {
        for (given, fault) in [
            (json!({ "batch": [] }), "config.batch: "),
            (
                json!({ "batch": { "maxEvents": 1 } }),
                "config.batch.maxEvents: ",
            ),
            (
                json!({ "batch": { "maxEvents": 1_001 } }),
                "config.batch.maxEvents: ",
            ),
            (
                json!({ "batch": { "maxBytes": 1_023 } }),
                "config.batch.maxBytes: ",
            ),
            (
                json!({ "batch": { "maxBytes": 1_048_577 } }),
                "config.batch.maxBytes: ",
            ),
            (
                json!({ "batch": { "maxWait": "6m" } }),
                "config.batch.maxWait: ",
            ),
            (json!({ "batch": { "size": 7 } }), "config.batch.size: "),
            (
                json!({ "batch": {}, "ordering": { "key": "id" } }),
                "config.batch: cannot be used together with ordering",
            ),
            (
                json!({ "batch": {}, "format": "cloudevents-binary" }),
                "config.batch: cannot be used with the format cloudevents-binary",
            ),
        ] {
            let faults = read(&given).unwrap_err();
            assert_eq!(faults.len(), 1, "{given}: {faults:?}");
            assert!(faults[0].starts_with(fault), "{given}: {faults:?}");
        }
        let faults = read(&json!({ "batch": {}, "response": { "event": "a.b" } })).unwrap_err();
        assert_eq!(
            faults[0],
            "config.batch: cannot be used together with response"
        );
    }
}
