//! Whether a webhook, as it is, would take an event; and if so, why it has no delivery of it.

use std::time::Duration;

use crate::{
    application::{
        event_view::EventView,
        ports::{Expressions, Scope},
    },
    domain::{
        entities::{Delivery, WebhookStatus},
        events::BusinessEvent,
        values::{EventPattern, Timestamp, format_time},
    },
    shared::duration::format_duration,
};

use super::{
    Question, SourceHistory, Verdict, paths,
    search::{Looked, MAX_MESSAGES, MAX_TIME},
};

/// How much of a filter is shown, in characters.
const MAX_FILTER: usize = 512;

/// Why the webhook would not take the event, if it would not.
pub(super) fn refused(
    question: &Question<'_>,
    event: &BusinessEvent,
    expressions: &dyn Expressions,
) -> Option<Verdict> {
    pattern(question, &event.meta.event_type)
        .or_else(|| own_answer(question, event))
        .or_else(|| filter(question, event, expressions))
        .or_else(|| stopped(question))
}

fn pattern(question: &Question<'_>, event_type: &str) -> Option<Verdict> {
    let patterns = &question.webhook.events;
    if patterns.iter().any(|one| one.matches(event_type)) {
        return None;
    }
    let patterns: Vec<&str> = patterns.iter().map(EventPattern::as_str).collect();
    let patterns = patterns.join(", ");
    let reason =
        format!("the event's type {event_type} fits none of the webhook's events: {patterns}");
    Some(Verdict::new("pattern", reason))
}

/// Without an outcome of its own: it is kept out as by a filter.
fn own_answer(question: &Question<'_>, event: &BusinessEvent) -> Option<Verdict> {
    let made_by = event.meta.made_by.as_ref()?;
    let webhook = question.webhook.id;
    let reason = if made_by.webhook == webhook {
        "the event was made of an answer to this webhook, which never gets it"
    } else {
        "the event follows from an answer to this webhook, which never gets it"
    };
    let is_own = event.meta.is_made_by(webhook);
    is_own.then(|| Verdict::new("filter", reason))
}

fn filter_of<'a>(question: &Question<'a>) -> Option<&'a str> {
    question.webhook.config.shown.get("filter")?.as_str()
}

fn filter(
    question: &Question<'_>,
    event: &BusinessEvent,
    expressions: &dyn Expressions,
) -> Option<Verdict> {
    let text = filter_of(question)?;
    // A filter that cannot be read keeps nothing out: what matches waits until it can be.
    let filter = expressions.compile(text, Scope::Event).ok()?;
    let view = EventView::new(event);
    let gave = match filter.is_true(&view) {
        Ok(true) => return None,
        Ok(false) => "is false".to_owned(),
        Err(fault) => format!("cannot be evaluated: {fault}"),
    };
    let shown: String = text.chars().take(MAX_FILTER).collect();
    let values = paths::values(text, &view, expressions);
    let then = if values.is_empty() { "" } else { "; " };
    let reason = format!(
        "the webhook's filter {shown} {gave}{then}{}",
        values.join(", ")
    );
    Some(Verdict::new("filter", reason))
}

fn stopped(question: &Question<'_>) -> Option<Verdict> {
    if question.webhook.status == WebhookStatus::Inactive {
        let reason = "the webhook is inactive: it matches nothing until it is activated";
        return Some(Verdict::new("inactive", reason));
    }
    let integration = question.integration?;
    (!integration.status.runs()).then(|| {
        let status = integration.status.as_str();
        let reason = format!(
            "the webhook's integration is not running (its status is {status}): its webhooks match \
             nothing until it is activated"
        );
        Verdict::new("integration_inactive", reason)
    })
}

/// Whether an event that is not settled is on its way to the webhook: the webhook was there before it.
pub(super) fn is_to_come(question: &Question<'_>, published_at: Timestamp) -> bool {
    question.webhook.meta.created_at <= published_at
}

/// It has not been its turn.
pub(super) fn not_taken_in(sequence: u64) -> Verdict {
    let reason = format!(
        "pending: the event is in the source stream (sequence {sequence}) and matches; the workers \
         have not settled it yet"
    );
    Verdict::new("pending", reason)
}

/// The webhook would take it today, and has no delivery of it.
pub(super) fn without_record(
    question: &Question<'_>,
    published_at: Timestamp,
    kept: Duration,
    now: Timestamp,
) -> Verdict {
    let webhook = &question.webhook.meta;
    let published = format_time(published_at);
    if webhook.created_at > published_at {
        let created = format_time(webhook.created_at);
        let reason = format!(
            "the webhook was created at {created}, after the event was published at {published}; it \
             matches now, and webhook.backfill delivers it"
        );
        return Verdict::new("never_seen", reason);
    }
    if published_at + kept <= now {
        let kept = format_duration(kept);
        let reason = format!(
            "the event matches; it was published at {published}, and finished deliveries are kept for \
             {kept} (DELIVERY_RETENTION), so that of this one is gone, if there was one"
        );
        return Verdict::new("pruned", reason);
    }
    if let WebhookStatus::Error { error } = &question.webhook.status {
        let reason = format!(
            "the webhook is disabled: {error}; it has no delivery of the event of {published}, which \
             matches now, and webhook.backfill delivers it"
        );
        return Verdict::new("disabled", reason);
    }
    let integration = question.integration.map(|i| i.meta.updated_at);
    let changed = integration.max(Some(webhook.updated_at));
    let reason = match changed.filter(|at| *at > published_at) {
        Some(at) => format!(
            "the event matches now, but webhook or integration were changed at {}, after it was \
             published at {published}, and nothing was recorded then; webhook.backfill delivers it",
            format_time(at)
        ),
        None => format!(
            "the event of {published} matches and is settled, but no delivery of it is recorded; \
             webhook.backfill delivers it"
        ),
    };
    Verdict::new("never_seen", reason)
}

/// What is known of an event that the stream has no more, from another webhook's delivery of it.
pub(super) fn of_gone(
    question: &Question<'_>,
    sibling: &Delivery,
    kept: Duration,
    now: Timestamp,
) -> Verdict {
    let refused = pattern(question, &sibling.event_type).or_else(|| stopped(question));
    if let Some(verdict) = refused {
        return verdict;
    }
    if filter_of(question).is_some() {
        let at = format_time(sibling.created_at);
        let reason = format!(
            "another webhook got the event at {at}; it is no longer in the source stream, so this \
             webhook's filter cannot be asked about it"
        );
        return Verdict::new("never_seen", reason);
    }
    without_record(question, sibling.created_at, kept, now)
}

/// Nothing is known of such an event.
pub(super) fn nowhere(looked: &Looked, history: &SourceHistory) -> Verdict {
    let stream = &history.normaliser.stream;
    let count = looked.messages;
    let back_to = looked.back_to.map_or_else(String::new, |time| {
        let time = format_time(time);
        format!(", back to {time}")
    });
    let looked = if looked.is_all {
        format!("none of the {count} messages that the stream {stream} holds{back_to}")
    } else {
        format!(
            "none of the newest {count} messages of the stream {stream}{back_to} (at most \
             {MAX_MESSAGES} are looked at, and for {})",
            format_duration(MAX_TIME)
        )
    };
    let kept = format_duration(history.kept);
    let reason = format!(
        "{looked} is an event with this id, and no delivery of it is recorded (finished ones are kept \
         for {kept})"
    );
    Verdict::new("never_seen", reason)
}
