//! What is different between what should be there and what is.

use serde::Serialize;
use serde_json::{Map, Value};

/// What of a stream matters to us. Replicas do not: more of them are the operator's good right.
pub(super) const STREAM: [&str; 10] = [
    "subjects",
    "retention",
    "discard",
    "storage",
    "max_age",
    "duplicate_window",
    "max_msgs",
    "max_msgs_per_subject",
    "max_bytes",
    "max_msg_size",
];

/// What of a consumer matters to us. Where it starts does not, once it is there.
pub(super) const CONSUMER: [&str; 9] = [
    "ack_policy",
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
    "filter_subject",
    "filter_subjects",
    "replay_policy",
    "headers_only",
    "backoff",
];

/// Something that exists with another setting than the worker would give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `stream INTEGRATION_EVENTS`.
    pub of: String,
    /// The setting.
    pub field: &'static str,
    /// What the worker would set.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

/// Compares the named fields of two configurations of the same kind.
pub(super) fn differences<T: Serialize>(
    of: &str,
    fields: &'static [&'static str],
    expected: &T,
    actual: &T,
) -> Vec<Difference> {
    let (expected, actual) = (fields_of(expected), fields_of(actual));
    let different = |field: &&'static str| {
        let (expected, actual) = (value(&expected, field), value(&actual, field));
        (expected != actual).then(|| Difference {
            of: of.to_owned(),
            field,
            expected: shown(field, &expected),
            actual: shown(field, &actual),
        })
    };
    fields.iter().filter_map(different).collect()
}

fn fields_of<T: Serialize>(config: &T) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// Left out, zero, false, empty and "no limit" are the same to the server; so is the order of
/// subjects.
fn value(fields: &Map<String, Value>, field: &str) -> Value {
    match fields.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => Value::Null,
        Some(Value::Number(number)) if matches!(number.as_i64(), Some(0 | -1)) => Value::Null,
        Some(Value::String(text)) if text.is_empty() => Value::Null,
        Some(Value::Array(items)) if items.is_empty() => Value::Null,
        Some(Value::Array(items)) => {
            let mut items = items.clone();
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        Some(other) => other.clone(),
    }
}

/// Durations are nanoseconds on the wire.
fn shown(field: &str, value: &Value) -> String {
    let is_duration = matches!(field, "max_age" | "duplicate_window" | "ack_wait");
    match value {
        Value::Null => "none".to_owned(),
        Value::Number(number) if is_duration => {
            let seconds = number.as_u64().unwrap_or_default() / 1_000_000_000;
            format!("{seconds}s")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_matters_is_a_difference() {
        let expected = json!({"subjects": ["a", "b"], "max_age": 7_000_000_000_u64, "max_msgs": -1, "num_replicas": 1});
        let same = json!({"subjects": ["b", "a"], "max_age": 7_000_000_000_u64, "num_replicas": 3});
        assert_eq!(differences("stream X", &STREAM, &expected, &same), []);
        let other = json!({"subjects": ["a"], "max_age": 0, "max_msgs": 100});
        let told: Vec<_> = differences("stream X", &STREAM, &expected, &other)
            .into_iter()
            .map(|d| (d.field, d.expected, d.actual))
            .collect();
        let told: Vec<_> = told
            .iter()
            .map(|(f, e, a)| (*f, e.as_str(), a.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("subjects", r#"["a","b"]"#, r#"["a"]"#),
                ("max_age", "7s", "none"),
                ("max_msgs", "none", "100"),
            ]
        );
    }
}
