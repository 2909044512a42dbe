//! Whether an event may make its first attempt at an endpoint now, waits for its turn, or is parked.
//!
//! A slow or dead endpoint must never hold events back that go elsewhere. So an endpoint has a bounded
//! number of attempts in flight; a short queue is tolerated as long as it is expected to move within
//! [`Admission::PATIENCE`], and everything beyond is moved aside into the parked lane.

use std::time::Duration;

/// What is known of an endpoint at this moment, on this worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndpointLoad {
    /// Attempts under way.
    pub in_flight: u32,
    /// Events waiting for a slot.
    pub waiting: u32,
    /// Moving average of an attempt's duration.
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

/// The bounds of the fast lane at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Attempts under way at most.
    pub max_in_flight: u32,
}

impl Admission {
    /// How long an event may be expected to wait for a slot.
    pub const PATIENCE: Duration = Duration::from_millis(100);
    /// Without an attempt ending for this long, a full endpoint is stalled.
    pub const STALL: Duration = Duration::from_millis(500);

    /// Decides for one event.
    pub fn decide(self, load: EndpointLoad) -> Verdict {
        if load.in_flight < self.max_in_flight && load.waiting == 0 {
            return Verdict::Attempt;
        }
        if load.since_progress >= Self::STALL {
            return Verdict::Park;
        }
        let turns = load.waiting / self.max_in_flight.max(1) + 1;
        if load.latency.saturating_mul(turns) <= Self::PATIENCE {
            Verdict::Wait
        } else {
            Verdict::Park
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: EndpointLoad = EndpointLoad {
        in_flight: 16,
        waiting: 0,
        latency: Duration::from_millis(1),
        since_progress: Duration::ZERO,
    };

    #[test]
    fn a_free_slot_is_used() {
        let load = EndpointLoad {
            in_flight: 15,
            ..FULL
        };
        assert_eq!(
            Admission { max_in_flight: 16 }.decide(load),
            Verdict::Attempt
        );
    }

    #[test]
    fn a_quick_endpoint_may_queue_and_a_slow_or_stalled_one_may_not() {
        let admission = Admission { max_in_flight: 16 };
        assert_eq!(admission.decide(FULL), Verdict::Wait);
        assert_eq!(
            admission.decide(EndpointLoad {
                waiting: 1500,
                ..FULL
            }),
            Verdict::Wait
        );
        assert_eq!(
            admission.decide(EndpointLoad {
                waiting: 1700,
                ..FULL
            }),
            Verdict::Park
        );
        let slow = EndpointLoad {
            latency: Duration::from_millis(200),
            ..FULL
        };
        assert_eq!(admission.decide(slow), Verdict::Park);
        let stalled = EndpointLoad {
            since_progress: Duration::from_secs(1),
            ..FULL
        };
        assert_eq!(admission.decide(stalled), Verdict::Park);
    }
}
