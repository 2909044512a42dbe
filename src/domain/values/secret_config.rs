//! A configuration whose `credentials` objects are write-only.
//!
//! Every object under a key `credentials`, at any depth and also in lists, is taken out and sealed; in
//! its place stays what may be shown: `{"apiKey":{"set":true,"updatedAt":"…"}}`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Timestamp, format_time};

/// Encrypted credentials or secrets, with the id of the key that opens them.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedSecrets {
    /// The id of the encryption key in the key ring.
    pub key_id: String,
    /// Nonce, ciphertext and tag.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for SealedSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedSecrets")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// The plain credentials by path (`credentials`, `authentication.credentials`). Never printed.
#[derive(Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Credentials(pub BTreeMap<String, Map<String, Value>>);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

/// A configuration as it may be shown, and the sealed rest.
#[derive(Debug, Clone, PartialEq)]
pub struct SecretConfig {
    /// The configuration with every credential replaced by its mark.
    pub shown: Map<String, Value>,
    /// The credentials, sealed; `None` when there are none.
    pub sealed: Option<SealedSecrets>,
}

/// Takes the credentials out of `config` and leaves their marks.
///
/// `kept` are the credentials that stand so far: a path that is not given again keeps them as long as
/// the object around it is still there, and a value that is itself a mark keeps that one field.
pub fn split_credentials(
    mut config: Map<String, Value>,
    previous: &Map<String, Value>,
    kept: &Credentials,
    now: Timestamp,
) -> (Map<String, Value>, Credentials) {
    let mut found = Credentials::default();
    split(&mut config, Some(previous), "", kept, now, &mut found);
    (config, found)
}

/// Whether [`split_credentials`] would keep some of the credentials that stand so far, so that it has to
/// be given them: a path or a field that has a mark in `previous` and no new value in `config`.
pub fn keeps_credentials(config: &Map<String, Value>, previous: &Map<String, Value>) -> bool {
    let marks = previous.get("credentials").and_then(Value::as_object);
    let here = marks.is_some_and(|marks| match config.get("credentials") {
        Some(Value::Object(given)) => {
            let mut fields = given.iter();
            fields.any(|(name, value)| is_credential_mark(value) && marks.contains_key(name))
        }
        Some(_) => false,
        None => !marks.is_empty(),
    });
    let mut others = config.iter().filter(|(name, _)| *name != "credentials");
    here || others.any(|(name, value)| keeps_in(value, previous.get(name)))
}

fn keeps_in(value: &Value, previous: Option<&Value>) -> bool {
    match (value, previous) {
        (Value::Object(inner), Some(Value::Object(before))) => keeps_credentials(inner, before),
        (Value::Array(items), Some(Value::Array(before))) => {
            let mut pairs = items.iter().zip(before);
            pairs.any(|(item, before)| keeps_in(item, Some(before)))
        }
        _ => false,
    }
}

fn split(
    object: &mut Map<String, Value>,
    previous: Option<&Map<String, Value>>,
    prefix: &str,
    kept: &Credentials,
    now: Timestamp,
    found: &mut Credentials,
) {
    let path = join(prefix, "credentials");
    let old = kept.0.get(&path);
    let old_marks = previous
        .and_then(|p| p.get("credentials"))
        .and_then(Value::as_object);
    match object.get_mut("credentials") {
        Some(Value::Object(given)) => {
            let fields = std::mem::take(given);
            let mut plain = Map::new();
            for (name, value) in fields {
                let old_field = old.and_then(|o| o.get(&name));
                let old_mark = old_marks.and_then(|m| m.get(&name));
                if let (true, Some(field), Some(mark)) =
                    (is_credential_mark(&value), old_field, old_mark)
                {
                    plain.insert(name.clone(), field.clone());
                    given.insert(name, mark.clone());
                } else if !is_credential_mark(&value) {
                    plain.insert(name.clone(), value);
                    given.insert(name, mark(now));
                }
            }
            if !plain.is_empty() {
                found.0.insert(path, plain);
            }
        }
        None => {
            if let (Some(fields), Some(marks)) = (old, old_marks) {
                found.0.insert(path, fields.clone());
                object.insert("credentials".to_owned(), Value::Object(marks.clone()));
            }
        }
        Some(_) => {}
    }
    for (name, value) in object.iter_mut().filter(|(name, _)| *name != "credentials") {
        let before = previous.and_then(|p| p.get(name));
        split_value(value, before, &join(prefix, name), kept, now, found);
    }
}

