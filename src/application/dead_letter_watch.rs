//! Nothing in the dead letters expires unseen: how many there are and how old, and once a day an event
//! and a warning about those that are near their end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::NaiveDate;
use metrics::{counter, gauge};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{
        events::{Context, DomainEvent},
        interfaces::{Store, StoreError},
        values::{TenantId, Timestamp, format_time},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{DEAD_LETTERS_KEPT, DEAD_LETTERS_OLDEST, LOOP_FAULTS},
    },
};

use super::{
    dead_letter_box::{BoxState, DeadLetterBox},
    ports::{BusError, Clock},
    upkeep::{age, pause},
    wakers::Wakers,
};

/// How often the box is looked into.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long before its end a letter is told of.
pub const NOTICE: Duration = Duration::from_hours(7 * 24);
/// So many letters are counted at most.
const MAX_COUNTED: u64 = 10_000;

/// Watches over the box of dead letters.
pub struct DeadLetterWatch {
    /// The box.
    pub letters: Arc<dyn DeadLetterBox>,
    /// Where the events go, so that all workers together tell each once.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Wakes the relay.
    pub wakers: Arc<Wakers>,
    /// For letters that name no tenant.
    pub default_tenant: TenantId,
}

impl std::fmt::Debug for DeadLetterWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetterWatch").finish_non_exhaustive()
    }
}

/// The letters of a tenant that are near their end.
struct Expiring {
    count: u64,
    oldest: Timestamp,
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the dead letters cannot be read")]
    Bus(#[from] BusError),
    #[error("the event about expiring dead letters cannot be kept")]
    Store(#[from] StoreError),
}

impl DeadLetterWatch {
    /// Starts the loop.
    pub fn start(self, group: &Group) {
        group.spawn_loop("dead_letters", self.run(group.stopping()));
    }

    async fn run(self, stopping: CancellationToken) {
        let mut told = None;
        loop {
            match stopping.run_until_cancelled(self.look(&mut told)).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    counter!(LOOP_FAULTS, "loop" => "dead_letters").increment(1);
                    tracing::warn!(error = %Chain(&error), "the dead letters could not be watched");
                }
            }
            if !pause(&stopping, LOOK_EVERY).await {
                return;
            }
        }
    }

    /// `told` is the day whose letters are told of already.
    async fn look(&self, told: &mut Option<NaiveDate>) -> Result<(), WatchError> {
        let state = self.letters.state().await?;
        let now = self.clock.now();
        gauge!(DEAD_LETTERS_KEPT).set(f64::from(u32::try_from(state.count).unwrap_or(u32::MAX)));
        gauge!(DEAD_LETTERS_OLDEST).set(age(state.oldest, now));
        let today = now.date_naive();
        let Some(end) = near_end(&state, now).filter(|_| *told != Some(today)) else {
            return Ok(());
        };
        let expiring = self.expiring(end).await?;
        if !expiring.is_empty() {
            self.tell(&expiring, now).await?;
            *told = Some(today);
        }
        Ok(())
    }

    /// What was added before `end`, by tenant.
    async fn expiring(&self, end: Timestamp) -> Result<BTreeMap<String, Expiring>, BusError> {
        let mut found: BTreeMap<String, Expiring> = BTreeMap::new();
        let (mut from, mut counted) = (Some(0), 0);
        while let Some(at) = from.filter(|_| counted < MAX_COUNTED) {
            let slice = self.letters.oldest(at).await?;
            for letter in &slice.letters {
                if letter.added_at >= end {
                    return Ok(found);
                }
                counted += 1;
                let tenant = letter
                    .tenant
                    .clone()
                    .and_then(|name| TenantId::try_new(&name).ok())
                    .unwrap_or_else(|| self.default_tenant.clone());
                let of_tenant = found.entry(tenant.to_string()).or_insert(Expiring {
                    count: 0,
                    oldest: letter.added_at,
                });
                of_tenant.count += 1;
            }
            from = slice.next;
        }
        Ok(found)
    }

    async fn tell(
        &self,
        expiring: &BTreeMap<String, Expiring>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let events: Vec<DomainEvent> = expiring
            .iter()
            .filter_map(|(tenant, letters)| expiring_event(tenant, letters, now))
            .collect();
        let mut unit = self.store.begin().await?;
        unit.add_events(&events).await?;
        unit.commit().await?;
        self.wakers.outbox.notify_one();
        let count: u64 = expiring.values().map(|letters| letters.count).sum();
        let oldest = expiring.values().map(|letters| letters.oldest).min();
        tracing::warn!(
            count,
            oldest = oldest.map(format_time),
            "dead letters expire within 7 days: replay or discard them"
        );
        Ok(())
    }
}

/// Before when a letter must have been added to be near its end, where the oldest one is.
fn near_end(state: &BoxState, now: Timestamp) -> Option<Timestamp> {
    let end =
        (now + NOTICE).checked_sub_signed(chrono::TimeDelta::from_std(state.max_age?).ok()?)?;
    (state.oldest? < end).then_some(end)
}

/// One for each day and tenant, whichever worker tells it.
fn expiring_event(tenant: &str, letters: &Expiring, now: Timestamp) -> Option<DomainEvent> {
    let name = format!("deadletter.expiring:{tenant}:{}", now.date_naive());
    let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes());
    Some(DomainEvent {
        response: None,
        id,
        event_type: "deadletter.expiring".to_owned(),
        subject: id.to_string(),
        time: now,
        aggregate_version: 1,
        context: Context {
            tenant: TenantId::try_new(tenant).ok()?,
            actor: "system".to_owned(),
            correlation_id: id.to_string(),
            causation_id: id.to_string(),
            trace: None,
        },
        data: json!({ "count": letters.count, "oldest": format_time(letters.oldest) }),
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn letters_are_near_their_end_for_seven_days() {
        let now = DateTime::from_timestamp_millis(1_790_230_470_084).unwrap();
        let state = |days: u32, max_age| BoxState {
            count: 1,
            oldest: Some(now - days * DAY),
            max_age,
        };
        for (days, max_age, expected) in [
            (89, Some(90 * DAY), true),
            (84, Some(90 * DAY), true),
            (83, Some(90 * DAY), false),
            (0, Some(90 * DAY), false),
            (0, Some(6 * DAY), true),
            (3000, None, false),
            (0, Some(Duration::MAX), false),
        ] {
            let near = near_end(&state(days, max_age), now).is_some();
            assert_eq!(near, expected, "{days} days of {max_age:?}");
        }
        assert_eq!(near_end(&BoxState::default(), now), None);
    }

    #[test]
    fn the_event_is_one_for_each_day_and_tenant() {
        let now = DateTime::from_timestamp_millis(1_790_230_470_084).unwrap();
        let letters = Expiring {
            count: 2,
            oldest: now - 85 * DAY,
        };
        let id = |tenant, now| expiring_event(tenant, &letters, now).unwrap().id;
        assert_eq!(id("a", now), id("a", now + Duration::from_secs(1)));
        assert_ne!(id("a", now), id("b", now));
        assert_ne!(id("a", now), id("a", now + DAY));
    }
}
