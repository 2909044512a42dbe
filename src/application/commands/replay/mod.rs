//! `replay` and `backfill` of a webhook, their end by a user, and what is shown of them.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    application::{
        event_archive::{ArchiveLimit, ArchivePlace, ArchiveStart},
        event_view::EventView,
        ports::{Expression, Scope},
    },
    domain::{
        entities::{
            DeliveryStatus, InvalidTransition, Replay, ReplayKind, ReplaySelection, Webhook,
        },
        events::BusinessEvent,
        values::{DeliveryId, EventPattern, ReplayId, TenantId, Timestamp, WebhookId},
    },
    shared::error_chain::Chain,
};
use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{
    Ports,
    body::Body,
    command::Command,
    explain::MAX_SEARCHES,
    fields::Fields,
    list,
    reply::{ErrorCode, Refusal},
    trigger::may_receive,
    views, webhook,
    work::{CommandError, Outcome, Work, checked, not_found},
};

/// Recorded deliveries that are counted at most, where only the count is asked for.
const MAX_COUNTED: i64 = 1_000_000;
/// The same before a replay begins.
const FEW_COUNTED: i64 = 10_000;
/// Messages of the source stream that are looked at to count, at most.
const MAX_LOOKED_AT: usize = 200_000;
/// How long they are looked at, where only the count is asked for.
const LONGEST_COUNT: Duration = Duration::from_secs(5);
/// The same before a backfill or a replay begins.
const SHORT_COUNT: Duration = Duration::from_secs(1);
/// The states of deliveries that can be sent again; what is pending is sent anyway.
const STATUSES: [DeliveryStatus; 3] = [
    DeliveryStatus::Delivered,
    DeliveryStatus::Exhausted,
    DeliveryStatus::Cancelled,
];

/// What is asked for.
struct Asked {
    selection: ReplaySelection,
    /// Whether it is about all that there is by now.
    is_open: bool,
    dry_run: bool,
}

