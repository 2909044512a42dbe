//! The next page of the source stream.

use std::collections::{HashMap, HashSet};

use crate::{
    application::{
        event_archive::{ArchiveLimit, ArchiveStart},
        filters::{Match, match_one},
        first_attempt::FirstAttempt,
        registry::Snapshot,
    },
    domain::{
        entities::{Replay, ReplayCursor},
        events::BusinessEvent,
        interfaces::{FirstRecord, ReplayPage},
        values::{BatchId, DeliveryId, LaneKey},
    },
};

use super::{MAX_PAGE_BYTES, Next, ReplayError, Replays};

/// Messages that are looked at for each delivery of a page, and for one page.
const LOOK_AT_FOR_EACH: usize = 8;
const MAX_LOOKED_AT: usize = 256;

/// What a part of the source stream holds for a webhook.
struct Part {
    matches: Vec<(Match, BusinessEvent)>,
    /// The sequence after the last message that was looked at.
    next: Option<u64>,
    /// Whether everything else is outside of what the replay is about.
    is_last: bool,
}

impl Replays {
    /// The next events after the replay's cursor that match the webhook and were never recorded for it.
    ///
    /// No event is looked at before it is settled: whatever live intake made of it is recorded then, so
    /// that nothing goes out twice, and nothing is missed that intake took in before the webhook was
    /// made.
    pub(super) async fn next_of_stream(
        &self,
        replay: &Replay,
        snapshot: &Snapshot,
        size: usize,
    ) -> Result<Next, ReplayError> {
        let from = match replay.cursor {
            Some(ReplayCursor::Sequence(next)) => {
                ArchiveStart::Sequence(u64::try_from(next).unwrap_or(1))
            }
            _ => ArchiveStart::Time(replay.selection.since),
        };
        let floor = u64::try_from(self.history.floor.floor().await?).unwrap_or(0);
        let look_at = ArchiveLimit {
            messages: (size * LOOK_AT_FOR_EACH).min(MAX_LOOKED_AT),
            bytes: MAX_PAGE_BYTES,
        };
        let page = self.history.archive.page(from, look_at).await?;
        let mut part = Part {
            matches: Vec::new(),
            next: None,
            is_last: false,
        };
        let is_empty = page.messages.is_empty();
        let batch = { snapshot.webhook(replay.selection.webhook_id) }.and_then(|one| one.batch);
        let limit = batch.map_or(MAX_PAGE_BYTES, |rule| {
            usize::try_from(rule.max_bytes).unwrap_or(MAX_PAGE_BYTES)
        });
        let mut bytes = 0_usize;
        for message in &page.messages {
            if message.published_at >= replay.selection.until {
                part.is_last = true;
                break;
            }
            if message.sequence > floor {
                break;
            }
            let event = self.history.normaliser.event(message).ok();
            if let Some(event) = event.filter(|e| e.meta.tenant == replay.selection.tenant)
                && let Some(one) = match_one(snapshot, &event, replay.selection.webhook_id)
            {
                bytes += event.raw.len();
                if bytes > limit && !part.matches.is_empty() {
                    break;
                }
                part.matches.push((one, event));
            }
            part.next = Some(message.sequence.saturating_add(1));
            if part.matches.len() == size {
                break;
            }
        }
        let next = match part.next {
            Some(next) => next,
            None if part.is_last || page.is_end && is_empty => return Ok(Next::End),
            // A gap, or messages that can be no event.
            None if is_empty => page.next,
            None => return Ok(Next::Later),
        };
        Ok(Next::Page(ReplayPage {
            reopened: Vec::new(),
            first: self.unrecorded(part.matches).await?,
            skipped: 0,
            cursor: ReplayCursor::Sequence(i64::try_from(next).unwrap_or(i64::MAX)),
            lease_until: None,
        }))
    }

    /// Records for those that have none, each once.
    async fn unrecorded(
        &self,
        matches: Vec<(Match, BusinessEvent)>,
    ) -> Result<Vec<FirstRecord>, ReplayError> {
        let ids: HashSet<DeliveryId> = matches.iter().map(|(one, _)| one.id).collect();
        let ids: Vec<DeliveryId> = ids.into_iter().collect();
        let recorded = self.store.recorded(&ids).await?;
        let recorded: HashSet<DeliveryId> = recorded.iter().map(|(one, _)| one.id).collect();
        let batch = BatchId(self.clock.new_id());
        let mut records = HashMap::new();
        for (one, event) in &matches {
            if recorded.contains(&one.id) {
                continue;
            }
            let lane = one.lane.as_ref().map(LaneKey::of_replay);
            let attempt = FirstAttempt {
                id: one.id,
                webhook: &one.webhook,
                event,
                lane: lane.as_ref(),
                fault: one.fault.as_deref(),
            };
            let record = || attempt.unattempted(batch, self.clock.as_ref());
            records.entry(one.id).or_insert_with(record);
        }
        let mut records: Vec<FirstRecord> = records.into_values().collect();
        records.sort_by_key(|record| record.delivery.source_sequence);
        Ok(records)
    }
}
