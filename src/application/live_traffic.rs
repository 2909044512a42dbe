//! Whether there is live traffic, for what is to keep out of its way.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// When an attempt was last made that was no replay's.
#[derive(Debug)]
pub struct LiveTraffic {
    born: Instant,
    /// Milliseconds since `born`, plus one; 0 when there was none.
    last: AtomicU64,
}

impl LiveTraffic {
    /// There was none yet.
    pub fn new() -> Self {
        Self {
            born: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// There is some.
    pub fn note(&self, now: Instant) {
        self.last.fetch_max(self.stamp(now) + 1, Ordering::Relaxed);
    }

    /// Whether there was some, at most so long before `now`.
    pub fn was_within(&self, length: Duration, now: Instant) -> bool {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let last = self.last.load(Ordering::Relaxed);
        last.checked_sub(1)
            .is_some_and(|last| self.stamp(now).saturating_sub(last) <= length)
    }

    fn stamp(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.born).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1)
    }
}

impl Default for LiveTraffic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn none_was_ever_there_at_first() {
        let live = LiveTraffic::new();
        assert!(!live.was_within(SECOND, Instant::now()));
    }

    #[test]
    fn it_is_over_after_a_while() {
        let live = LiveTraffic::new();
        let then = live.born + SECOND;
        live.note(then);
        assert!(live.was_within(SECOND, then));
        assert!(live.was_within(SECOND, then + SECOND));
        let over = then + SECOND + Duration::from_millis(1);
        assert!(!live.was_within(SECOND, over));
    }

    #[test]
    fn what_is_noted_late_takes_nothing_back() {
        let live = LiveTraffic::new();
        live.note(live.born + 5 * SECOND);
        live.note(live.born);
        assert!(live.was_within(SECOND, live.born + 6 * SECOND));
    }
}
