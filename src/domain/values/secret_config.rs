//! A configuration whose `credentials` objects are write-only.
//!
//! Every object under a key `credentials`, at any depth, is taken out and sealed; in its place stays
//! what may be shown: `{"apiKey":{"set":true,"updatedAt":"…"}}`.

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
                if let (true, Some(field), Some(mark)) = (is_mark(&value), old_field, old_mark) {
                    plain.insert(name.clone(), field.clone());
                    given.insert(name, mark.clone());
                } else if !is_mark(&value) {
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
        if let Value::Object(inner) = value {
            let before = previous
                .and_then(|p| p.get(name))
                .and_then(Value::as_object);
            split(inner, before, &join(prefix, name), kept, now, found);
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn mark(now: Timestamp) -> Value {
    serde_json::json!({ "set": true, "updatedAt": format_time(now) })
}

fn is_mark(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|o| o.get("set") == Some(&Value::Bool(true)) && o.len() <= 2)
}
