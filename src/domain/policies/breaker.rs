//! The circuit breaker of an endpoint, shared by all workers: after a run of failures nothing is sent for
//! a while, then one delivery tries it.
//!
//! Closed → open after [`BreakerRules::open_after`] failures in a row → half open when the wait is over:
//! one attempt over all workers, the probe → closed after its success, open again for twice as long
//! after its failure.

use std::time::Duration;

use crate::domain::values::Timestamp;

use super::Answer;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row, at least 1.
    pub open_after: u32,
    /// How long it stays open at first.
    pub first_wait: Duration,
    /// How long it stays open at most.
    pub longest_wait: Duration,
}

impl Default for BreakerRules {
    /// 10 failures; 30 s, doubling to 10 min.
    fn default() -> Self {
        Self {
            open_after: 10,
            first_wait: Duration::from_secs(30),
            longest_wait: Duration::from_mins(10),
        }
    }
}

/// What an attempt says about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It does its work.
    Success,
    /// It answers, and refuses this request (`400`, `404`, a redirect, …): no success, but no sign that
    /// it is down either.
    Refusal,
    /// It is down: no answer, or `5xx`.
    Failure,
}

impl Sign {
    /// What an answer says. `429`, `502`, `503` and `504` ask for less first: they count as failures
    /// only where no less can be asked for (`is_slowest`: one request at a time).
    pub fn of(answer: Answer, is_slowest: bool) -> Self {
        match answer {
            Answer::Status(200..=299, _) => Self::Success,
            Answer::Status(429 | 502 | 503 | 504, _) if !is_slowest => Self::Refusal,
            Answer::Status(408 | 429 | 500..=599, _) | Answer::None => Self::Failure,
            Answer::Status(..) => Self::Refusal,
        }
    }
}

/// The signs of some attempts at one endpoint, in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Whether there was a success.
    pub any_success: bool,
    /// Whether the last one was something else.
    pub ends_badly: bool,
    /// Failures since the last success.
    pub failures: u32,
    /// What became of the probe of an open breaker, if it was among them and is no success.
    pub probe: Option<Sign>,
}

impl Signs {
    /// Counts the one of a probe.
    pub fn add_probe(&mut self, sign: Sign) {
        self.add(sign);
        if sign != Sign::Success {
            self.probe = Some(sign);
        }
    }

