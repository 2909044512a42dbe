//! The keys: `<id>:<base64 of 32 bytes>`, one a line or separated by commas.

use std::fmt;

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};

use crate::{
    application::ports::Clock,
    shared::config::keys::{KEY_BYTES, MAX_KEYS, key_line, parse_keys},
};

/// The encryption keys by id; the first encrypts, all decrypt. There is always a first.
pub struct KeyRing {
    first: (String, LessSafeKey),
    others: Vec<(String, LessSafeKey)>,
}

impl KeyRing {
    /// How many keys a ring may hold.
    pub const MAX_KEYS: usize = MAX_KEYS;

    /// Reads the text of a key file: one key a line or separated by commas, blank lines, and
    /// comments from `#` to the end of the line.
    ///
    /// # Errors
    /// Every fault, each with its line and, where one was given, the key's id; never key material.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let keys = parse_keys(text)?;
        let mut keys = keys.into_iter().map(|(id, key)| sealing_key(id, &key));
        let first = keys.next().ok_or_else(|| vec!["no key".to_owned()])??;
        Ok(Self {
            first,
            others: keys.collect::<Result<_, _>>()?,
        })
    }

    /// The ids of all keys; the first one encrypts.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys().map(|(id, _)| id.as_str())
    }

    /// A fault for each of the needed keys that is not in the ring.
    pub(super) fn missing<'a>(&self, needed: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        needed
            .into_iter()
            .filter(|id| self.get(id).is_none())
            .map(|id| format!("the key {id:?} is needed and is not in the ring"))
            .collect()
    }

    /// The key that encrypts.
    pub(super) fn first(&self) -> (&str, &LessSafeKey) {
        (&self.first.0, &self.first.1)
    }

    /// A key by its id.
    pub(super) fn get(&self, id: &str) -> Option<&LessSafeKey> {
        self.keys()
            .find(|(known, _)| known == id)
            .map(|(_, key)| key)
    }

    fn keys(&self) -> impl Iterator<Item = &(String, LessSafeKey)> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// A line for a key file with a new key.
pub fn generate_key_line(id: &str, clock: &dyn Clock) -> String {
    key_line(id, &clock.secret_bytes(KEY_BYTES))
}

fn sealing_key(id: String, key: &[u8; KEY_BYTES]) -> Result<(String, LessSafeKey), Vec<String>> {
    let key = UnboundKey::new(&AES_256_GCM, key)
        .map_err(|_| vec![format!("the key {id:?} cannot be used")])?;
    Ok((id, LessSafeKey::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infrastructure::clock::SystemClock;

    const A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const B: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    #[test]
    fn keys_stand_one_a_line_or_after_commas_among_comments_and_blanks() {
        let text = format!("# keys\n\n k2 : {A} , k-1.x:{B}  # old\r\n,\nk3:{B}\n#k4:{B}");
        let ring = KeyRing::parse(&text).unwrap();
        assert_eq!(ring.ids().collect::<Vec<_>>(), ["k2", "k-1.x", "k3"]);
        assert_eq!(ring.first().0, "k2");
        assert!(ring.get("k-1.x").is_some());
        assert!(ring.get("k4").is_none());
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_without_key_material() {
        let long = "i".repeat(65);
        let text = format!("a:{A}\n{B}\n:{B}\nb:c2hvcnQ=,c:!!\na:{B}\nö:{B}\n{long}:{B}");
        let faults = KeyRing::parse(&text).unwrap_err();
        let told = faults.join("\n");
        let starts = [
            "line 2: a key is written",
            "line 3: a key is written",
            "line 4: the key \"b\" has 5 bytes instead of 32",
            "line 4: the key \"c\" is not base64",
            "line 5: the key id \"a\" is there twice",
            "line 6: a key is written",
            "line 7: a key is written",
        ];
        assert_eq!(faults.len(), starts.len(), "{told}");
        for (fault, start) in faults.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}");
        }
        for secret in [A, B, "c2hvcnQ", "!!"] {
            assert!(!told.contains(secret), "{told}");
        }
    }

    #[test]
    fn a_ring_without_a_key_is_a_fault() {
        for text in ["", "\n# nothing\n", " , ,"] {
            let faults = KeyRing::parse(text).unwrap_err();
            assert!(faults[0].starts_with("no key"), "{faults:?}");
        }
    }

    #[test]
    fn a_ring_shows_ids_and_no_keys() {
        let ring = KeyRing::parse(&format!("k1:{A}")).unwrap();
        assert_eq!(format!("{ring:?}"), r#"["k1"]"#);
    }

    #[test]
    fn a_generated_line_is_a_ring_of_its_own() {
        let clock = SystemClock::new();
        let line = generate_key_line("2026-01", &clock);
        let ring = KeyRing::parse(&line).unwrap();
        assert_eq!(ring.ids().collect::<Vec<_>>(), ["2026-01"]);
        assert_ne!(line, generate_key_line("2026-01", &clock));
    }
}
