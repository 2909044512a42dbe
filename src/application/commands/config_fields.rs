//! The parts of a configuration that integrations and webhooks share: timeout, headers, retry policy,
//! and what holds for every value.

use std::time::Duration;

use http::HeaderName;
use serde_json::{Map, Value};

use crate::domain::{policies::RetryPolicy, values::Faults};

use super::fields::{Fields, duration, join};

/// Largest configuration, in bytes of JSON, its credentials included: 64 KiB.
pub(in crate::application) const MAX_CONFIG: usize = 64 * 1024;
/// How many headers a configuration may list.
const MAX_HEADERS: usize = 50;
/// All headers together, names and values, in bytes: 16 KiB.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// What `maxRetries` is when only `backoffMs` is given.
const DEFAULT_MAX_RETRIES: u32 = 5;
/// What `backoffMs` is when only `maxRetries` is given.
const DEFAULT_BACKOFF: Duration = Duration::from_secs(1);
/// The shortest wait between two attempts, in milliseconds.
const SHORTEST_WAIT: u64 = 100;

/// `timeout`: 1 s to 5 min.
pub(in crate::application) fn timeout(fields: &mut Fields) -> Option<Duration> {
    fields.duration("timeout", 1_000..=300_000)
}

/// `headers`: names in lower case, each once; `reserved` ones are refused.
pub(in crate::application) fn headers(
    fields: &mut Fields,
    reserved: impl Fn(&HeaderName) -> bool,
) -> Option<Vec<(String, String)>> {
    let given = fields.map("headers")?;
    if given.len() > MAX_HEADERS {
        fields.fault(
            "headers",
            format!("must list at most {MAX_HEADERS} headers"),
        );
        return None;
    }
    let bytes: usize = given
        .iter()
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > MAX_HEADER_BYTES {
        fields.fault(
            "headers",
            format!("must have at most {MAX_HEADER_BYTES} bytes in all"),
        );
        return None;
    }
    let mut found: Vec<(String, String)> = Vec::with_capacity(given.len());
    for (name, value) in given {
        match header(&name, &value, &found, &reserved) {
            Ok(header) => found.push(header),
            Err(message) => fields.fault(&join("headers", &name), message),
        }
    }
    Some(found)
}

fn header(
    name: &str,
    value: &Value,
    found: &[(String, String)],
    reserved: impl Fn(&HeaderName) -> bool,
) -> Result<(String, String), &'static str> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is no valid header name")?;
    if reserved(&name) {
        return Err("is set by the worker and cannot be overridden");
    }
    if found.iter().any(|(other, _)| other == name.as_str()) {
        return Err("is listed twice; case does not matter");
    }
    let value = value.as_str().ok_or("must be a string")?;
    if !is_field_value(value) {
        return Err(
            "must hold visible ASCII, spaces and tabs only, and neither begin nor end with a blank",
        );
    }
    Ok((name.as_str().to_owned(), value.to_owned()))
}

/// The `field-value` of RFC 9110, without the bytes over 127 that it has for old times' sake: receivers
/// read those in different ways.
fn is_field_value(value: &str) -> bool {
    let allowed = |b: u8| matches!(b, b' ' | b'\t' | 0x21..=0x7e);
    value.bytes().all(allowed) && value.trim_ascii() == value
}

/// `retryPolicy`: `{maxRetries, backoffMs}`, where one may be absent (5 and 1,000 then), or `{schedule}`.
pub(in crate::application) fn retry_policy(fields: &mut Fields) -> Option<RetryPolicy> {
    fields.object("retryPolicy", |policy| {
        let exponential = policy.has("maxRetries") || policy.has("backoffMs");
        if exponential == policy.has("schedule") {
            policy.fault("", "give either maxRetries and backoffMs, or schedule");
        }
        let max_retries = policy.integer("maxRetries", 0..=10);
        let initial = policy.duration("backoffMs", SHORTEST_WAIT..=60_000);
        let schedule = schedule(policy);
        if let Some(waits) = schedule {
            return Some(RetryPolicy::Schedule(waits));
        }
        let max_retries = max_retries.and_then(|number| u32::try_from(number).ok());
        Some(RetryPolicy::Exponential {
            max_retries: max_retries.unwrap_or(DEFAULT_MAX_RETRIES),
            initial: initial.unwrap_or(DEFAULT_BACKOFF),
        })
    })
}

fn schedule(policy: &mut Fields) -> Option<Vec<Duration>> {
    let items = policy.list("schedule")?;
    if !(1..=RetryPolicy::MAX_SCHEDULE).contains(&items.len()) {
        let message = format!("must list 1 to {} waits", RetryPolicy::MAX_SCHEDULE);
        policy.fault("schedule", message);
        return None;
    }
    let longest = u64::try_from(RetryPolicy::MAX_SCHEDULED_WAIT.as_millis()).unwrap_or(u64::MAX);
    let mut waits = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match duration(item, &(SHORTEST_WAIT..=longest)) {
            Ok(wait) => waits.push(wait),
            Err(message) => policy.fault(&format!("schedule[{index}]"), message),
        }
    }
    Some(waits)
}

/// What holds for every value of a configuration: its size, `credentials` are objects of values that are
/// no `null`, and no text holds U+0000, which PostgreSQL cannot keep.
pub(in crate::application) fn check_values(config: &Map<String, Value>, faults: &mut Faults) {
    let size = serde_json::to_vec(config).map_or(usize::MAX, |json| json.len());
    if size > MAX_CONFIG {
        faults.add(
            "config",
            format!("must have at most {MAX_CONFIG} bytes of JSON"),
        );
    }
    check_map(config, "config", faults);
}

/// The same for an object that replaces `credentials`.
pub(in crate::application) fn check_credentials(
    credentials: &Map<String, Value>,
    path: &str,
    faults: &mut Faults,
) {
    for (name, _) in credentials.iter().filter(|(_, value)| value.is_null()) {
        let message = "must not be null: a credential that is left out is removed";
        faults.add(join(path, name), message);
    }
    check_map(credentials, path, faults);
}

fn check_map(map: &Map<String, Value>, path: &str, faults: &mut Faults) {
    for (name, value) in map {
        let path = join(path, name);
        if name.contains('\0') {
            faults.add(&path, "must not hold U+0000");
        }
        match value {
            Value::Object(credentials) if name == "credentials" => {
                check_credentials(credentials, &path, faults);
            }
            _ if name == "credentials" => faults.add(&path, "must be an object"),
            _ => check_value(value, &path, faults),
        }
    }
}

fn check_value(value: &Value, path: &str, faults: &mut Faults) {
    match value {
        Value::Object(map) => check_map(map, path, faults),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_value(item, &format!("{path}[{index}]"), faults);
            }
        }
        Value::String(text) if text.contains('\0') => faults.add(path, "must not hold U+0000"),
        _ => {}
    }
}
