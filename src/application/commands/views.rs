//! Entities as they are answered and published (CONTRACT 4).

use serde_json::{Map, Value, json};

use crate::domain::{
    entities::{
        Attempt, Delivery, DeliveryStatus, EntityMeta, Integration, IntegrationStatus, Replay,
        Webhook, WebhookStatus,
    },
    events::Change,
    policies::EndpointState,
    values::{EventPattern, Timestamp, format_time},
};

use super::published::published;

/// An integration as it is answered; credentials are marks.
pub(super) fn integration(integration: &Integration) -> Value {
    let Integration {
        id,
        meta,
        kind,
        status,
        config,
    } = integration;
    let mut view = head(id.to_string(), meta);
    view.insert("type".to_owned(), kind.as_str().into());
    view.insert("config".to_owned(), Value::Object(config.shown.clone()));
    let error = match status {
        IntegrationStatus::Error { error } => Some(error.as_str()),
        _ => None,
    };
    stands(&mut view, status.as_str(), error);
    tail(view, meta)
}

/// A webhook as it is answered; credentials are marks, the signing secret is left out.
pub(super) fn webhook(webhook: &Webhook) -> Value {
    let Webhook {
        id,
        integration_id,
        meta,
        events,
        status,
        config,
        secrets: _,
    } = webhook;
    let events: Vec<&str> = events.iter().map(EventPattern::as_str).collect();
    let mut view = head(id.to_string(), meta);
    view.insert(
        "integrationId".to_owned(),
        integration_id.to_string().into(),
    );
    view.insert("events".to_owned(), json!(events));
    view.insert("config".to_owned(), Value::Object(config.shown.clone()));
    let error = match status {
        WebhookStatus::Error { error } => Some(error.as_str()),
        _ => None,
    };
    stands(&mut view, status.as_str(), error);
    tail(view, meta)
}

/// How a webhook's endpoint is.
pub(super) fn endpoint(state: &EndpointState, now: Timestamp) -> Value {
    let until = state.open_until();
    let mut view = json!({
        "breaker": match until {
            None => "closed",
            Some(until) if until <= now => "half_open",
            Some(_) => "open",
        },
        "failures": state.failures,
    });
    optional(&mut view, "openUntil", until.map(time));
    optional(&mut view, "failingSince", state.failing_since.map(time));
    view
}

/// The data of an integration's event: for `created` and `updated` the whole view (as
/// [`published`] has it), else `{name, status, error?}`.
pub(super) fn integration_event(entity: &Integration, change: Change) -> Value {
    let mut view = integration(entity);
    if is_whole(change) {
        view["config"] = published(&entity.config);
        return view;
    }
    pick(&view, &["name", "status", "error"])
}

/// The data of a webhook's event: for `created` and `updated` the whole view (as [`published`]
/// has it), else `{name, integrationId, status, error?}`.
pub(super) fn webhook_event(entity: &Webhook, change: Change) -> Value {
    let mut view = webhook(entity);
    if is_whole(change) {
        view["config"] = published(&entity.config);
        return view;
    }
    pick(&view, &["name", "integrationId", "status", "error"])
}

/// A delivery as it is answered; `attempts` are there where they were read.
pub(super) fn delivery(delivery: &Delivery, attempts: Option<&[Attempt]>) -> Value {
    let mut view = json!({
        "id": delivery.id,
        "webhookId": delivery.webhook_id,
        "eventId": delivery.event_id,
        "eventType": delivery.event_type,
        "status": delivery.status.as_str(),
        "attemptCount": delivery.attempt_count,
    });
    optional(
        &mut view,
        "nextAttemptAt",
        delivery.next_attempt_at.map(time),
    );
    optional(&mut view, "error", delivery.error.clone().map(Value::from));
    let batch = delivery.batch.id().map(|id| id.to_string().into());
    optional(&mut view, "batchId", batch);
    view["createdAt"] = time(delivery.created_at);
    optional(&mut view, "completedAt", delivery.completed_at.map(time));
    let attempts = attempts.map(|all| all.iter().map(attempt).collect());
    optional(&mut view, "attempts", attempts.map(Value::Array));
    view
}

/// A replay as it is answered.
pub(super) fn replay(replay: &Replay) -> Value {
    let selection = &replay.selection;
    let mut view = json!({
        "id": replay.id,
        "webhookId": selection.webhook_id,
        "kind": replay.kind.as_str(),
        "status": replay.status.as_str(),
        "since": time(selection.since),
        "until": time(selection.until),
        "total": replay.total,
        "done": replay.done,
        "skipped": replay.skipped,
    });
    if !selection.statuses.is_empty() {
        let statuses = selection.statuses.iter().copied();
        view["statuses"] = statuses.map(DeliveryStatus::as_str).collect();
    }
    if !selection.event_types.is_empty() {
        view["eventTypes"] = selection
            .event_types
            .iter()
            .map(EventPattern::as_str)
            .collect();
    }
    optional(&mut view, "error", replay.error.clone().map(Value::from));
    view["createdAt"] = time(replay.created_at);
    view["updatedAt"] = time(replay.updated_at);
    optional(&mut view, "completedAt", replay.completed_at.map(time));
    view
}

fn attempt(attempt: &Attempt) -> Value {
    let mut view = json!({
        "number": attempt.number,
        "startedAt": format_time(attempt.started_at),
        "durationMs": attempt.duration_ms,
    });
    optional(
        &mut view,
        "statusCode",
        attempt.status_code.map(Value::from),
    );
    optional(&mut view, "error", attempt.error.clone().map(Value::from));
    optional(
        &mut view,
        "response",
        attempt.response.clone().map(Value::from),
    );
    view
}

fn head(id: String, meta: &EntityMeta) -> Map<String, Value> {
    let mut view = Map::new();
    view.insert("id".to_owned(), id.into());
    view.insert("tenantId".to_owned(), meta.tenant.as_str().into());
    view.insert("name".to_owned(), meta.name.clone().into());
    if let Some(description) = &meta.description {
        view.insert("description".to_owned(), description.clone().into());
    }
    view.insert("tags".to_owned(), json!(meta.tags));
    view
}

fn stands(view: &mut Map<String, Value>, status: &str, error: Option<&str>) {
    view.insert("status".to_owned(), status.into());
    if let Some(error) = error {
        view.insert("error".to_owned(), error.into());
    }
    view.insert("isActive".to_owned(), (status != "inactive").into());
}

fn tail(mut view: Map<String, Value>, meta: &EntityMeta) -> Value {
    view.insert("version".to_owned(), meta.version.into());
    view.insert("createdAt".to_owned(), time(meta.created_at));
    view.insert("updatedAt".to_owned(), time(meta.updated_at));
    view.insert("createdBy".to_owned(), meta.created_by.clone().into());
    view.insert("updatedBy".to_owned(), meta.updated_by.clone().into());
    Value::Object(view)
}

/// A time as it is answered.
pub(super) fn time(time: Timestamp) -> Value {
    Value::String(format_time(time))
}

fn optional(view: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        view[name] = value;
    }
}

fn is_whole(change: Change) -> bool {
    matches!(change, Change::Created | Change::Updated)
}

fn pick(view: &Value, names: &[&str]) -> Value {
    let field = |name: &&str| Some(((*name).to_owned(), view.get(*name)?.clone()));
    Value::Object(names.iter().filter_map(field).collect())
}
