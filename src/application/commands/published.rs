//! A configuration as it is told in events: many read them, so what may well be a secret is hidden.

use serde_json::{Map, Value, json};
use url::Url;

use crate::domain::values::SecretConfig;

/// What stands in the place of a hidden part of an address.
const HIDDEN: &str = "***";

/// The configuration without the values of headers, and with the values in the queries of addresses
/// hidden; credentials are marks already.
pub(super) fn published(config: &SecretConfig) -> Value {
    let mut shown = config.shown.clone();
    hide_in_map(&mut shown);
    if let Some(Value::Object(headers)) = shown.get_mut("headers") {
        for value in headers.values_mut() {
            *value = json!({ "set": true });
        }
    }
    Value::Object(shown)
}

fn hide_in_map(map: &mut Map<String, Value>) {
    for (name, value) in map {
        match value {
            Value::String(text) if is_address(name, text) => *text = without_values(text),
            other => hide_in(other),
        }
    }
}

fn hide_in(value: &mut Value) {
    match value {
        Value::Object(map) => hide_in_map(map),
        Value::Array(items) => items.iter_mut().for_each(hide_in),
        Value::String(text) if is_address("", text) => *text = without_values(text),
        _ => {}
    }
}

/// Addresses stand in `url` and `endpoint`, but a further field may hold one too.
fn is_address(name: &str, text: &str) -> bool {
    matches!(name, "url" | "endpoint") || (text.contains("://") && Url::parse(text).is_ok())
}

/// `https://host/path?token=***#***`: the names in the query stay, what has no name is hidden whole.
fn without_values(address: &str) -> String {
    let (address, fragment) = match address.split_once('#') {
        Some((address, _)) => (address, true),
        None => (address, false),
    };
    let mut shown = match address.split_once('?') {
        Some((path, query)) => {
            let parts: Vec<String> = query.split('&').map(without_value).collect();
            format!("{path}?{}", parts.join("&"))
        }
        None => address.to_owned(),
    };
    if fragment {
        shown.push('#');
        shown.push_str(HIDDEN);
    }
    shown
}

fn without_value(part: &str) -> String {
    match part.split_once('=') {
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None if part.is_empty() => String::new(),
        None => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_queries_are_hidden_and_everything_else_stays() {
        for (given, told) in [
            ("https://example.com/hook", "https://example.com/hook"),
            ("https://example.com/?", "https://example.com/?"),
            (
                "https://example.com/hook?token=S3CRET&v=1",
                "https://example.com/hook?token=***&v=***",
            ),
            (
                "https://example.com?S3CRET&a=&b=S3CRET=S3CRET?S3CRET",
                "https://example.com?***&a=***&b=***",
            ),
            (
                "https://example.com/#S3CRET?a=S3CRET",
                "https://example.com/#***",
            ),
            ("/exports?key=S3CRET", "/exports?key=***"),
        ] {
            for config in [
                json!({ "url": given }),
                json!({ "endpoint": given }),
                json!({ "more": [{ "url": given }] }),
            ] {
                let told = config.to_string().replace(given, told);
                let Value::Object(shown) = config else {
                    panic!("not an object")
                };
                let config = SecretConfig {
                    shown,
                    sealed: None,
                };
                assert_eq!(published(&config).to_string(), told);
            }
        }
    }

    #[test]
    fn an_address_in_a_further_field_is_found_and_a_text_is_none() {
        let Value::Object(shown) = json!({
            "callback": "https://example.com?token=S3CRET",
            "list": ["https://example.com?token=S3CRET"],
            "remark": "is this a text? a=b",
            "number": 1,
        }) else {
            panic!("not an object")
        };
        let config = SecretConfig {
            shown,
            sealed: None,
        };
        let told = json!({
            "callback": "https://example.com?token=***",
            "list": ["https://example.com?token=***"],
            "remark": "is this a text? a=b",
            "number": 1,
        });
        assert_eq!(published(&config), told);
    }
}
