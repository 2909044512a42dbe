//! How many requests a webhook may get in a time: a token bucket, in whole numbers.

use std::{ops::RangeInclusive, time::Duration};

use crate::domain::values::Timestamp;

/// So many requests in so much time.
///
/// A bucket holds `requests` tokens and is refilled evenly over `per`; each request takes one. So within
/// any time `t`, no more than `requests + requests × t / per` requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    requests: u32,
    per_ms: i64,
}

/// What is left of a rule's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// A token is as much of it as the rule's `per` has milliseconds, and each millisecond brings
    /// `requests` of it: so nothing is ever rounded.
    pub level: i64,
    /// Up to when it is refilled.
    pub refilled_at: Timestamp,
}

impl RateLimit {
    /// How many requests a rule may allow.
    pub const REQUESTS: RangeInclusive<u32> = 1..=100_000;
    /// In how many milliseconds: up to a day.
    pub const PER_MS: RangeInclusive<u32> = 100..=86_400_000;
    /// A rule that is faster than one token in this time gives them out in lots, so that a claim is
    /// worth its while.
    pub const LOT: Duration = Duration::from_millis(20);
    /// Whoever takes tokens comes a moment after they are there. A full bucket goes on filling for this
    /// part of a token's time (a fiftieth), so that little is lost by that.
    const LATE: i64 = 50;

    /// A rule, brought within its bounds.
    pub fn new(requests: u32, per: Duration) -> Self {
        let per_ms = u32::try_from(per.as_millis()).unwrap_or(u32::MAX);
        Self {
            requests: requests.clamp(*Self::REQUESTS.start(), *Self::REQUESTS.end()),
            per_ms: i64::from(per_ms.clamp(*Self::PER_MS.start(), *Self::PER_MS.end())),
        }
    }

    /// Requests in [`Self::per_ms`].
    pub fn requests(self) -> u32 {
        self.requests
    }

    /// In how many milliseconds.
    pub fn per_ms(self) -> i64 {
        self.per_ms
    }

