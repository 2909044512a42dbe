//! The written form of the encryption keys: `<id>:<base64 of 32 bytes>`, one a line or
//! comma-separated; `#` begins a comment line.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Longest id of a key, in bytes.
pub const MAX_KEY_ID: usize = 64;
/// Length of a key, in bytes.
pub const KEY_BYTES: usize = 32;
/// Most keys of a ring.
const MAX_KEYS: usize = 100;

/// Whether the text is the id of a key: `[A-Za-z0-9_.-]{1,64}`.
pub fn is_key_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_KEY_ID).contains(&text.len()) && text.bytes().all(allowed)
}

/// Checks the keys and answers their ids; the first one encrypts.
///
/// # Errors
/// All that is wrong, by the number of the key; never a part of it.
pub fn key_ids(text: &str) -> Result<Vec<String>, String> {
    let mut ids: Vec<String> = Vec::new();
    let mut problems = Vec::new();
    for (index, entry) in entries(text).enumerate() {
        match key_id(entry) {
            Ok(id) if ids.iter().any(|known| known == id) => {
                problems.push(format!("key {}: the id {id:?} is there twice", index + 1));
            }
            Ok(id) => ids.push(id.to_owned()),
            Err(problem) => problems.push(format!("key {}: {problem}", index + 1)),
        }
    }
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    match ids.len() {
        0 => Err("holds no key: one a line, <id>:<base64 of 32 bytes>".to_owned()),
        1..=MAX_KEYS => Ok(ids),
        many => Err(format!("holds {many} keys, at most {MAX_KEYS}")),
    }
}

/// Writes a key as a line of the file, without its end.
pub fn key_line(id: &str, key: &[u8; KEY_BYTES]) -> String {
    format!("{id}:{}", STANDARD.encode(key))
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

fn key_id(entry: &str) -> Result<&str, &'static str> {
    let (id, key) = entry
        .split_once(':')
        .ok_or("it has no ':' between id and key")?;
    if !is_key_id(id) {
        return Err("its id is not 1 to 64 letters, digits, '_', '.' or '-'");
    }
    match STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == KEY_BYTES => Ok(id),
        Ok(_) => Err("it is not 32 bytes long"),
        Err(_) => Err("it is not base64"),
    }
}
