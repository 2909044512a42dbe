//! Events that a user sends to one webhook: `trigger` and `test`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use crate::application::webhook_settings::webhook_settings;
use crate::domain::{
    entities::{
        Batching, Delivery, DeliveryStatus, Integration, InvalidTransition, Webhook, WebhookStatus,
    },
    events::{BusinessEvent, EventMeta, Payload},
    interfaces::{StoreError, StoredEvent},
    values::{DeliveryId, EventPattern, TenantId, Timestamp, WebhookId},
};

use super::{
    Ports,
    body::Body,
    command::Command,
    fields::{Fields, Text},
    integration::only_id,
    reply::{ErrorCode, Refusal},
    views, webhook,
    webhook_secrets::endpoint,
    work::{CommandError, Outcome, Work, checked, not_found},
};

/// The largest payload, in bytes: 1 MiB.
const MAX_PAYLOAD: usize = 1024 * 1024;
/// The `source` of events that a user sends.
const SOURCE: &str = "/integration";
/// The type of a triggered event that names none.
const TRIGGER: &str = "webhook.trigger";
/// The type of a test's event.
const TEST: &str = "webhook.test";
/// How many tests of a worker are under way at a time. They wait for strangers, and share their permits
/// with all other commands and requests, so they may never take them all.
pub(super) const MAX_TESTS: usize = 8;
/// How long a test waits at most, whatever the webhook's timeout is: somebody waits for the answer.
const LONGEST_TEST: Duration = Duration::from_secs(30);

/// The integration of the webhook that a `trigger` names, read without a lock: to lock it after the
/// webhook would be the other way round than a deletion does, and would let the triggers of all its
/// webhooks wait for each other. If it is turned off meanwhile, the delivery waits.
pub(super) async fn integration_of(
    ports: &Ports,
    tenant: &TenantId,
    webhook: Uuid,
) -> Result<Option<Integration>, StoreError> {
    match ports.store.get_webhook(tenant, WebhookId(webhook)).await? {
        Some(webhook) => {
            let id = webhook.integration_id;
            ports.store.get_integration(tenant, id).await
        }
        None => Ok(None),
    }
}

/// `trigger {id, payload, event?}`: a delivery that is due now, whatever the webhook listens to.
pub(super) async fn trigger(work: &mut Work<'_>, body: Body) -> Outcome {
    let payload = raw_payload(&body.raw);
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id", "payload"]);
    let id = fields.uuid("id");
    fields.value("payload");
    if payload
        .as_ref()
        .is_some_and(|payload| payload.len() > MAX_PAYLOAD)
    {
        fields.fault("payload", format!("must have at most {MAX_PAYLOAD} bytes"));
    }
    let event_type = fields.text("event", Text::Line(EventPattern::MAX_LEN));
    let problem = event_type.as_deref().and_then(EventPattern::type_problem);
    if let Some(problem) = problem {
        fields.fault("event", problem);
    }
    let (id, payload) = checked(fields, id.zip(payload))?;

    let webhook = webhook::locked(work, id, None).await?;
    may_receive(&webhook, work.known.integration.as_ref())?;
    let event_type = event_type.unwrap_or_else(|| TRIGGER.to_owned());
    let event = event(work.command, event_type, payload, work.now);
    let mut delivery = pending(
        delivery_id(work.command, webhook.id),
        &webhook,
        &event,
        work.now,
    );
    delivery.next_attempt_at = Some(work.ports.clock.store_now());
    if is_batched(&webhook) {
        delivery.batch = Batching::Waits;
    }
    let tenant = &work.command.context.tenant;
    if work.unit.delivery(tenant, delivery.id).await?.is_some() {
        let message = "a trigger with the id of this command was delivered to this webhook before";
        return Err(Refusal::at(ErrorCode::Conflict, "Idempotency-Key", message).into());
    }
    let stored = StoredEvent {
        meta: event.stored_meta(),
        raw: event.raw.clone(),
    };
    work.unit.insert_delivery(&delivery, &stored).await?;
    work.audit(webhook.id.to_string());
    work.effects.parked = true;
    Ok(views::delivery(&delivery, Some(&[])))
}

