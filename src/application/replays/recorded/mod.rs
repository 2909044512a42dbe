//! The next page of what was recorded.

use std::ops::Range;

use futures_util::{StreamExt as _, stream};

use crate::domain::{
    entities::{Batching, Delivery, DeliveryStatus, Replay, ReplayCursor},
    interfaces::{Candidate, Reopened, ReplayPage, StoredEvent},
    values::BatchId,
};

use super::{MAX_PAGE_BYTES, Next, ReplayError, Replays};
use crate::application::{ports::BusError, registry::CompiledWebhook};

impl Replays {
    /// The next deliveries after the replay's cursor, with their events: those that are kept with them,
    /// else from the source stream, so many at a time. What waits anyway, and what has no event any more, is left alone.
    pub(super) async fn next_recorded(
        &self,
        replay: &Replay,
        webhook: &CompiledWebhook,
        (size, at_once): (usize, usize),
    ) -> Result<Next, ReplayError> {
        // Before the candidates: what is recorded by the time they are read may not be settled yet.
        let floor = self.history.floor.floor().await?;
        let mut found = self.store.replay_candidates(replay, size).await?;
        let Some(cursor) = found.cursor else {
            return Ok(Next::End);
        };
        let count = found.items.len();
        let last = self.last_sequence(&found.items, floor).await?;
        let Some(cursor) = cut(&mut found.items, cursor, floor..last) else {
            return Ok(Next::Later);
        };
        if found.items.len() < count {
            // They come again with the rest.
            found.broken = 0;
        }
        // Of its own: what is live waits for no more than it would.
        let batch = { webhook.batch.as_ref() }.map(|_| BatchId(self.clock.new_id()));
        let mut reopened = Vec::with_capacity(found.items.len());
        let mut skipped = found.broken;
        let mut cursor = cursor;
        let limit = { webhook.batch.as_ref() }.map_or(MAX_PAGE_BYTES, |rule| {
            usize::try_from(rule.max_bytes).unwrap_or(MAX_PAGE_BYTES)
        });
        let mut bytes = 0_usize;
        let places: Vec<ReplayCursor> =
            { found.items.iter() }.map(|c| place(&c.delivery)).collect();
        let mut before = None;
        let statuses = &replay.selection.statuses;
        let read =
            stream::iter(found.items).map(|candidate| self.with_event(candidate, statuses, batch));
        let mut read = read.buffered(at_once);
        for place in places {
            let Some(one) = read.next().await else { break };
            let one = one?;
            bytes += one.as_ref().map_or(0, |one| one.event.raw.len());
            // The first one is taken however large it is.
            if let Some(before) = before.filter(|_| bytes > limit) {
                cursor = before;
                break;
            }
            before = Some(place);
            match one {
                Some(one) => reopened.push(one),
                None => skipped += 1,
            }
        }
        Ok(Next::Page(ReplayPage {
            reopened,
            first: Vec::new(),
            skipped,
            cursor,
            lease_until: None,
        }))
    }

    /// The last sequence of the source stream, where it matters: a stream that was made anew never settles
    /// what came from the former one, and has no more to do with it.
    async fn last_sequence(&self, items: &[Candidate], floor: i64) -> Result<i64, BusError> {
        if !items
            .iter()
            .any(|one| one.delivery.source_sequence > Some(floor))
        {
            return Ok(floor);
        }
        let bounds = self.history.archive.bounds().await?;
        let last = bounds.map_or(0, |bounds| bounds.last.sequence);
        Ok(i64::try_from(last).unwrap_or(i64::MAX))
    }

    async fn with_event(
        &self,
        candidate: Candidate,
        statuses: &[DeliveryStatus],
        batch: Option<BatchId>,
    ) -> Result<Option<Reopened>, BusError> {
        let Candidate {
            mut delivery,
            epoch,
            event,
        } = candidate;
        if !is_meant(delivery.status, statuses) {
            return Ok(None);
        }
        let event = match (event, delivery.source_sequence) {
            (Some(event), _) => Some(event),
            (None, Some(sequence)) => self.of_stream(sequence, &delivery.event_id).await?,
            (None, None) => None,
        };
        Ok(event.map(|event| {
            delivery.replay(self.clock.store_now());
            // As the webhook has it now, which may not be how it was recorded.
            delivery.batch = match batch {
                Some(id) if delivery.lane.is_none() => Batching::In(id),
                _ => Batching::Alone,
            };
            Reopened {
                delivery,
                epoch,
                event,
            }
        }))
    }

    /// The event at a place of the source stream, if it is the one that was there when it was recorded:
    /// a stream that was made anew has others at the same places.
    async fn of_stream(
        &self,
        sequence: i64,
        event_id: &str,
    ) -> Result<Option<StoredEvent>, BusError> {
        let Ok(sequence) = u64::try_from(sequence) else {
            return Ok(None);
        };
        let message = self.history.archive.message(sequence).await?;
        let event = message.and_then(|message| self.history.normaliser.event(&message).ok());
        let event = event.filter(|event| event.meta.id == event_id);
        Ok(event.map(|event| StoredEvent {
            meta: event.stored_meta(),
            raw: event.raw,
        }))
    }
}

/// Whether one is still to go out that is read in this state: it may have changed since it was looked for.
fn is_meant(status: DeliveryStatus, statuses: &[DeliveryStatus]) -> bool {
    status != DeliveryStatus::Pending && (statuses.is_empty() || statuses.contains(&status))
}

/// Leaves out the first candidate whose message is not settled, and all behind it, and answers how far
/// that goes; `None` where nothing is left. Not settled is what is above the start of `unsettled` and not
/// above its end. Whoever has such a message in hand may have recorded the delivery and not yet published
/// what came of it; it does that only while the delivery is as it was recorded.
fn cut(
    items: &mut Vec<Candidate>,
    cursor: ReplayCursor,
    unsettled: Range<i64>,
) -> Option<ReplayCursor> {
    let is_unsettled = |one: &Candidate| {
        let sequence = one.delivery.source_sequence;
        sequence.is_some_and(|at| at > unsettled.start && at <= unsettled.end)
    };
    let Some(first) = items.iter().position(is_unsettled) else {
        return Some(cursor);
    };
    items.truncate(first);
    items.last().map(|one| place(&one.delivery))
}

/// Its place among the candidates.
fn place(delivery: &Delivery) -> ReplayCursor {
    match delivery.lane_turn() {
        Some(turn) => ReplayCursor::Turn(turn, delivery.id),
        None => ReplayCursor::Delivery(delivery.created_at, delivery.id),
    }
}

#[cfg(test)]
mod tests;
