//! The written form of the encryption keys: `<id>:<base64 of 32 bytes>`, one a line or
//! comma-separated, with blank lines, and comments from `#` to the end of the line.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Length of a key, in bytes.
pub const KEY_BYTES: usize = 32;
/// How many keys there may be.
pub const MAX_KEYS: usize = 1_000;
/// Longest id of a key, in bytes.
const MAX_ID: usize = 64;

/// Whether the text is the id of a key: `[A-Za-z0-9_.-]{1,64}`.
pub fn is_key_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(allowed)
}

/// Reads the keys, at least one; the first one encrypts.
///
/// # Errors
/// Every fault, each with its line and, where one was given, the key's id; never key material.
pub fn parse_keys(text: &str) -> Result<Vec<(String, [u8; KEY_BYTES])>, Vec<String>> {
    let mut keys: Vec<(String, [u8; KEY_BYTES])> = Vec::new();
    let mut faults = Vec::new();
    for (number, entry) in entries(text) {
        match parse_entry(entry) {
            Err(fault) => faults.push(format!("line {number}: {fault}")),
            Ok((id, _)) if keys.iter().any(|(known, _)| *known == id) => {
                faults.push(format!("line {number}: the key id {id:?} is there twice"));
            }
            Ok(_) if keys.len() == MAX_KEYS => {
                faults.push(format!("more than {MAX_KEYS} keys"));
                break;
            }
            Ok(key) => keys.push(key),
        }
    }
    if keys.is_empty() && faults.is_empty() {
        faults.push("no key: at least one `<id>:<base64 of 32 bytes>` is needed".to_owned());
    }
    if faults.is_empty() {
        Ok(keys)
    } else {
        Err(faults)
    }
}

/// A line for a key file, without its end.
pub fn key_line(id: &str, key: &[u8]) -> String {
    format!("{id}:{}", STANDARD.encode(key))
}

/// The entries with the number of their line, from 1.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(index, line)| {
        let line = line.split('#').next().unwrap_or_default();
        let entries = line.split(',').map(str::trim);
        entries
            .filter(|entry| !entry.is_empty())
            .map(move |entry| (index + 1, entry))
    })
}

fn parse_entry(entry: &str) -> Result<(String, [u8; KEY_BYTES]), String> {
    const FORM: &str = "a key is written `<id>:<base64 of 32 bytes>`";
    // What has no colon may be the key alone, and what stands before it may be the key by mistake.
    let (id, material) = entry.split_once(':').ok_or(FORM)?;
    let id = id.trim();
    if !is_key_id(id) {
        return Err(format!(
            "{FORM}; an id is 1 to {MAX_ID} letters, digits, '_', '.' or '-'"
        ));
    }
    let bytes = STANDARD
        .decode(material.trim())
        .map_err(|_| format!("the key {id:?} is not base64"))?;
    let key = bytes.as_slice().try_into().map_err(|_| {
        let length = bytes.len();
        format!("the key {id:?} has {length} bytes instead of {KEY_BYTES}")
    })?;
    Ok((id.to_owned(), key))
}
