//! The ordering key of a delivery.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// What deliveries of one webhook have in common that go out one after the other. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey(Arc<str>);

impl LaneKey {
    /// Longest key that is kept as it is, in bytes.
    pub const MAX_LEN: usize = 256;

    /// The key of this text; one that is too long, or holds U+0000, which PostgreSQL cannot keep, is
    /// replaced by its fingerprint, so that equal texts stay equal.
    pub fn new(text: &str) -> Self {
        if text.len() <= Self::MAX_LEN && !text.contains('\0') {
            return Self(Arc::from(text));
        }
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        Self(Arc::from(format!("uuid5:{fingerprint}")))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keys_are_kept_and_others_stay_equal_to_themselves_alone() {
        assert_eq!(LaneKey::new("C-1").as_str(), "C-1");
        assert_eq!(LaneKey::new("").as_str(), "");
        let (long, longer) = ("x".repeat(257), "x".repeat(258));
        for text in [long.as_str(), "a\0b"] {
            let key = LaneKey::new(text);
            assert!(key.as_str().starts_with("uuid5:"), "{key:?}");
            assert_eq!(key, LaneKey::new(text));
            assert_ne!(key, LaneKey::new(&longer));
        }
    }
}
