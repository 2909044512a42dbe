//! What a recorded delivery tells.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    application::{deliver::ORDERED, registry::unusable},
    domain::{
        entities::{Attempt, Delivery, DeliveryStatus, WebhookStatus},
        policies::EndpointState,
        values::{DeliveryId, Timestamp, format_time},
    },
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
        let around = match delivery.status {
            DeliveryStatus::Pending => around(ports, question, &delivery).await?,
            _ => Around::default(),
        };
        let now = ports.clock.store_now();
        let verdict = Verdict::new(
            delivery.status.as_str(),
            reason(question, &delivery, &attempts, &around, now),
        );
        let view = views::delivery(&delivery, Some(&attempts));
        return Ok(Some(verdict.view(Some(view))));
    }
    Ok(None)
}

/// What else there is to know about a delivery that waits.
#[derive(Debug, Default)]
struct Around {
    /// How the endpoint is.
    state: EndpointState,
    /// Why no request can be made for the webhook, if none can.
    unusable: Option<String>,
    /// The first in its lane, if it has one.
    front: Option<Delivery>,
    /// How far the source stream is settled, where it is the first itself and the bus answers.
    floor: Option<i64>,
}

async fn around(
    ports: &Ports,
    question: &Question<'_>,
    delivery: &Delivery,
) -> Result<Around, CommandError> {
    let webhook = question.webhook;
    let states = ports.store.endpoint_states_of(&[webhook.id]).await?;
    let expressions = ports.settings.expressions.as_ref();
    let mut around = Around {
        state: states.first().map(|(_, state)| *state).unwrap_or_default(),
        unusable: unusable(webhook, ports.cipher.as_ref(), expressions),
        ..Around::default()
    };
    if let Some(key) = delivery.lane_key() {
        around.front = ports.store.lane_front(webhook.id, key).await?;
        if let (None, Some(history)) = (around.ahead_of(delivery), &ports.history) {
            around.floor = history.floor.floor().await.ok();
        }
    }
    Ok(around)
}

impl Around {
    /// The first in its lane, if that is another one.
    fn ahead_of(&self, delivery: &Delivery) -> Option<&Delivery> {
        self.front.as_ref().filter(|front| front.id != delivery.id)
    }

    fn is_above_floor(&self, delivery: &Delivery) -> bool {
        let known = self.floor.zip(delivery.lane_turn());
        known.is_some_and(|(floor, turn)| turn > floor)
    }
}

fn reason(
    question: &Question<'_>,
    delivery: &Delivery,
    attempts: &[Attempt],
    around: &Around,
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
        DeliveryStatus::Pending => pending(question, delivery, around, now),
    }
}

/// What a delivery waits for; what stands in the way of all of the webhook's comes first.
fn pending(
    question: &Question<'_>,
    delivery: &Delivery,
    around: &Around,
    now: Timestamp,
) -> String {
    let (webhook, state) = (question.webhook, &around.state);
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
    if let Some(problem) = &around.unusable {
        return format!("pending: waits until the webhook can be used: {problem}");
    }
    if let Some(until) = state.open_until() {
        return format!(
            "pending: waits until {}, because the endpoint's circuit breaker is open after {} failures",
            format_time(until),
            state.failures
        );
    }
    match (delivery.lane_key(), around.ahead_of(delivery)) {
        (Some(key), Some(front)) => return behind(key, front, now),
        (Some(key), None) if around.is_above_floor(delivery) => {
            return format!(
                "pending: is the first with the ordering key {key:?}, and waits until all earlier \
                 events of the source stream are taken in"
            );
        }
        _ => {}
    }
    let last = last(delivery);
    match delivery.next_attempt_at {
        Some(due) if due > now => {
            format!("pending: waits until {}, because {last}", format_time(due))
        }
        _ => format!("pending: it is due, and goes out when a worker has a slot for it; {last}"),
    }
}

/// How the last attempt went, if there was one.
fn last(delivery: &Delivery) -> String {
    match (delivery.attempt_count, delivery.error.as_deref()) {
        // It waited for its turn when it was taken in; now it has it.
        (0, Some(why)) if why != ORDERED => why.to_owned(),
        (0, _) => "no attempt was made yet".to_owned(),
        (count, Some(error)) => format!("attempt {count} failed: {error}"),
        (count, None) => format!("attempt {count} failed"),
    }
}

/// What one waits for that is not the first in its lane.
fn behind(key: &str, front: &Delivery, now: Timestamp) -> String {
    let (id, event) = (front.id, &front.event_id);
    let which = if front.blocks() {
        let error = front.error.as_deref().unwrap_or("it was given up");
        format!(
            "which is exhausted ({error}) and blocks those behind it: retry or cancel it, or let the \
             webhook's ordering continue"
        )
    } else {
        let last = last(front);
        match front.next_attempt_at.filter(|due| *due > now) {
            Some(due) => format!("which waits until {}, because {last}", format_time(due)),
            None => format!("which is due; {last}"),
        }
    };
    format!(
        "pending: waits until the earlier deliveries with the ordering key {key:?} are done; the first \
         of them is {id} (event {event:?}), {which}"
    )
}

#[cfg(test)]
mod tests;
