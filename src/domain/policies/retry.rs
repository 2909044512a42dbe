//! When a failed delivery is tried again.

use std::time::Duration;

use backoff::{ExponentialBackoffBuilder, backoff::Backoff};

/// The waits between the attempts of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryPolicy {
    /// `initial` doubles with every retry, up to [`RetryPolicy::MAX_INTERVAL`].
    Exponential {
        /// Retries after the first attempt, 0–10.
        max_retries: u32,
        /// The first wait, 100 ms – 60 s.
        initial: Duration,
    },
    /// These waits, one after the other.
    Schedule(Vec<Duration>),
}

impl RetryPolicy {
    /// The longest exponential wait: 1 h.
    pub const MAX_INTERVAL: Duration = Duration::from_hours(1);
    /// The longest wait that a `Retry-After` can ask for: 24 h.
    pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);
    /// How many waits a schedule may list.
    pub const MAX_SCHEDULE: usize = 50;
    /// The longest wait in a schedule: 7 d.
    pub const MAX_SCHEDULED_WAIT: Duration = Duration::from_hours(7 * 24);
    /// How far jitter moves a wait: ±20 %.
    pub const JITTER: f64 = 0.2;

    /// The wait before the retry after failed attempt `attempt` (from 1), without jitter;
    /// `None` when there are no retries left.
    pub fn wait(&self, attempt: u32) -> Option<Duration> {
        match self {
            Self::Exponential { max_retries, .. } if attempt > *max_retries => None,
            Self::Exponential { initial, .. } => {
                let mut intervals = ExponentialBackoffBuilder::new()
                    .with_initial_interval(*initial)
                    .with_multiplier(2.0)
                    .with_randomization_factor(0.0)
                    .with_max_interval(Self::MAX_INTERVAL)
                    .with_max_elapsed_time(None)
                    .build();
                (0..attempt.max(1))
                    .filter_map(|_| intervals.next_backoff())
                    .last()
            }
            Self::Schedule(waits) => waits.get(attempt.saturating_sub(1) as usize).copied(),
        }
    }
}

impl Default for RetryPolicy {
    /// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        let seconds = [
            5,
            5 * MINUTE,
            30 * MINUTE,
            2 * HOUR,
            5 * HOUR,
            10 * HOUR,
            14 * HOUR,
            20 * HOUR,
            24 * HOUR,
        ];
        Self::Schedule(seconds.into_iter().map(Duration::from_secs).collect())
    }
}

/// The wait after failed attempt `attempt` (from 1) with jitter, `random` being uniform in 0..1.
/// `retry_after` only lengthens it, up to [`RetryPolicy::MAX_RETRY_AFTER`].
pub fn next_wait(
    policy: &RetryPolicy,
    attempt: u32,
    retry_after: Option<Duration>,
    random: f64,
) -> Option<Duration> {
    let wait = policy.wait(attempt)?;
    let jittered = wait.mul_f64(1.0 + RetryPolicy::JITTER * (2.0 * random - 1.0));
    let asked = retry_after
        .unwrap_or_default()
        .min(RetryPolicy::MAX_RETRY_AFTER);
    Some(jittered.max(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exponential_policy_doubles_up_to_an_hour_and_ends() {
        let policy = RetryPolicy::Exponential {
            max_retries: 10,
            initial: Duration::from_mins(1),
        };
        let waits: Vec<_> = (1..=11)
            .map(|n| policy.wait(n).map(|wait| wait.as_secs()))
            .collect();
        let hour = Some(3600);
        assert_eq!(
            waits,
            [
                Some(60),
                Some(120),
                Some(240),
                Some(480),
                Some(960),
                Some(1920),
                hour,
                hour,
                hour,
                hour,
                None
            ]
        );
    }

    #[test]
    fn no_retries_means_none() {
        let policy = RetryPolicy::Exponential {
            max_retries: 0,
            initial: Duration::from_millis(100),
        };
        assert_eq!(policy.wait(1), None);
    }

    #[test]
    fn jitter_stays_within_a_fifth_and_retry_after_only_lengthens() {
        let policy = RetryPolicy::default();
        let wait = |after, random| next_wait(&policy, 1, after, random).unwrap();
        assert_eq!(wait(None, 0.0), Duration::from_secs(4));
        assert_eq!(wait(None, 0.5), Duration::from_secs(5));
        assert_eq!(
            wait(Some(Duration::from_secs(1)), 0.5),
            Duration::from_secs(5)
        );
        assert_eq!(
            wait(Some(Duration::from_secs(90)), 0.5),
            Duration::from_secs(90)
        );
        assert_eq!(
            wait(Some(Duration::from_hours(99)), 0.5),
            Duration::from_hours(24)
        );
    }
}
