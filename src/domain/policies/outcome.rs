//! What becomes of a delivery after an attempt.

use std::time::Duration;

use crate::domain::values::Timestamp;

use super::{RetryPolicy, next_wait};

/// How an endpoint answered, as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A status, and the wait that `Retry-After` asks for.
    Status(u16, Option<Duration>),
    /// No answer.
    None,
}

impl Answer {
    /// 2xx.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(200..=299, _))
    }

    /// `410 Gone`: the endpoint wants nothing more.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Status(410, _))
    }

    /// Whether the endpoint keeps up with what it gets.
    pub fn keeps_up(self) -> bool {
        !matches!(self, Self::None | Self::Status(429 | 502 | 503 | 504, _))
    }

    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Status(_, after) => after,
            Self::None => None,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// It is delivered.
    Done,
    /// Try again at this time.
    Retry(Timestamp),
    /// The webhook is disabled and the delivery waits for its activation.
    Disable,
    /// Out of attempts.
    GiveUp,
}

/// Decides after attempt number `attempt` of the current retry budget (from 1).
/// `random` is uniform in 0..1.
pub fn next_step(
    answer: Answer,
    policy: &RetryPolicy,
    attempt: u32,
    now: Timestamp,
    random: f64,
) -> NextStep {
    if answer.is_success() {
        return NextStep::Done;
    }
    if answer.is_gone() {
        return NextStep::Disable;
    }
    match next_wait(policy, attempt, answer.retry_after(), random) {
        Some(wait) => NextStep::Retry(now + wait),
        None => NextStep::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = chrono::DateTime::UNIX_EPOCH;

    #[test]
    fn the_answer_decides() {
        let once = RetryPolicy::Schedule(vec![Duration::from_secs(10)]);
        let step = |answer, attempt| next_step(answer, &once, attempt, NOW, 0.5);
        let soon = NextStep::Retry(NOW + Duration::from_secs(10));
        let later = NextStep::Retry(NOW + Duration::from_mins(1));
        let minute = Some(Duration::from_mins(1));
        for (answer, attempt, expected) in [
            (Answer::Status(200, None), 1, NextStep::Done),
            (Answer::Status(299, None), 2, NextStep::Done),
            (Answer::Status(301, None), 1, soon),
            (Answer::Status(400, None), 1, soon),
            (Answer::Status(429, minute), 1, later),
            (Answer::Status(500, None), 2, NextStep::GiveUp),
            (Answer::Status(410, None), 1, NextStep::Disable),
            (Answer::Status(410, None), 2, NextStep::Disable),
            (Answer::None, 1, soon),
            (Answer::None, 2, NextStep::GiveUp),
        ] {
            assert_eq!(
                step(answer, attempt),
                expected,
                "{answer:?}, attempt {attempt}"
            );
        }
    }

    #[test]
    fn only_silence_and_overload_mean_falling_behind() {
        for status in [200, 400, 404, 410, 500] {
            assert!(Answer::Status(status, None).keeps_up(), "{status}");
        }
        for status in [429, 502, 503, 504] {
            assert!(!Answer::Status(status, None).keeps_up(), "{status}");
        }
        assert!(!Answer::None.keeps_up());
    }
}
