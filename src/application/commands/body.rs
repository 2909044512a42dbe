//! The body of a command: one JSON object, read strictly.

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::reply::{ErrorCode, Refusal};

/// A body that is a JSON object.
#[derive(Clone)]
pub(super) struct Body {
    /// Its fields.
    pub(super) map: Map<String, Value>,
    /// As it was written.
    pub(super) raw: Bytes,
}

impl Body {
    /// Reads a body. Refused as `malformed`: no JSON, trailing data, no object, a field given twice,
    /// deeper than 128 levels, more than `max` bytes. An empty one counts as `{}` when `may_be_empty`.
    pub(super) fn read(raw: &Bytes, max: usize, may_be_empty: bool) -> Result<Self, Refusal> {
        if raw.len() > max {
            return Err(malformed(format!(
                "the body has {} bytes; at most {max} are allowed",
                raw.len()
            )));
        }
        if raw.is_empty() && may_be_empty {
            let raw = Bytes::from_static(b"{}");
            let map = Map::new();
            return Ok(Self { map, raw });
        }
        let mut reader = serde_json::Deserializer::from_slice(raw);
        let value = Strict
            .deserialize(&mut reader)
            .and_then(|value| reader.end().map(|()| value))
            .map_err(|error| malformed(format!("the body is not valid JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self {
                map,
                raw: raw.clone(),
            }),
            _ => Err(malformed("the body is not a JSON object")),
        }
    }
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::Malformed, message)
}

/// Reads a value and refuses a field that is given twice: which one is meant cannot be known.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(Self)?;
            if map.contains_key(&name) {
                return Err(A::Error::custom("a field is given twice"));
            }
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Body, Refusal> {
        Body::read(&Bytes::copy_from_slice(text.as_bytes()), 100_000, false)
    }

    #[test]
    fn an_object_is_read_as_it_is() {
        let text = r#"{"a":[1,-2,2.5,true,null,"ä"],"b":{"c":{}}}"#;
        let body = read(text).unwrap();
        assert_eq!(Value::Object(body.map).to_string(), text);
        assert_eq!(body.raw, text);
    }

    #[test]
    fn everything_else_is_malformed() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(40_000), "]".repeat(40_000));
        for text in [
            "",
            " ",
            "nonsense",
            "[]",
            "1",
            "null",
            "{",
            "{}{}",
            "{} x",
            "{\"a\":1,\"a\":1}",
            "{\"a\":{\"b\":1,\"b\":2}}",
            "{\"a\":1e999}",
            &deep,
            &"[".repeat(90_000),
        ] {
            let shown: String = text.chars().take(40).collect();
            assert_eq!(
                read(text).err().map(|r| r.code),
                Some(ErrorCode::Malformed),
                "{shown}"
            );
        }
        let not_utf8 = Bytes::from_static(b"{\"a\":\"\xff\"}");
        assert!(Body::read(&not_utf8, 100, false).is_err());
    }

    #[test]
    fn a_body_over_the_limit_is_malformed_and_an_empty_query_is_an_empty_object() {
        let at = |max| Body::read(&Bytes::from_static(b"{\"a\":1}"), max, false).is_ok();
        assert!(at(7));
        assert!(!at(6));
        assert!(Body::read(&Bytes::new(), 7, true).unwrap().map.is_empty());
    }
}