/// `test {id}`: one request with a `webhook.test` event, of which only the answer is left. It works in
/// every state of the webhook. At most [`MAX_TESTS`] at a time, each at most [`LONGEST_TEST`].
pub(super) async fn test(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let id = only_id(body)?;
    let tenant = &command.context.tenant;
    let webhook = ports.store.get_webhook(tenant, WebhookId(id)).await?;
    let webhook = webhook.ok_or_else(|| not_found("webhook", "id", id))?;
    let now = ports.clock.now();
    let endpoint = endpoint(ports, &webhook, now)?;
    let _permit = ports.tests.try_acquire().map_err(|_| busy())?;
    let data = json!({ "webhookId": webhook.id, "name": webhook.meta.name, "test": true });
    let event = event(command, TEST.to_owned(), data.to_string().into(), now);
    let delivery = delivery_id(command, webhook.id);
    let mut request = match endpoint.request_of_one(&event, delivery, now) {
        Ok(request) => request,
        Err(problem) => {
            let answer = json!({ "statusCode": null, "durationMs": 0, "response": null });
            return Ok(with_error(answer, problem));
        }
    };
    request.timeout = request.timeout.min(LONGEST_TEST);
    let started = Instant::now();
    let answer = ports.sender.send(request).await;
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut data = json!({ "statusCode": null, "durationMs": took, "response": null });
    match answer {
        Ok(answer) => {
            data["statusCode"] = answer.status.into();
            if !(200..300).contains(&answer.status) {
                data["error"] = format!("HTTP {}", answer.status).into();
            }
            data["response"] = answer.body.into();
        }
        Err(error) => data = with_error(data, error.to_string()),
    }
    Ok(data)
}

fn with_error(mut answer: Value, error: String) -> Value {
    answer["error"] = error.into();
    answer
}

fn busy() -> Refusal {
    let message = format!("{MAX_TESTS} tests are under way already; try again in a while");
    Refusal::new(ErrorCode::Unavailable, message)
}

/// Whether its receiver expects batches.
fn is_batched(webhook: &Webhook) -> bool {
    webhook_settings(&webhook.config.shown, None).is_ok_and(|settings| settings.batch.is_some())
}

/// The payload as it was written, so that its numbers keep their form.
fn raw_payload(body: &[u8]) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    let given: Given<'_> = serde_json::from_slice(body).ok()?;
    Some(Bytes::copy_from_slice(given.payload.get().as_bytes()))
}

/// Refuses when nothing goes out to the webhook.
pub(super) fn may_receive(
    webhook: &Webhook,
    integration: Option<&Integration>,
) -> Result<(), CommandError> {
    if let WebhookStatus::Inactive | WebhookStatus::Error { .. } = webhook.status {
        return Err(InvalidTransition {
            entity: "webhook",
            state: webhook.status.as_str(),
            remedy: "activate it first",
        }
        .into());
    }
    // It was made after its integration was looked for.
    let integration = integration.ok_or_else(|| not_found("webhook", "id", webhook.id))?;
    if integration.status.runs() {
        return Ok(());
    }
    Err(InvalidTransition {
        entity: "the webhook's integration",
        state: integration.status.as_str(),
        remedy: "activate it first",
    }
    .into())
}

fn event(command: &Command, event_type: String, payload: Bytes, now: Timestamp) -> BusinessEvent {
    let context = &command.context;
    BusinessEvent {
        meta: EventMeta {
            made_by: None,
            id: context.command_id.clone(),
            subject: event_type.clone(),
            event_type,
            source: SOURCE.to_owned(),
            time: now,
            tenant: context.tenant.clone(),
            correlation_id: Some(context.correlation_id.clone()),
            trace: context.trace.clone(),
            content_type: Some("application/json".to_owned()),
            source_sequence: None,
        },
        raw: payload.clone(),
        payload: Payload::Json(payload),
    }
}

fn delivery_id(command: &Command, webhook: WebhookId) -> DeliveryId {
    let context = &command.context;
    let (tenant, id) = (&context.tenant, &context.command_id);
    DeliveryId::derive_for_command(webhook, tenant, id, &command.name)
}

fn pending(
    delivery: DeliveryId,
    webhook: &Webhook,
    event: &BusinessEvent,
    now: Timestamp,
) -> Delivery {
    let EventMeta {
        id,
        tenant,
        event_type,
        correlation_id,
        ..
    } = &event.meta;
    Delivery {
        id: delivery,
        tenant: tenant.clone(),
        webhook_id: webhook.id,
        event_id: id.clone(),
        event_type: event_type.clone(),
        correlation_id: correlation_id.clone(),
        source_sequence: None,
        status: DeliveryStatus::Pending,
        attempt_count: 0,
        event_version: 0,
        budget_base: 0,
        next_attempt_at: Some(now),
        error: None,
        created_at: now,
        completed_at: None,
        lane: None,
        batch: Batching::Alone,
    }
}
