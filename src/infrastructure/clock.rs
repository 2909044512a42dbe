//! The one place where time, ids and randomness are made.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use rand::{Rng as _, RngExt as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use uuid::Uuid;

use crate::{
    application::ports::Clock,
    domain::values::{Timestamp, truncate_to_millis},
};

/// The system's clock and its sources of randomness.
#[derive(Debug)]
pub struct SystemClock {
    secure: SystemRandom,
    /// What the store's clock showed, and when that was. Counted on from there without the system's
    /// clock, which may be set meanwhile.
    store: Mutex<Option<(Instant, Timestamp)>>,
}

impl SystemClock {
    /// The system's clock.
    pub fn new() -> Self {
        Self {
            secure: SystemRandom::new(),
            store: Mutex::default(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        truncate_to_millis(chrono::Utc::now())
    }

    fn store_now(&self) -> Timestamp {
        let told = *self.store.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Some((since, shown)) => truncate_to_millis(shown + since.elapsed()),
            None => self.now(),
        }
    }

    fn set_store_time(&self, shown: Timestamp) {
        let told = Some((Instant::now(), shown));
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn random(&self) -> f64 {
        rand::rng().random()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if self.secure.fill(&mut bytes).is_err() {
            // Cryptographically secure as well, and seeded before by the same system.
            rand::rng().fill_bytes(&mut bytes);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_milliseconds_and_ids_are_in_order_of_time() {
        let clock = SystemClock::new();
        let now = clock.now();
        assert_eq!(now.timestamp_subsec_nanos() % 1_000_000, 0);
        let ids: Vec<_> = (0..100).map(|_| clock.new_id()).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }

    #[test]
    fn the_stores_time_goes_on_from_what_was_told_and_is_ours_before() {
        let clock = SystemClock::new();
        let before = clock.now();
        assert!((before..=before + chrono::TimeDelta::seconds(9)).contains(&clock.store_now()));
        for hours in [1, -1] {
            let shown = clock.now() + chrono::TimeDelta::hours(hours);
            clock.set_store_time(shown);
            let told = clock.store_now();
            let soon = truncate_to_millis(shown)..=shown + chrono::TimeDelta::seconds(9);
            assert!(soon.contains(&told), "{told}");
            assert_eq!(told.timestamp_subsec_nanos() % 1_000_000, 0);
            assert!(clock.store_now() >= told);
            assert!((clock.now() - told).abs() > chrono::TimeDelta::minutes(50));
        }
    }

    #[test]
    fn randomness_lies_between_zero_and_one_and_secrets_differ() {
        let clock = SystemClock::new();
        for _ in 0..1_000 {
            let random = clock.random();
            assert!((0.0..1.0).contains(&random), "{random}");
        }
        let secret = clock.secret_bytes(32);
        assert_eq!(secret.len(), 32);
        assert_ne!(secret, clock.secret_bytes(32));
    }
}