    /// Counts one more.
    pub fn add(&mut self, sign: Sign) {
        match sign {
            Sign::Success => {
                *self = Self {
                    any_success: true,
                    ..Self::default()
                }
            }
            Sign::Refusal => self.ends_badly = true,
            Sign::Failure => {
                self.ends_badly = true;
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// These, and then `later` ones.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        if later.any_success {
            return later;
        }
        Self {
            any_success: self.any_success,
            ends_badly: self.ends_badly || later.ends_badly,
            failures: self.failures.saturating_add(later.failures),
            probe: later.probe.or(self.probe),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How an endpoint is, as all workers know it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointState {
    /// Failures since the last success.
    pub failures: u32,
    /// Since when there was nothing but failures and refusals.
    pub failing_since: Option<Timestamp>,
    /// The breaker.
    pub breaker: Breaker,
}

/// Whether requests are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Breaker {
    /// They are.
    #[default]
    Closed,
    /// They are not; from `until` on one tries.
    Open {
        /// When the wait is over.
        until: Timestamp,
        /// How often in a row it has opened, from 1.
        times: u32,
    },
}

/// A breaker has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// It was closed, or its probe has failed.
    Opened {
        /// When the wait is over.
        until: Timestamp,
    },
    /// The probe was answered.
    Closed,
}

impl EndpointState {
    /// Whether nothing is wrong with it.
    pub fn is_well(&self) -> bool {
        *self == Self::default()
    }

    /// When the open breaker's wait is over; `None` when it is closed.
    pub fn open_until(&self) -> Option<Timestamp> {
        match self.breaker {
            Breaker::Closed => None,
            Breaker::Open { until, .. } => Some(until),
        }
    }

    /// Whether there was nothing but failures and refusals for that long.
    pub fn is_hopeless(&self, now: Timestamp, patience: Duration) -> bool {
        self.failing_since
            .is_some_and(|since| since + patience <= now)
    }

    /// The state after some more attempts. An open breaker is moved by its probe only: what was under
    /// way when it opened says nothing new, unless it is a success. A probe that is refused closes it:
    /// who refuses is not down.
    #[must_use]
    pub fn after(
        self,
        signs: Signs,
        rules: &BreakerRules,
        now: Timestamp,
    ) -> (Self, Option<Switched>) {
        let failures = if signs.any_success {
            signs.failures
        } else {
            self.failures.saturating_add(signs.failures)
        };
        let failing_since = match (signs.any_success, signs.ends_badly) {
            (true, false) => None,
            (true, true) => Some(now),
            (false, true) => self.failing_since.or(Some(now)),
            (false, false) => self.failing_since,
        };
        let next = Self {
            failures,
            failing_since,
            breaker: self.breaker,
        };
        match self.breaker {
            Breaker::Closed if failures >= rules.open_after.max(1) => next.open(1, rules, now),
            Breaker::Open { .. } if signs.any_success => {
                let closed = Self {
                    breaker: Breaker::Closed,
                    ..next
                };
                (closed, Some(Switched::Closed))
            }
            Breaker::Open { until, times }
                if signs.probe == Some(Sign::Failure) && until <= now =>
            {
                next.open(times.saturating_add(1), rules, now)
            }
            Breaker::Open { until, .. } if signs.probe == Some(Sign::Refusal) && until <= now => {
                let closed = Self {
                    failures: 0,
                    breaker: Breaker::Closed,
                    ..next
                };
                (closed, Some(Switched::Closed))
            }
            Breaker::Closed | Breaker::Open { .. } => (next, None),
        }
    }

    fn open(self, times: u32, rules: &BreakerRules, now: Timestamp) -> (Self, Option<Switched>) {
        let doubled = 2_u32.saturating_pow(times.saturating_sub(1));
        let wait = rules.first_wait.saturating_mul(doubled);
        let until = now + wait.min(rules.longest_wait);
        let open = Self {
            breaker: Breaker::Open { until, times },
            ..self
        };
        (open, Some(Switched::Opened { until }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: BreakerRules = BreakerRules {
        open_after: 3,
        first_wait: Duration::from_secs(30),
        longest_wait: Duration::from_mins(10),
    };

    fn at(second: u64) -> Timestamp {
        chrono::DateTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn signs(all: &[Sign]) -> Signs {
        let mut signs = Signs::default();
        for sign in all {
            signs.add(*sign);
        }
        signs
    }

    fn probe(sign: Sign) -> Signs {
        let mut signs = Signs::default();
        signs.add_probe(sign);
        signs
    }

    use Sign::{Failure, Refusal, Success};

    #[test]
    fn answers_say_whether_an_endpoint_is_down() {
        for (answer, is_slowest, expected) in [
            (Answer::Status(204, None), false, Success),
            (Answer::Status(301, None), true, Refusal),
            (Answer::Status(404, None), true, Refusal),
            (Answer::Status(410, None), true, Refusal),
            (Answer::Status(500, None), false, Failure),
            (Answer::Status(503, None), false, Refusal),
            (Answer::Status(503, None), true, Failure),
            (Answer::Status(429, None), false, Refusal),
            (Answer::Status(429, None), true, Failure),
            (Answer::None, false, Failure),
        ] {
            assert_eq!(Sign::of(answer, is_slowest), expected, "{answer:?}");
        }
    }

    #[test]
    fn it_opens_after_a_run_of_failures_and_not_after_as_many_with_a_success_between() {
        let (state, switched) =
            EndpointState::default().after(signs(&[Failure, Failure]), &RULES, at(1));
        assert_eq!((state.failures, switched), (2, None));
        assert_eq!(state.failing_since, Some(at(1)));

        let (well, switched) = state.after(signs(&[Success]), &RULES, at(2));
        assert!(well.is_well() && switched.is_none());
        let (state_2, switched) = state.after(signs(&[Success, Failure, Failure]), &RULES, at(2));
        assert_eq!((state_2.failures, switched), (2, None));
        assert_eq!(state_2.failing_since, Some(at(2)));
        let (same, switched) = state.after(signs(&[Refusal, Refusal]), &RULES, at(2));
        assert_eq!((same, switched), (state, None));

        let (open, switched) = state.after(signs(&[Failure]), &RULES, at(2));
        let until = at(32);
        assert_eq!(switched, Some(Switched::Opened { until }));
        assert_eq!(open.breaker, Breaker::Open { until, times: 1 });
        assert_eq!(open.failing_since, Some(at(1)));
    }

    #[test]
    fn a_probe_closes_it_or_opens_it_for_twice_as_long_up_to_a_bound() {
        let failures = signs(&[Failure; 3]);
        let (mut state, _) = EndpointState::default().after(failures, &RULES, at(0));
        let mut now = 30;
        for (times, wait) in [(2, 60), (3, 120), (4, 240), (5, 480), (6, 600), (7, 600)] {
            // Late failures of before change nothing, whenever they come.
            for late in [now - 1, now, now + 9] {
                let (same, switched) = state.after(signs(&[Failure, Refusal]), &RULES, at(late));
                assert_eq!((same.breaker, switched), (state.breaker, None));
            }
            let (next, switched) = state.after(probe(Failure), &RULES, at(now));
            let until = at(now + wait);
            assert_eq!(switched, Some(Switched::Opened { until }), "{times}");
            assert_eq!(next.breaker, Breaker::Open { until, times });
            now += wait;
            state = next;
        }
        let (closed, switched) = state.after(probe(Success), &RULES, at(now));
        assert!(closed.is_well());
        assert_eq!(switched, Some(Switched::Closed));
    }

    #[test]
    fn a_probe_that_is_refused_closes_it_and_is_no_success() {
        let (open, _) = EndpointState::default().after(signs(&[Failure; 3]), &RULES, at(0));
        // What was under way when it opened is no probe, although it is refused.
        for late in [29, 30, 99] {
            let (same, switched) = open.after(signs(&[Refusal]), &RULES, at(late));
            assert_eq!((same, switched), (open, None));
        }
        let (closed, switched) = open.after(probe(Refusal), &RULES, at(30));
        assert_eq!(switched, Some(Switched::Closed));
        assert_eq!((closed.failures, closed.open_until()), (0, None));
        assert_eq!(closed.failing_since, Some(at(0)));
        let patience = Duration::from_secs(40);
        assert!(!closed.is_hopeless(at(39), patience));
        assert!(closed.is_hopeless(at(40), patience));
        assert!(!EndpointState::default().is_hopeless(at(40), Duration::ZERO));
    }

    #[test]
    fn signs_of_before_and_after_are_as_if_counted_at_once() {
        let all = [Success, Refusal, Failure];
        for (a, b) in all.iter().flat_map(|a| all.map(|b| (*a, b))) {
            assert_eq!(
                signs(&[a]).then(signs(&[b])),
                signs(&[a, b]),
                "{a:?}, {b:?}"
            );
            assert_eq!(signs(&[a]).then(Signs::default()), signs(&[a]));
            let mut at_once = probe(a);
            at_once.add(b);
            assert_eq!(probe(a).then(signs(&[b])), at_once, "{a:?}, {b:?}");
        }
    }

    #[test]
    fn refusals_alone_never_open_it_and_are_no_success() {
        let (state, switched) =
            EndpointState::default().after(signs(&[Refusal; 50]), &RULES, at(5));
        assert_eq!((state.breaker, switched), (Breaker::Closed, None));
        assert_eq!(state.failing_since, Some(at(5)));
        assert!(!state.is_well());
    }
}
