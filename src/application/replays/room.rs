//! How much a replay may do now, so that live traffic does not notice.

use std::time::Duration;

use crate::{
    application::registry::CompiledWebhook,
    domain::interfaces::{ReplayLanes, StoreError},
};

use super::{LONG_REST, POLL_EVERY, Pace, REST, Replays};

/// Deliveries of a webhook that may be due, before a replay adds to them.
const MAX_WAITING: u32 = 1_000;
/// Lanes of a replay that may have something due, before it adds to them.
const MAX_LANES_DUE: u32 = 32;
/// Deliveries that a replay hands over at a time where each takes a token.
const WITH_TOKENS: usize = 2;
/// Deliveries that a replay puts together in a batch.
const MAX_BATCH: usize = 256;
/// How long it rests where somebody waits for a token.
const TOKEN_REST: Duration = Duration::from_millis(50);

/// What may be done for a replay.
pub(super) enum Room {
    /// Nothing for so long.
    None(Duration),
    /// A page of so many deliveries, which this worker makes the attempts of at once, under leases.
    Page(usize),
    /// So many, for those to make who make such attempts otherwise; and nothing more for so long.
    HandOver(usize, Duration),
}

impl Replays {
    /// What may be done for the replay now. What is not due, or waits behind what is not, is in nobody's
    /// way; it may wait for this very replay.
    pub(super) async fn room(
        &self,
        webhook: &CompiledWebhook,
        pace: Pace,
    ) -> Result<Room, StoreError> {
        if webhook.endpoint.is_err() {
            return Ok(Room::None(LONG_REST));
        }
        let now = self.clock.store_now();
        let due = async |limit| self.store.due_of(webhook.id, now, limit).await;
        if self.attempts.breakers().open_until(webhook.id).is_some() {
            // What is due is what the endpoint is tried with; where there is nothing, nobody would.
            return Ok(match due(1).await? {
                0 => Room::HandOver(1, POLL_EVERY),
                _ => Room::None(POLL_EVERY),
            });
        }
        if !self.attempts.deliverer().has_room_to_spare(webhook.id) {
            return Ok(Room::None(REST));
        }
        if webhook.is_rate_limited && due(1).await? > 0 {
            return Ok(Room::None(TOKEN_REST));
        }
        if let Some(rule) = &webhook.batch {
            let size = usize::try_from(rule.max_events).unwrap_or(MAX_BATCH);
            return Ok(if due(rule.max_events).await? < rule.max_events {
                Room::HandOver(size.min(MAX_BATCH), Duration::ZERO)
            } else {
                Room::None(REST)
            });
        }
        if webhook.is_rate_limited {
            return Ok(Room::HandOver(WITH_TOKENS, Duration::ZERO));
        }
        if webhook.ordering.is_some() {
            let lanes = self.store.replay_lanes(webhook.id, now, MAX_WAITING);
            let ReplayLanes { waiting, due } = lanes.await?;
            return Ok(if waiting < MAX_WAITING && due < MAX_LANES_DUE {
                Room::HandOver(Pace::ALONE.page, Duration::ZERO)
            } else {
                Room::None(REST)
            });
        }
        Ok(if due(MAX_WAITING).await? < MAX_WAITING {
            Room::Page(pace.page)
        } else {
            Room::None(REST)
        })
    }
}
