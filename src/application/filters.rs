//! Which webhooks get an event: those whose patterns match and whose filter, if there is one, is true.

use std::sync::Arc;

use metrics::counter;

use crate::{
    domain::{
        events::BusinessEvent,
        values::{DeliveryId, LaneKey, WebhookId},
    },
    shared::metrics::{EXPRESSION_FAULTS, FILTERED},
};

use super::{
    event_view::EventView,
    registry::{CompiledWebhook, Snapshot},
};

/// A webhook that an event goes to.
#[derive(Debug)]
pub struct Match {
    /// The delivery's id.
    pub id: DeliveryId,
    /// Where it goes.
    pub webhook: Arc<CompiledWebhook>,
    /// Where it has its turn, if the webhook is ordered.
    pub lane: Option<LaneKey>,
    /// Why its filter or its ordering key could not be evaluated: the delivery is recorded, and never
    /// made.
    pub fault: Option<String>,
}

/// The webhooks that an event goes to, in the order of their ids. The event's data is read when the
/// first filter asks for it, and once for all of them.
pub fn matches(snapshot: &Snapshot, event: &BusinessEvent) -> Vec<Match> {
    let view = EventView::new(event);
    let webhooks = snapshot.matches(&event.meta).into_iter();
    webhooks
        .filter_map(|webhook| judge(webhook, event, &view))
        .collect()
}

/// The same for one of the webhooks alone; `None` where the event does not go there.
pub fn match_one(snapshot: &Snapshot, event: &BusinessEvent, id: WebhookId) -> Option<Match> {
    let mut webhooks = snapshot.matches(&event.meta).into_iter();
    let webhook = webhooks.find(|webhook| webhook.id == id)?;
    judge(webhook, event, &EventView::new(event))
}

/// What becomes of an event whose type a webhook asks for; `None` where its filter says no.
fn judge(
    webhook: Arc<CompiledWebhook>,
    event: &BusinessEvent,
    view: &EventView<'_>,
) -> Option<Match> {
    let kept = webhook
        .filter
        .as_ref()
        .map_or(Ok(true), |f| f.is_true(view));
    let fault = match kept {
        Ok(true) => None,
        Ok(false) => {
            counter!(FILTERED).increment(1);
            return None;
        }
        Err(fault) => {
            counter!(EXPRESSION_FAULTS, "expression" => "filter").increment(1);
            Some(format!("filter: {fault}"))
        }
    };
    let (lane, fault) = match lane(&webhook, view) {
        _ if fault.is_some() => (None, fault),
        Ok(lane) => (lane, None),
        Err(fault) => {
            counter!(EXPRESSION_FAULTS, "expression" => "ordering_key").increment(1);
            (None, Some(format!("ordering key: {fault}")))
        }
    };
    Some(Match {
        id: DeliveryId::derive(webhook.id, &event.meta.tenant, &event.meta.id),
        webhook,
        lane,
        fault,
    })
}

fn lane(webhook: &CompiledWebhook, view: &EventView<'_>) -> Result<Option<LaneKey>, String> {
    let Some(rule) = &webhook.ordering else {
        return Ok(None);
    };
    Ok(Some(LaneKey::new(&rule.key.text(view)?)))
}
