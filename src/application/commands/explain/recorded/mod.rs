//! What a recorded delivery tells.

use std::fmt::Write as _;

use serde_json::Value;

use crate::domain::{
    entities::{Attempt, Delivery, DeliveryStatus, WebhookStatus},
    policies::EndpointState,
    values::{DeliveryId, Timestamp, format_time},
};

use super::{
    super::{Ports, views, work::CommandError},
    Question, Verdict,
};

/// The answer, where a delivery of the event to the webhook is recorded: one of an event of the bus, or
/// of what `trigger` sent under this id.
pub(super) async fn answer(
    ports: &Ports,
    question: &Question<'_>,
) -> Result<Option<Value>, CommandError> {
    let (webhook, tenant, event) = (question.webhook.id, question.tenant, question.event_id);
    for id in [
        DeliveryId::derive(webhook, tenant, event),
        DeliveryId::derive_for_command(webhook, tenant, event, "webhook.trigger"),
    ] {
        let found = ports.store.delivery(tenant, id).await?;
        let Some((delivery, attempts)) = found else {
            continue;
        };
        let states = ports.store.endpoint_states_of(&[webhook]).await?;
        let state = states.first().map(|(_, state)| *state).unwrap_or_default();
        let now = ports.clock.store_now();
        let verdict = Verdict::new(
            delivery.status.as_str(),
            reason(question, &delivery, &attempts, &state, now),
        );
        let view = views::delivery(&delivery, Some(&attempts));
        return Ok(Some(verdict.view(Some(view))));
    }
    Ok(None)
}

fn reason(
    question: &Question<'_>,
    delivery: &Delivery,
    attempts: &[Attempt],
    state: &EndpointState,
    now: Timestamp,
) -> String {
    let ended = delivery.completed_at.map_or_else(String::new, |at| {
        let at = format_time(at);
        format!(" at {at}")
    });
    let made = match delivery.attempt_count {
        0 => "without an attempt".to_owned(),
        1 => "after 1 attempt".to_owned(),
        count => format!("after {count} attempts"),
    };
    match delivery.status {
        DeliveryStatus::Delivered => {
            let mut text = format!("delivered at attempt {}{ended}", delivery.attempt_count);
            if let Some(code) = attempts.last().and_then(|attempt| attempt.status_code) {
                // Writing to a string cannot fail.
                write!(text, ": HTTP {code}").unwrap_or_default();
            }
            text
        }
        DeliveryStatus::Exhausted => {
            let mut text = format!("exhausted{ended} {made}");
            if let Some(error) = &delivery.error {
                text.push_str(": ");
                text.push_str(error);
            }
            if delivery.blocks() {
                text.push_str(
                    "; those behind it in its order wait until it is retried or cancelled",
                );
            }
            text
        }
        DeliveryStatus::Cancelled => format!("cancelled{ended} {made}"),
        DeliveryStatus::Pending => pending(question, delivery, state, now),
    }
}

/// What a delivery waits for; what stands in the way of all of the webhook's comes first.
fn pending(
    question: &Question<'_>,
    delivery: &Delivery,
    state: &EndpointState,
    now: Timestamp,
) -> String {
    let webhook = question.webhook;
    let due = delivery.next_attempt_at;
    let error = delivery.error.as_deref();
    match (&webhook.status, question.integration) {
        (WebhookStatus::Error { error }, _) => {
            return format!(
                "pending: waits until the webhook is activated, because it is disabled: {error}"
            );
        }
        (WebhookStatus::Inactive, _) => {
            return "pending: waits until the webhook is activated, because it is inactive"
                .to_owned();
        }
        (_, Some(integration)) if !integration.status.runs() => {
            let status = integration.status.as_str();
            return format!(
                "pending: waits until the integration is activated, because its status is {status}"
            );
        }
        _ => {}
    }
    if let Some(until) = state.open_until() {
        return format!(
            "pending: waits until {}, because the endpoint's circuit breaker is open after {} failures",
            format_time(until),
            state.failures
        );
    }
    if let (Some(key), 0) = (delivery.lane_key(), delivery.attempt_count) {
        return format!(
            "pending: waits until the earlier deliveries with the ordering key {key:?} are done, \
             because it is ordered behind them"
        );
    }
    let last = match (delivery.attempt_count, error) {
        (0, Some(why)) => why.to_owned(),
        (0, None) => "no attempt was made yet".to_owned(),
        (count, Some(error)) => format!("attempt {count} failed: {error}"),
        (count, None) => format!("attempt {count} failed"),
    };
    match due {
        Some(due) if due > now => {
            format!("pending: waits until {}, because {last}", format_time(due))
        }
        _ => format!("pending: it is due, and goes out when a worker has a slot for it; {last}"),
    }
}

#[cfg(test)]
mod tests;