    /// A bucket that was never touched.
    pub fn full(self) -> Bucket {
        Bucket {
            level: i64::from(self.requests) * self.per_ms,
            refilled_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    /// The bucket as it is at `now`; a time that is over already brings nothing.
    #[must_use]
    pub fn refilled(self, bucket: Bucket, now: Timestamp) -> Bucket {
        let elapsed = (now - bucket.refilled_at).num_milliseconds().max(0);
        let brought = elapsed.saturating_mul(i64::from(self.requests));
        let level = bucket.level.max(0).saturating_add(brought);
        Bucket {
            level: level.min(self.capacity()),
            refilled_at: bucket.refilled_at.max(now),
        }
    }

    /// Whole tokens in it.
    pub fn tokens(self, bucket: Bucket) -> u32 {
        u32::try_from((bucket.level / self.per_ms).max(0)).unwrap_or(u32::MAX)
    }

    /// The bucket without so many tokens.
    #[must_use]
    pub fn without(self, bucket: Bucket, tokens: u32) -> Bucket {
        let level = bucket.level - i64::from(tokens) * self.per_ms;
        Bucket {
            level: level.max(0),
            ..bucket
        }
    }

    /// From when on it is worth to take tokens from it: one, or as many as [`Self::LOT`] brings.
    pub fn ready_at(self, bucket: Bucket) -> Timestamp {
        let requests = i64::from(self.requests);
        let lot_ms = i64::try_from(Self::LOT.as_millis()).unwrap_or(0);
        let lot = (requests * lot_ms / self.per_ms).max(1);
        let missing = (lot * self.per_ms - bucket.level).max(0);
        let wait = missing.div_euclid(requests) + i64::from(missing.rem_euclid(requests) > 0);
        bucket.refilled_at + chrono::TimeDelta::milliseconds(wait)
    }

    /// The bucket of a former rule, with as many tokens as before, if there is room for them.
    #[must_use]
    pub fn instead_of(self, former: Self, bucket: Bucket) -> Bucket {
        let level = i128::from(bucket.level) * i128::from(self.per_ms) / i128::from(former.per_ms);
        Bucket {
            level: i64::try_from(level)
                .unwrap_or(i64::MAX)
                .min(self.capacity()),
            ..bucket
        }
    }

    fn capacity(self) -> i64 {
        i64::from(self.requests) * self.per_ms + self.per_ms / Self::LATE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(requests: u32, per_ms: u64) -> RateLimit {
        RateLimit::new(requests, Duration::from_millis(per_ms))
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_timestamp_millis(1_772_350_000_000 + millis).unwrap()
    }

    /// An empty bucket at `at(0)`.
    fn empty(rule: RateLimit) -> Bucket {
        let full = rule.refilled(rule.full(), at(0));
        rule.without(full, u32::MAX)
    }

    #[test]
    fn a_bucket_is_refilled_evenly_and_holds_no_more_than_its_tokens() {
        for (requests, per_ms, elapsed, tokens) in [
            (50, 1_000, 0, 0),
            (50, 1_000, 19, 0),
            (50, 1_000, 20, 1),
            (50, 1_000, 999, 49),
            (50, 1_000, 1_000, 50),
            (50, 1_000, 86_400_000, 50),
            (1, 1_000, 999, 0),
            (1, 1_000, 1_000, 1),
            (1, 86_400_000, 86_399_999, 0),
            (1, 86_400_000, 86_400_000, 1),
            (100_000, 100, 1, 1_000),
            (3, 1_000, 334, 1),
            (3, 1_000, 333, 0),
            (10, 1_000, -5_000, 0),
        ] {
            let rule = rule(requests, per_ms);
            let bucket = rule.refilled(empty(rule), at(elapsed));
            assert_eq!(rule.tokens(bucket), tokens, "{requests} in {per_ms} ms");
        }
        let rule = rule(50, 1_000);
        assert_eq!(rule.tokens(rule.refilled(rule.full(), at(0))), 50);
    }

    #[test]
    fn a_bucket_says_when_taking_from_it_is_worth_it() {
        for (requests, per_ms, wait) in [
            (1, 1_000, 1_000),
            (3, 1_000, 334),
            (50, 1_000, 20),
            // In lots of what 20 ms bring.
            (1_000, 1_000, 20),
            (100_000, 100, 20),
            (1, 86_400_000, 86_400_000),
        ] {
            let rule = rule(requests, per_ms);
            let bucket = empty(rule);
            assert_eq!(rule.ready_at(bucket), at(wait), "{requests} in {per_ms} ms");
            let ready = rule.refilled(bucket, at(wait));
            assert_eq!(rule.ready_at(ready), at(wait), "it is ready then");
            assert!(rule.tokens(ready) >= 1);
        }
    }

    #[test]
    fn who_takes_each_token_a_little_late_keeps_the_rate() {
        let rule = rule(1, 1_000);
        let mut bucket = rule.refilled(rule.full(), at(0));
        let (mut now, mut taken) = (0, 0);
        while now < 100_000 {
            bucket = rule.without(rule.refilled(bucket, at(now)), 1);
            taken += 1;
            let ready = rule.ready_at(bucket) - at(0);
            now = ready.num_milliseconds() + 15;
        }
        assert!((100..=101).contains(&taken), "{taken}");
    }

    #[test]
    fn another_rule_takes_the_tokens_over_as_far_as_it_has_room() {
        let (slow, fast) = (rule(10, 1_000), rule(100, 60_000));
        let half = slow.without(slow.refilled(slow.full(), at(0)), 5);
        assert_eq!(fast.tokens(fast.instead_of(slow, half)), 5);
        let full = fast.refilled(fast.full(), at(0));
        assert_eq!(slow.tokens(slow.instead_of(fast, full)), 10);
    }

    #[test]
    fn a_rule_has_bounds() {
        assert_eq!(rule(0, 0), rule(1, 100));
        assert_eq!(rule(u32::MAX, u64::MAX), rule(100_000, 86_400_000));
    }

    proptest! {
        /// However tokens are taken, given back not, and the clock runs: within any time no more are
        /// taken than the rule says.
        #[test]
        fn no_more_is_taken_than_the_rule_allows(
            requests in 1_u32..2_000,
            per_ms in 100_u64..100_000,
            steps in prop::collection::vec((-50_i64..5_000, 0_u32..3_000), 1..60),
        ) {
            let rule = rule(requests, per_ms);
            let mut bucket = rule.full();
            let (mut now, mut latest) = (0, i64::MIN);
            let mut taken: Vec<(i64, u32)> = Vec::new();
            for (elapsed, wanted) in steps {
                now += elapsed;
                latest = now.max(latest);
                bucket = rule.refilled(bucket, at(now));
                let some = wanted.min(rule.tokens(bucket));
                bucket = rule.without(bucket, some);
                taken.push((latest, some));
            }
            for (index, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0_i64;
                for (until, some) in &taken[index..] {
                    sum += i64::from(*some);
                    let per = i64::try_from(per_ms).unwrap();
                    let allowed = i64::from(requests) * (per + until - from) + per / 50;
                    prop_assert!(sum * per <= allowed, "{sum} from {from} until {until}");
                }
            }
        }

        /// What is given back within half a second shifts requests by no more than that.
        #[test]
        fn what_is_given_back_lets_no_more_go_than_came_while_it_was_held(
            requests in 1_u32..200,
            per_ms in 100_u64..5_000,
            steps in prop::collection::vec((0_i64..500, 0_u32..300, 0_u32..300), 1..60),
        ) {
            const HELD: i64 = 500;
            let rule = rule(requests, per_ms);
            let per = i64::try_from(per_ms).unwrap();
            let mut bucket = rule.full();
            let mut now = 0;
            // Held since when, and how many.
            let mut held: Vec<(i64, u32)> = Vec::new();
            let mut used: Vec<(i64, u32)> = Vec::new();
            for (elapsed, wanted, unused) in steps {
                now += elapsed;
                let (over, still): (Vec<_>, Vec<_>) =
                    held.into_iter().partition(|(since, _)| now - since >= HELD / 2);
                held = still;
                for (since, tokens) in over {
                    prop_assert!(now - since <= HELD * 2);
                    bucket.level += per * i64::from(tokens);
                }
                bucket = rule.refilled(bucket, at(now));
                prop_assert!(rule.tokens(bucket) <= requests);
                let some = wanted.min(rule.tokens(bucket));
                bucket = rule.without(bucket, some);
                held.push((now, unused.min(some)));
                used.push((now, some - unused.min(some)));
            }
            for (index, (from, _)) in used.iter().enumerate() {
                let mut sum = 0_i64;
                for (until, some) in &used[index..] {
                    sum += i64::from(*some);
                    let allowed = i64::from(requests) * (per + until - from + 2 * HELD) + per / 50;
                    prop_assert!(sum * per <= allowed, "{sum} from {from} until {until}");
                }
            }
        }

        /// Whole tokens stay, as far as there is room for them.
        #[test]
        fn another_rule_keeps_the_tokens(
            former in (1_u32..100_000, 100_u64..86_400_000),
            next in (1_u32..100_000, 100_u64..86_400_000),
            taken in 0_u32..100_000,
            elapsed in 0_i64..1_000_000,
        ) {
            let (former, next) = (rule(former.0, former.1), rule(next.0, next.1));
            let full = former.refilled(former.full(), at(0));
            let bucket = former.refilled(former.without(full, taken), at(elapsed));
            let kept = next.instead_of(former, bucket);
            prop_assert_eq!(next.tokens(kept), former.tokens(bucket).min(next.requests()));
            prop_assert_eq!(kept.refilled_at, bucket.refilled_at);
        }
    }
}