fn split_value(
    value: &mut Value,
    previous: Option<&Value>,
    path: &str,
    kept: &Credentials,
    now: Timestamp,
    found: &mut Credentials,
) {
    match value {
        Value::Object(inner) => {
            let before = previous.and_then(Value::as_object);
            split(inner, before, path, kept, now, found);
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                let before = previous.and_then(|p| p.get(index));
                split_value(item, before, &format!("{path}[{index}]"), kept, now, found);
            }
        }
        _ => {}
    }
}

/// The path of a field; what a name itself holds of the path's signs is escaped, so that no two fields
/// share a path.
fn join(prefix: &str, name: &str) -> String {
    let name = name
        .replace('\\', r"\\")
        .replace('.', r"\.")
        .replace('[', r"\[");
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}.{name}")
    }
}

fn mark(now: Timestamp) -> Value {
    serde_json::json!({ "set": true, "updatedAt": format_time(now) })
}

/// Whether a value is the mark of a credential: given back, it keeps what it stands for.
pub fn is_credential_mark(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|o| o.get("set") == Some(&Value::Bool(true)) && o.len() <= 2)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    fn time(second: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(second, 0).unwrap()
    }

    fn split_new(config: Value) -> (Map<String, Value>, Credentials) {
        split_credentials(map(config), &Map::new(), &Credentials::default(), time(0))
    }

    #[test]
    fn credentials_are_taken_out_at_any_depth_also_in_lists() {
        let (shown, found) = split_new(json!({
            "credentials": { "a": "s3cret" },
            "deep": { "er": { "credentials": { "b": { "c": "s3cret" } } } },
            "list": [1, [{ "credentials": { "d": "s3cret" } }]],
            "x.y": { "credentials": { "e": "s3cret" } },
            "x": { "y": { "credentials": { "f": "s3cret" } } },
        }));
        assert!(!Value::Object(shown).to_string().contains("s3cret"));
        let paths: Vec<&str> = found.0.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "credentials",
                "deep.er.credentials",
                "list[1][0].credentials",
                "x.y.credentials",
                r"x\.y.credentials",
            ]
        );
    }

    #[test]
    fn credentials_deep_inside_are_kept_only_where_their_place_is_still_there() {
        let (first, _) = split_new(json!({
            "a": { "credentials": { "x": 1 } }, "list": [{ "credentials": { "y": 1 } }, 1],
        }));
        let mark = first["a"]["credentials"]["x"].clone();
        for (config, keeps) in [
            (json!({}), false),
            (json!({ "a": 1, "list": [] }), false),
            (json!({ "a": {} }), true),
            (json!({ "a": { "credentials": {} } }), false),
            (json!({ "a": { "credentials": { "x": 2 } } }), false),
            (json!({ "a": { "credentials": { "x": mark } } }), true),
            (json!({ "list": [{}] }), true),
            (json!({ "list": [1, {}] }), false),
            (
                json!({ "list": [{ "credentials": { "y": 2 } }, {}] }),
                false,
            ),
        ] {
            assert_eq!(
                keeps_credentials(&map(config.clone()), &first),
                keeps,
                "{config}"
            );
        }
    }

    #[test]
    fn what_is_not_given_again_stays_and_what_is_given_replaces() {
        let (first, kept) = split_new(json!({
            "endpoint": "a", "credentials": { "key": "one", "user": "u" },
        }));
        let again = |config: Value| {
            // Only what keeps something depends on what stood before.
            let without = Credentials::default();
            let alone = split_credentials(map(config.clone()), &first, &without, time(9));
            let together = split_credentials(map(config.clone()), &first, &kept, time(9));
            assert_eq!(keeps_credentials(&map(config), &first), alone != together);
            together
        };

        let (shown, found) = again(json!({ "endpoint": "b" }));
        assert_eq!(shown["credentials"], first["credentials"]);
        assert_eq!(found, kept);

        let mark = first["credentials"]["key"].clone();
        let (shown, found) = again(json!({ "credentials": { "key": mark, "user": "v" } }));
        assert_eq!(shown["credentials"]["key"], first["credentials"]["key"]);
        assert_ne!(shown["credentials"]["user"], first["credentials"]["user"]);
        let fields = &found.0["credentials"];
        assert_eq!(
            (&fields["key"], &fields["user"]),
            (&json!("one"), &json!("v"))
        );

        let (shown, found) = again(json!({ "credentials": {} }));
        assert_eq!(shown["credentials"], json!({}));
        assert_eq!(found, Credentials::default());

        let (_, found) = again(json!({ "credentials": { "key": "two" } }));
        assert_eq!(found.0["credentials"]["key"], "two");
        let (shown, _) = again(json!({ "credentials": { "other": first["credentials"]["key"] } }));
        assert_eq!(shown["credentials"], json!({}));
    }
}
