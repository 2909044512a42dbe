//! The tokens that a claim may take: what both stores do with the rate limits that they have locked.

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;

use crate::domain::{
    policies::{Bucket, RateLimit},
    values::Timestamp,
};

/// A rate limit as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) webhook: Uuid,
    pub(super) rule: RateLimit,
    pub(super) bucket: Bucket,
}

/// The rate limits of some webhooks, refilled.
#[derive(Debug, Default)]
pub(super) struct Buckets(HashMap<Uuid, (Limit, u32)>);

/// A rule as it is stored.
pub(super) fn rule(requests: i64, per_ms: i64) -> RateLimit {
    RateLimit::new(
        u32::try_from(requests.max(0)).unwrap_or(u32::MAX),
        Duration::from_millis(u64::try_from(per_ms).unwrap_or(0)),
    )
}

impl Buckets {
    /// Refills them up to `now`.
    pub(super) fn new(limits: impl IntoIterator<Item = Limit>, now: Timestamp) -> Self {
        let refilled = limits.into_iter().map(|limit| {
            let bucket = limit.rule.refilled(limit.bucket, now);
            (limit.webhook, (Limit { bucket, ..limit }, 0))
        });
        Self(refilled.collect())
    }

    /// The tokens of a webhook that are not taken; `None` where it is not among these.
    pub(super) fn tokens(&self, webhook: Uuid) -> Option<u32> {
        let (limit, taken) = self.0.get(&webhook)?;
        Some(limit.rule.tokens(limit.bucket).saturating_sub(*taken))
    }

    /// Takes a token of a webhook, if it is among these and has one; whether it may go on.
    pub(super) fn take(&mut self, webhook: Uuid) -> bool {
        if self.tokens(webhook) == Some(0) {
            return false;
        }
        if let Some((_, taken)) = self.0.get_mut(&webhook) {
            *taken += 1;
        }
        true
    }

    /// Those of which tokens were taken, without these.
    pub(super) fn into_spent(self) -> Vec<Limit> {
        let spent = self.0.into_values().filter(|(_, taken)| *taken > 0);
        spent
            .map(|(limit, taken)| Limit {
                bucket: limit.rule.without(limit.bucket, taken),
                ..limit
            })
            .collect()
    }
}
