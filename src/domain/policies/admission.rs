//! Whether an event may make its first attempt at an endpoint now, waits for its turn, or is parked.
//!
//! A slow or dead endpoint must never hold events back that go elsewhere. So the attempts under way at
//! one endpoint are bounded by a [`Window`] that follows how the endpoint does; a short queue is
//! tolerated as long as it is expected to move within [`PATIENCE`], and everything beyond is moved
//! aside into the parked lane.

use std::time::Duration;

/// How long an event may be expected to wait for a slot.
pub const PATIENCE: Duration = Duration::from_millis(250);
/// Without an attempt ending for this long, an endpoint may be stalled; an attempt that takes longer
/// does not count among those that the worker makes at a time.
pub const STALL: Duration = Duration::from_millis(500);

/// What is known of an endpoint at this moment, on this worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndpointLoad {
    /// Attempts that may be under way at a time.
    pub window: u32,
    /// Attempts under way.
    pub in_flight: u32,
    /// Events waiting for a slot.
    pub waiting: u32,
    /// Moving average of how long an answer takes.
    pub latency: Duration,
    /// Since the last attempt ended, or since the first of those under way began.
    pub since_progress: Duration,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Attempt it now.
    Attempt,
    /// A slot is expected soon: wait for it.
    Wait,
    /// Move it aside.
    Park,
}

impl EndpointLoad {
    /// Whether the attempts under way get no answers: none for [`STALL`], nor for four times as long as
    /// an answer of this endpoint takes.
    pub fn is_stalled(self) -> bool {
        self.in_flight > 0 && self.since_progress >= STALL.max(self.latency.saturating_mul(4))
    }
}

/// Decides for one event.
pub fn admit(load: EndpointLoad) -> Verdict {
    if load.is_stalled() {
        return Verdict::Park;
    }
    if load.in_flight < load.window && load.waiting == 0 {
        return Verdict::Attempt;
    }
    let turns = load.waiting / load.window.max(1) + 1;
    if load.latency.saturating_mul(turns) <= PATIENCE {
        Verdict::Wait
    } else {
        Verdict::Park
    }
}

/// How many attempts may be under way at an endpoint: grows with every success, halves when the
/// endpoint does not keep up, and is never less than one. So an endpoint that never answers soon holds
/// one slot, and one that recovers is back at full speed after a few successes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    size: u32,
    max: u32,
    /// Whether it was ever smaller for another reason than its bound.
    fell: bool,
}

impl Window {
    /// Where a new endpoint starts.
    pub const INITIAL: u32 = 32;

    /// A window that grows up to `max` (at least 1).
    pub fn new(max: u32) -> Self {
        let max = max.max(1);
        Self {
            size: Self::INITIAL.min(max),
            max,
            fell: false,
        }
    }

    /// Attempts that may be under way.
    pub fn size(self) -> u32 {
        self.size
    }

    /// The window with another bound: cut to it, or free to grow up to it.
    #[must_use]
    pub fn bounded(self, max: u32) -> Self {
        let max = max.max(1);
        let size = if self.size == self.max && !self.fell {
            // It was the bound alone that kept it small.
            self.size.max(Self::INITIAL)
        } else {
            self.size
        };
        Self {
            size: size.min(max),
            max,
            ..self
        }
    }

    /// Whether it is smaller than a new endpoint's.
    pub fn is_behind(self) -> bool {
        self.size < Self::INITIAL.min(self.max)
    }

    /// The endpoint answered as one that keeps up does.
    #[must_use]
    pub fn kept_up(self) -> Self {
        Self {
            size: (self.size + 1).min(self.max),
            ..self
        }
    }

    /// No answer, or one that asks for less (`429`, `502`, `503`, `504`).
    #[must_use]
    pub fn fell_behind(self) -> Self {
        Self {
            size: (self.size / 2).max(1),
            fell: true,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: EndpointLoad = EndpointLoad {
        window: 16,
        in_flight: 16,
        waiting: 0,
        latency: Duration::from_millis(1),
        since_progress: Duration::ZERO,
    };

    #[test]
    fn a_free_slot_is_used() {
        assert_eq!(
            admit(EndpointLoad {
                in_flight: 15,
                ..FULL
            }),
            Verdict::Attempt
        );
    }

    #[test]
    fn a_quick_endpoint_may_queue_and_a_slow_or_stalled_one_may_not() {
        assert_eq!(admit(FULL), Verdict::Wait);
        assert_eq!(
            admit(EndpointLoad {
                waiting: 3500,
                ..FULL
            }),
            Verdict::Wait
        );
        assert_eq!(
            admit(EndpointLoad {
                waiting: 4100,
                ..FULL
            }),
            Verdict::Park
        );
        let slow = EndpointLoad {
            latency: Duration::from_millis(300),
            ..FULL
        };
        assert_eq!(admit(slow), Verdict::Park);
        let stalled = EndpointLoad {
            since_progress: Duration::from_secs(1),
            ..FULL
        };
        assert_eq!(admit(stalled), Verdict::Park);
    }

    #[test]
    fn a_stalled_endpoint_gets_nothing_even_if_it_has_slots_and_a_slow_one_is_not_stalled() {
        let free = EndpointLoad {
            in_flight: 3,
            since_progress: Duration::from_millis(600),
            ..FULL
        };
        assert_eq!(admit(free), Verdict::Park);
        let idle = EndpointLoad {
            in_flight: 0,
            ..free
        };
        assert_eq!(admit(idle), Verdict::Attempt);
        let slow = EndpointLoad {
            latency: Duration::from_millis(600),
            ..free
        };
        assert_eq!(admit(slow), Verdict::Attempt);
    }

    #[test]
    fn a_window_shrinks_to_one_and_grows_back_to_its_bound() {
        let mut window = Window::new(20);
        assert_eq!(Window::new(64).size(), Window::INITIAL);
        for expected in [10, 5, 2, 1, 1] {
            window = window.fell_behind();
            assert_eq!(window.size(), expected);
        }
        for _ in 0..30 {
            window = window.kept_up();
        }
        assert_eq!(window.size(), 20);
        assert_eq!(Window::new(0).size(), 1);
    }

    #[test]
    fn another_bound_holds_at_once_and_a_window_that_fell_behind_stays_small() {
        for (window, max, size) in [
            (Window::new(256), 2, 2),
            (Window::new(2), 256, Window::INITIAL),
            (Window::new(2), 8, 8),
            (Window::new(256).fell_behind(), 256, 16),
            (Window::new(256).fell_behind(), 1_000, 16),
            (Window::new(256).fell_behind(), 0, 1),
            // Back at its bound, it has shown no more than that.
            (Window::new(2).fell_behind().kept_up(), 256, 2),
            (Window::new(1).fell_behind(), 256, 1),
        ] {
            assert_eq!(window.bounded(max).size(), size, "{window:?} to {max}");
        }
    }
}