impl Asked {
    /// Where a backfill ends: behind the last message of the source stream, by the clock that dates its
    /// messages, unless it is to end earlier.
    fn end(&self, last: Option<ArchivePlace>) -> Timestamp {
        match last {
            Some(last) if self.is_open => last.published_at + TimeDelta::milliseconds(1),
            _ => self.selection.until,
        }
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    /// Deliveries that would go out.
    count: i64,
    /// Those, and what is left alone.
    total: i64,
    /// Whether everything was counted.
    is_complete: bool,
    /// Where a backfill ends.
    end: Option<Timestamp>,
}

impl Counted {
    /// Nothing, as far as it was counted.
    const NOTHING: Self = Self {
        count: 0,
        total: 0,
        is_complete: false,
        end: None,
    };
}

/// Counts what the command asks for, before its unit of work; `None` where there is no such webhook, or
/// the command is faulty.
pub(super) async fn count(
    ports: &Ports,
    command: &Command,
    body: &Body,
) -> Result<Option<Counted>, CommandError> {
    let kind = kind(command);
    let tenant = &command.context.tenant;
    let Ok(mut asked) = read(kind, body.clone(), tenant, ports.clock.now()) else {
        return Ok(None);
    };
    let id = asked.selection.webhook_id;
    let Some(webhook) = ports.store.get_webhook(tenant, id).await? else {
        return Ok(None);
    };
    if let (ReplayKind::Backfill, Some(history)) = (kind, &ports.history) {
        match history.archive.bounds().await {
            Ok(bounds) => asked.selection.until = asked.end(bounds.map(|bounds| bounds.last)),
            // The worker's clock will do.
            Err(error) => tracing::debug!(error = %Chain(&error), "the stream's end is not known"),
        }
    }
    if asked.dry_run {
        let _permit = ports.searches.try_acquire().map_err(|_| busy())?;
        return match kind {
            ReplayKind::Replay => count_recorded(ports, &asked.selection, MAX_COUNTED).await,
            ReplayKind::Backfill => count_of_stream(ports, &webhook, &asked).await,
        }
        .map(Some);
    }
    let counted = count_shortly(ports, kind, &webhook, &asked).await;
    let end = (kind == ReplayKind::Backfill).then_some(asked.selection.until);
    Ok(Some(Counted { end, ..counted }))
}

/// What a replay that begins is told to have before it: as much as can be counted in a short time. That
/// it cannot be counted keeps none from beginning.
async fn count_shortly(
    ports: &Ports,
    kind: ReplayKind,
    webhook: &Webhook,
    asked: &Asked,
) -> Counted {
    let Ok(_permit) = ports.searches.try_acquire() else {
        return Counted::NOTHING;
    };
    let counting = async {
        match kind {
            ReplayKind::Replay => count_recorded(ports, &asked.selection, FEW_COUNTED).await,
            ReplayKind::Backfill => count_of_stream(ports, webhook, asked).await,
        }
    };
    match tokio::time::timeout(SHORT_COUNT * 2, counting).await {
        Ok(Ok(counted)) => counted,
        Ok(Err(error)) => {
            tracing::debug!(error = %Chain(&error), "what a replay has before it is not counted");
            Counted::NOTHING
        }
        Err(_) => Counted::NOTHING,
    }
}

/// `replay {id, since, until?, statuses?, eventTypes?, dryRun?}` and
/// `backfill {id, since, until?, dryRun?}`; a dry run counts and leaves nothing behind.
pub(super) async fn begin(work: &mut Work<'_>, body: Body) -> Outcome {
    let kind = kind(work.command);
    let tenant = work.command.context.tenant.clone();
    let Asked {
        mut selection,
        dry_run,
        ..
    } = read(kind, body, &tenant, work.now)?;
    let id = selection.webhook_id;
    let webhook = webhook::locked(work, id.0, None).await?;
    // It was made after it was looked for.
    let counted = work.known.counted;
    let counted = counted.ok_or_else(|| not_found("webhook", "id", id))?;
    selection.until = counted.end.unwrap_or(selection.until);
    let mut view = json!({ "count": counted.count, "isComplete": counted.is_complete });
    if dry_run {
        return Ok(view);
    }
    may_receive(&webhook, work.known.integration.as_ref())?;
    if work.unit.running_replays(&tenant).await? >= Replay::MAX_RUNNING {
        let message = format!(
            "{} replays of the tenant are running already; wait for the end of one, or cancel it",
            Replay::MAX_RUNNING
        );
        return Err(Refusal::new(ErrorCode::Conflict, message).into());
    }
    let (replay, event) = Replay::start(
        ReplayId(work.ports.clock.new_id()),
        kind,
        selection,
        counted.is_complete.then_some(counted.total),
        work.command.context.for_events(),
        work.now,
    );
    if !work.unit.insert_replay(&replay).await? {
        return Err(InvalidTransition {
            entity: "webhook",
            state: "being replayed",
            remedy: "wait for the end of its replay, or cancel it (cancel_replay)",
        }
        .into());
    }
    work.effects.events.push(event);
    work.effects.replays = true;
    work.audit(id.to_string());
    view["replayId"] = replay.id.to_string().into();
    Ok(view)
}

/// `cancel_replay {id, replayId}`: it ends after the page in hand.
pub(super) async fn cancel(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id", "replayId"]);
    let ids = fields.uuid("id").zip(fields.uuid("replayId"));
    let (webhook, id) = checked(fields, ids)?;
    let context = &work.command.context;
    let found = work
        .unit
        .replay(&context.tenant, WebhookId(webhook), ReplayId(id));
    let found = found.await?;
    let mut replay = found.ok_or_else(|| not_found("replay of the webhook", "replayId", id))?;
    if let Some(event) = replay.cancel(context.for_events(), work.now)? {
        work.unit.update_replay(&replay).await?;
        work.effects.events.push(event);
        work.audit(webhook.to_string());
    }
    Ok(views::replay(&replay))
}

/// `replays {id, limit?, cursor?}`: those of a webhook, newest first.
pub(super) async fn list(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let page = list::page(&mut fields);
    let (id, page) = checked(fields, id.zip(page))?;
    let webhook = ports.store.get_webhook(tenant, WebhookId(id)).await?;
    let webhook = webhook.ok_or_else(|| not_found("webhook", "id", id))?;
    let found = ports.store.list_replays(tenant, webhook.id, &page).await?;
    Ok(list::answer(&found, views::replay, |one| {
        (one.created_at, one.id.0)
    }))
}

fn kind(command: &Command) -> ReplayKind {
    match command.action {
        "backfill" => ReplayKind::Backfill,
        _ => ReplayKind::Replay,
    }
}

fn read(
    kind: ReplayKind,
    body: Body,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<Asked, CommandError> {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id", "since"]);
    let id = fields.uuid("id");
    let since = fields.time("since");
    let until = fields.time("until");
    if since.is_some_and(|since| since > now) {
        fields.fault("since", "must not be in the future");
    }
    if until.zip(since).is_some_and(|(until, since)| until < since) {
        fields.fault("until", "must not be before since");
    }
    let (mut statuses, mut event_types) = (Vec::new(), Vec::new());
    if kind == ReplayKind::Replay {
        statuses = self::statuses(&mut fields);
        event_types = self::event_types(&mut fields);
    }
    let dry_run = fields.boolean("dryRun").unwrap_or(false);
    let (id, since) = checked(fields, id.zip(since))?;
    let selection = ReplaySelection {
        tenant: tenant.clone(),
        webhook_id: WebhookId(id),
        since,
        // What comes later is live traffic.
        until: until.map_or(now, |until| until.min(now)),
        statuses,
        event_types,
    };
    Ok(Asked {
        selection,
        is_open: until.is_none_or(|until| until >= now),
        dry_run,
    })
}

fn statuses(fields: &mut Fields) -> Vec<DeliveryStatus> {
    let read = |text: &str| STATUSES.into_iter().find(|status| status.as_str() == text);
    let names = STATUSES.map(DeliveryStatus::as_str).join(", ");
    let problem = |text: &str| match read(text) {
        Some(_) => None,
        None => Some(format!("must be one of: {names}")),
    };
    let texts = fields.texts("statuses", 1..=STATUSES.len(), problem);
    let texts = texts.unwrap_or_default();
    texts.iter().filter_map(|text| read(text)).collect()
}

fn event_types(fields: &mut Fields) -> Vec<EventPattern> {
    let problem = |text: &str| EventPattern::try_new(text).err().map(|e| e.to_string());
    let count = 1..=ReplaySelection::MAX_EVENT_TYPES;
    let texts = fields.texts("eventTypes", count, problem);
    let texts = texts.unwrap_or_default();
    let patterns = texts.iter().map(|text| EventPattern::try_new(text));
    patterns.filter_map(Result::ok).collect()
}

async fn count_recorded(
    ports: &Ports,
    selection: &ReplaySelection,
    limit: i64,
) -> Result<Counted, CommandError> {
    let counts = ports.store.count_recorded(selection, limit).await?;
    let all: i64 = counts.iter().map(|one| one.count).sum();
    let wanted = counts.iter().filter(|one| selection.wants(&one.event_type));
    let (pending, to_send): (Vec<_>, Vec<_>) = wanted.partition(|one| one.is_pending);
    let count = to_send.iter().map(|one| one.count).sum();
    Ok(Counted {
        count,
        total: count + pending.iter().map(|one| one.count).sum::<i64>(),
        is_complete: all < limit,
        end: None,
    })
}

/// The webhook as far as it decides what it takes.
struct Wanted<'a> {
    webhook: &'a Webhook,
    filter: Option<Arc<dyn Expression>>,
}

impl Wanted<'_> {
    /// A filter that cannot be evaluated keeps nothing out: the delivery is recorded as exhausted.
    fn has(&self, event: &BusinessEvent) -> bool {
        event.meta.tenant == self.webhook.meta.tenant
            && !event.meta.is_made_by(self.webhook.id)
            && { self.webhook.events.iter() }.any(|p| p.matches(&event.meta.event_type))
            && { self.filter.iter() }.all(|f| f.is_true(&EventView::new(event)) != Ok(false))
    }
}

