//! Where an event is that a webhook has no delivery of.

use std::time::{Duration, Instant};

use crate::{
    application::{
        event_archive::{ArchiveLimit, ArchiveStart, EventArchive},
        ports::{BusError, SourceMessage},
    },
    domain::{
        entities::Delivery,
        events::BusinessEvent,
        interfaces::{EntityFilter, PageRequest, StoreError},
        values::{DeliveryId, Timestamp},
    },
};

use super::{
    super::{
        Ports,
        reply::{ErrorCode, Refusal},
        work::CommandError,
    },
    MAX_SEARCHES, Question, SourceHistory,
};

/// How many of the newest messages are looked at.
pub(super) const MAX_MESSAGES: u64 = 200_000;
/// How long they are looked at: the answer is waited for, 5 s by many clients.
pub(super) const MAX_TIME: Duration = Duration::from_secs(4);
/// Messages that are looked at in one go, from the newest backwards.
const WINDOW: u64 = 1_000;
/// Webhooks of the tenant that are asked for a delivery of the event, in lists of 100.
const MAX_LISTS: usize = 10;
const LIST: u32 = 100;

/// What was found.
pub(super) enum Found {
    /// The event, in the source stream.
    Event {
        event: Box<BusinessEvent>,
        published_at: Timestamp,
        sequence: u64,
    },
    /// Another webhook's delivery of it; the stream has it no more.
    Gone(Box<Delivery>),
    /// An event of another tenant.
    OtherTenant,
    /// Nothing.
    Nowhere(Looked),
}

/// How far was looked.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Looked {
    /// Messages.
    pub(super) messages: u64,
    /// When the oldest of them was published.
    pub(super) back_to: Option<Timestamp>,
    /// Whether that were all there are.
    pub(super) is_all: bool,
}

/// Looks for the event: at the place that a delivery to another webhook names, else in the stream.
pub(super) async fn find(
    ports: &Ports,
    history: &SourceHistory,
    question: &Question<'_>,
) -> Result<Found, CommandError> {
    if let Some(sibling) = sibling(ports, question).await? {
        let sequence = sibling.source_sequence.and_then(|n| u64::try_from(n).ok());
        let message = match sequence {
            Some(sequence) => history.archive.message(sequence).await?,
            None => None,
        };
        let event = message.and_then(|message| {
            let event = event_of(history, question, &message)?;
            Some((event, message)).filter(|(event, _)| event.meta.tenant == *question.tenant)
        });
        return Ok(match event {
            Some((event, message)) => found(event, &message),
            None => Found::Gone(Box::new(sibling)),
        });
    }
    let permit = ports.searches.try_acquire();
    let _permit = permit.map_err(|_| {
        let message =
            format!("{MAX_SEARCHES} searches are under way already; try again in a while");
        Refusal::new(ErrorCode::Unavailable, message)
    })?;
    Ok(scan(history, question).await?)
}

/// A delivery of the event to another webhook of the tenant. They are asked for by their ids, which are
/// derived: not every store finds deliveries by their events at once.
async fn sibling(ports: &Ports, question: &Question<'_>) -> Result<Option<Delivery>, StoreError> {
    let (tenant, filter) = (question.tenant, EntityFilter::default());
    let mut page = PageRequest {
        limit: LIST,
        after: None,
    };
    for _ in 0..MAX_LISTS {
        let webhooks = ports.store.list_webhooks(tenant, &filter, &page).await?;
        let ids: Vec<DeliveryId> = { webhooks.items.iter() }
            .map(|webhook| DeliveryId::derive(webhook.id, tenant, question.event_id))
            .collect();
        let recorded = ports.store.recorded(&ids).await?;
        let mut deliveries = recorded.into_iter().map(|(delivery, _)| delivery);
        if let Some(delivery) = deliveries.find(|delivery| delivery.source_sequence.is_some()) {
            return Ok(Some(delivery));
        }
        let last = webhooks.items.last().filter(|_| webhooks.more);
        let Some(last) = last else { break };
        page.after = Some((last.meta.created_at, last.id.0));
    }
    Ok(None)
}

/// From the newest message backwards.
async fn scan(history: &SourceHistory, question: &Question<'_>) -> Result<Found, BusError> {
    let started = Instant::now();
    let archive = history.archive.as_ref();
    let Some(bounds) = archive.bounds().await? else {
        return Ok(Found::Nowhere(Looked {
            is_all: true,
            ..Looked::default()
        }));
    };
    let first = bounds.first.sequence;
    let mut high = bounds.last.sequence;
    let mut looked = Looked::default();
    let mut is_of_other = false;
    while !looked.is_all && looked.messages < MAX_MESSAGES {
        let low = high.saturating_sub(WINDOW - 1).max(first);
        let mut from = low;
        let mut oldest = None;
        while from <= high {
            if started.elapsed() >= MAX_TIME {
                return Ok(not_found(is_of_other, looked));
            }
            let (messages, next) = messages(archive, from, high).await?;
            for message in &messages {
                oldest = oldest.or(Some(message.published_at));
                let Some(event) = event_of(history, question, message) else {
                    continue;
                };
                if event.meta.tenant == *question.tenant {
                    return Ok(found(event, message));
                }
                is_of_other = true;
            }
            looked.messages += messages.len() as u64;
            from = next;
        }
        looked.back_to = oldest.or(looked.back_to);
        looked.is_all = low <= first;
        high = low.saturating_sub(1);
    }
    Ok(not_found(is_of_other, looked))
}

fn not_found(is_of_other: bool, looked: Looked) -> Found {
    if is_of_other {
        Found::OtherTenant
    } else {
        Found::Nowhere(looked)
    }
}

/// Some messages from `from` on, none beyond `high`, and where to go on.
async fn messages(
    archive: &dyn EventArchive,
    from: u64,
    high: u64,
) -> Result<(Vec<SourceMessage>, u64), BusError> {
    let limit = ArchiveLimit {
        messages: usize::try_from(high - from + 1).unwrap_or(ArchiveLimit::MAX_MESSAGES),
        ..ArchiveLimit::default()
    };
    let page = archive.page(ArchiveStart::Sequence(from), limit).await?;
    let mut messages = page.messages;
    messages.retain(|message| message.sequence <= high);
    // A page that brings nothing must not be asked for again.
    let next = if page.is_end { high + 1 } else { page.next };
    Ok((messages, next.max(from + 1)))
}

/// The event of a message, if it has the id that is asked for.
fn event_of(
    history: &SourceHistory,
    question: &Question<'_>,
    message: &SourceMessage,
) -> Option<BusinessEvent> {
    let event = history.normaliser.event(message).ok()?;
    (event.meta.id == question.event_id).then_some(event)
}

fn found(event: BusinessEvent, message: &SourceMessage) -> Found {
    Found::Event {
        event: Box::new(event),
        published_at: message.published_at,
        sequence: message.sequence,
    }
}
