//! The ordering key of a delivery.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// What deliveries of one webhook have in common that go out one after the other. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey(Arc<str>);

impl LaneKey {
    /// Longest key that is kept as it is, in bytes.
    pub const MAX_LEN: usize = 256;
    /// What the keys of lanes begin with that replays have to themselves.
    pub const OF_REPLAY: &str = "replay:";

    /// The key of this text; one that is too long, holds U+0000, which PostgreSQL cannot keep, or looks
    /// like one of a replay is replaced by its fingerprint, so that equal texts stay equal.
    pub fn new(text: &str) -> Self {
        let is_plain = !text.contains('\0') && !text.starts_with(Self::OF_REPLAY);
        if text.len() <= Self::MAX_LEN && is_plain {
            return Self(Arc::from(text));
        }
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        Self(Arc::from(format!("uuid5:{fingerprint}")))
    }

    /// As it was kept.
    pub fn kept(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The key under which a replay sends what has this one, so that nothing live waits for it.
    #[must_use]
    pub fn of_replay(&self) -> Self {
        if self.is_of_replay() {
            return self.clone();
        }
        Self(Arc::from(format!("{}{}", Self::OF_REPLAY, self.0)))
    }

    /// Whether it is one of a replay.
    pub fn is_of_replay(&self) -> bool {
        self.0.starts_with(Self::OF_REPLAY)
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
        for text in [long.as_str(), "a\0b", "replay:C-1"] {
            let key = LaneKey::new(text);
            assert!(key.as_str().starts_with("uuid5:"), "{key:?}");
            assert_eq!(key, LaneKey::new(text));
            assert_ne!(key, LaneKey::new(&longer));
        }
    }

    #[test]
    fn the_keys_of_replays_are_their_own_and_come_back_as_they_were_kept() {
        for text in ["C-1", "", "replay:C-1", "ä"] {
            let live = LaneKey::new(text);
            let key = live.of_replay();
            assert!(!live.is_of_replay() && key.is_of_replay(), "{key:?}");
            assert_eq!(key.of_replay(), key);
            assert_eq!(LaneKey::kept(key.as_str()), key);
        }
    }
}
