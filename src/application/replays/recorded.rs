//! The next page of what was recorded.

use futures_util::{StreamExt as _, stream};

use crate::domain::{
    entities::{Batching, DeliveryStatus, Replay},
    interfaces::{Candidate, Reopened, ReplayPage, StoredEvent},
};

use super::{Next, REPLAY_IN_FLIGHT, ReplayError, Replays};
use crate::application::{ports::BusError, registry::CompiledWebhook};

impl Replays {
    /// The next deliveries after the replay's cursor, with their events: those that are kept with them,
    /// else from the source stream. What waits anyway, and what has no event any more, is left alone.
    pub(super) async fn next_recorded(
        &self,
        replay: &Replay,
        webhook: &CompiledWebhook,
        size: usize,
    ) -> Result<Next, ReplayError> {
        let found = self.store.replay_candidates(replay, size).await?;
        let Some(cursor) = found.cursor else {
            return Ok(Next::End);
        };
        let mut reopened = Vec::with_capacity(found.items.len());
        let mut skipped = found.broken;
        let read = stream::iter(found.items).map(|candidate| self.with_event(candidate, webhook));
        let mut read = read.buffered(REPLAY_IN_FLIGHT);
        while let Some(one) = read.next().await {
            match one? {
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

    async fn with_event(
        &self,
        candidate: Candidate,
        webhook: &CompiledWebhook,
    ) -> Result<Option<Reopened>, BusError> {
        let Candidate {
            mut delivery,
            epoch,
            event,
        } = candidate;
        if delivery.status == DeliveryStatus::Pending {
            return Ok(None);
        }
        let event = match (event, delivery.source_sequence) {
            (Some(event), _) => Some(event),
            (None, Some(sequence)) => self.of_stream(sequence, &delivery.event_id).await?,
            (None, None) => None,
        };
        Ok(event.map(|event| {
            let now = self.clock.store_now();
            delivery.reopen(now);
            // As the webhook has it now, which may not be how it was recorded.
            let rule = webhook.batch.as_ref().filter(|_| delivery.lane.is_none());
            delivery.batch = rule.map_or(Batching::Alone, |_| Batching::Waits);
            delivery.next_attempt_at = Some(rule.map_or(now, |rule| now + rule.max_wait));
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
