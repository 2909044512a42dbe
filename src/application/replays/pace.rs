//! How fast a replay goes, so that live traffic does not notice.

use std::time::{Duration, Instant};

use crate::application::live_traffic::LiveTraffic;

/// How long after the last request of others there still is live traffic.
const LIVE_FOR: Duration = Duration::from_secs(1);

/// How one page goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// Deliveries in it.
    pub(super) page: usize,
    /// How many of them are read, or sent, at a time.
    pub(super) at_once: usize,
    /// What it takes at least, from its beginning until the next one may begin.
    pub(super) takes: Duration,
}

impl Pace {
    /// While nothing else goes on.
    pub(super) const ALONE: Self = Self {
        page: 32,
        at_once: 4,
        takes: Duration::ZERO,
    };
    /// At most 100 deliveries a second.
    pub(super) const BESIDE_OTHERS: Self = Self {
        page: 8,
        at_once: 1,
        takes: Duration::from_millis(80),
    };

    /// The one for a page that begins `now`.
    pub(super) fn of(live: &LiveTraffic, now: Instant) -> Self {
        if live.was_within(LIVE_FOR, now) {
            Self::BESIDE_OTHERS
        } else {
            Self::ALONE
        }
    }

    /// How long to rest after a page that took so long.
    pub(super) fn rest_after(self, took: Duration) -> Duration {
        self.takes.saturating_sub(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_traffic_slows_a_replay_down_and_its_end_lets_it_go() {
        let live = LiveTraffic::new();
        let now = Instant::now();
        assert_eq!(Pace::of(&live, now), Pace::ALONE);
        let request = live.begin();
        assert_eq!(Pace::of(&live, now + 60 * LIVE_FOR), Pace::BESIDE_OTHERS);
        drop(request);
        assert_eq!(Pace::of(&live, Instant::now()), Pace::BESIDE_OTHERS);
        let later = Instant::now() + 2 * LIVE_FOR;
        assert_eq!(Pace::of(&live, later), Pace::ALONE);
    }

    #[test]
    fn a_page_beside_others_has_its_time_and_what_an_endpoint_takes_is_part_of_it() {
        let millis = Duration::from_millis;
        for (took, rest) in [(0, 80), (30, 50), (80, 0), (3_000, 0)] {
            assert_eq!(
                Pace::BESIDE_OTHERS.rest_after(millis(took)),
                millis(rest),
                "{took}"
            );
            assert_eq!(Pace::ALONE.rest_after(millis(took)), Duration::ZERO);
        }
    }
}