/// Reads the source stream, as far as the time for it goes.
async fn count_of_stream(
    ports: &Ports,
    webhook: &Webhook,
    asked: &Asked,
) -> Result<Counted, CommandError> {
    let Asked {
        selection, dry_run, ..
    } = asked;
    let history = ports.history.as_ref().ok_or_else(no_history)?;
    let text = webhook.config.shown.get("filter").and_then(Value::as_str);
    let filter = text.map(|text| ports.settings.expressions.compile(text, Scope::Event));
    let wanted = Wanted {
        webhook,
        filter: filter.and_then(Result::ok),
    };
    let patience = if *dry_run { LONGEST_COUNT } else { SHORT_COUNT };
    let (began, mut looked_at) = (Instant::now(), 0);
    let mut from = ArchiveStart::Time(selection.since);
    let mut count = 0;
    let mut is_complete = false;
    while !is_complete && looked_at < MAX_LOOKED_AT && began.elapsed() < patience {
        let page = history.archive.page(from, ArchiveLimit::default()).await?;
        let within = { page.messages.iter() }.take_while(|m| m.published_at < selection.until);
        let within: Vec<_> = within.collect();
        is_complete = page.is_end || within.len() < page.messages.len();
        looked_at += within.len();
        let events = { within.iter() }.filter_map(|m| history.normaliser.event(m).ok());
        let tenant = &selection.tenant;
        let ids: HashSet<DeliveryId> = events
            .filter(|event| wanted.has(event))
            .map(|event| DeliveryId::derive(webhook.id, tenant, &event.meta.id))
            .collect();
        let ids: Vec<DeliveryId> = ids.into_iter().collect();
        let recorded = ports.store.recorded(&ids).await?;
        count += i64::try_from(ids.len() - recorded.len()).unwrap_or_default();
        from = ArchiveStart::Sequence(page.next);
    }
    Ok(Counted {
        count,
        total: count,
        is_complete,
        end: None,
    })
}

fn no_history() -> Refusal {
    Refusal::new(ErrorCode::Internal, "the source stream cannot be read here")
}

fn busy() -> Refusal {
    let message = format!("{MAX_SEARCHES} searches are under way already; try again in a while");
    Refusal::new(ErrorCode::Unavailable, message)
}

#[cfg(test)]
mod tests;
