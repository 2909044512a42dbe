//! A JSON message as one line of NDJSON.

use bytes::Bytes;
use serde::de::IgnoredAny;

/// The message in one line, without a line break at its end. White space between tokens is left out only
/// where it holds line breaks; everything else stays as it was written. `None` when it is no JSON text.
pub(super) fn one_line(message: &Bytes) -> Option<Bytes> {
    std::str::from_utf8(message).ok()?;
    serde_json::from_slice::<IgnoredAny>(message).ok()?;
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !message.iter().any(is_break) {
        return Some(Bytes::clone(message));
    }
    // A JSON text holds line breaks only between its tokens: in strings they are escaped.
    let mut line = Vec::with_capacity(message.len());
    let mut rest: &[u8] = message;
    while let Some(at) = rest.iter().position(is_break) {
        let (before, after) = rest.split_at(at);
        line.extend_from_slice(before.trim_ascii_end());
        rest = after.trim_ascii_start();
    }
    line.extend_from_slice(rest);
    Some(line.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn line(message: &str) -> Option<String> {
        let line = one_line(&Bytes::copy_from_slice(message.as_bytes()))?;
        Some(String::from_utf8(line.to_vec()).unwrap())
    }

    #[test]
    fn only_line_breaks_and_the_white_space_around_them_go() {
        for (message, expected) in [
            (r#"{"a": 1.50,  "b":"x y"}"#, r#"{"a": 1.50,  "b":"x y"}"#),
            (
                "{\n  \"a\": 1.50,\r\n\t\"b\": [1, 2]\n}\n",
                r#"{"a": 1.50,"b": [1, 2]}"#,
            ),
            (" \n \n{\"a\" \n : \n 1}\r\n ", r#"{"a":1}"#),
            (r#"{"a":"one\ntwo"}"#, r#"{"a":"one\ntwo"}"#),
            ("  7 ", "  7 "),
            ("\"\u{2028}\"\n", "\"\u{2028}\""),
        ] {
            assert_eq!(line(message).as_deref(), Some(expected), "{message:?}");
        }
    }

    #[test]
    fn what_is_no_json_is_no_line() {
        for message in [
            "",
            "\n",
            "text",
            "{\"a\":1",
            "1\n2",
            "{\"a\":\"one\ntwo\"}",
            "{} {}",
        ] {
            assert_eq!(line(message), None, "{message:?}");
        }
        assert_eq!(one_line(&Bytes::from_static(b"\"\xff\"")), None);
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(|n| json!(n)),
            any::<String>().prop_map(|text| json!(text)),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_line_says_what_the_message_says(value in anything(), pretty: bool) {
            let message = if pretty {
                serde_json::to_string_pretty(&value).unwrap()
            } else {
                value.to_string()
            };
            let line = line(&message).expect("it is JSON");
            prop_assert!(!line.contains(['\n', '\r']), "{line:?}");
            prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
        }
    }
}
