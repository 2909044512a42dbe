//! Whether there is live traffic, for what is to keep out of its way.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// The requests of this worker that are not made for a page of a replay.
#[derive(Debug)]
pub struct LiveTraffic {
    born: Instant,
    under_way: AtomicUsize,
    /// When the last one ended: milliseconds since `born`, plus one; 0 when there was none.
    ended: AtomicU64,
}

/// One of them, while it is under way.
#[derive(Debug)]
pub struct LiveRequest<'a>(&'a LiveTraffic);

impl LiveTraffic {
    /// There was none yet.
    pub fn new() -> Self {
        Self {
            born: Instant::now(),
            under_way: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// One begins; it ends when what is answered is dropped.
    #[must_use]
    pub fn begin(&self) -> LiveRequest<'_> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        LiveRequest(self)
    }

    /// Whether one is under way, or one ended at most so long before `now`.
    pub fn was_within(&self, length: Duration, now: Instant) -> bool {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let ended = self.ended.load(Ordering::Relaxed);
        ended
            .checked_sub(1)
            .is_some_and(|ended| self.stamp(now).saturating_sub(ended) <= length)
    }

    fn end(&self, now: Instant) {
        self.ended.fetch_max(self.stamp(now) + 1, Ordering::Relaxed);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
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

impl Drop for LiveRequest<'_> {
    fn drop(&mut self) {
        self.0.end(Instant::now());
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
    fn a_slow_request_is_there_until_it_ends_and_for_a_while_after() {
        let live = LiveTraffic::new();
        let request = live.begin();
        assert!(live.was_within(SECOND, live.born + 60 * SECOND));
        drop(request);
        let ended = live.ended.load(Ordering::Relaxed) - 1;
        let ended = live.born + Duration::from_millis(ended);
        assert!(live.was_within(SECOND, ended + SECOND));
        let over = ended + SECOND + Duration::from_millis(1);
        assert!(!live.was_within(SECOND, over));
    }

    #[test]
    fn what_ends_out_of_order_takes_nothing_back() {
        let live = LiveTraffic::new();
        let (first, second) = (live.begin(), live.begin());
        std::mem::forget((first, second));
        live.end(live.born + 5 * SECOND);
        live.end(live.born);
        assert!(live.was_within(SECOND, live.born + 6 * SECOND));
        assert!(!live.was_within(SECOND, live.born + 7 * SECOND));
    }
}
