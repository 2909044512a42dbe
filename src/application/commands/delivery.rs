//! Commands about deliveries. Their changes by users publish no events.

use uuid::Uuid;

use crate::domain::{
    entities::{Batching, Delivery, InvalidTransition},
    interfaces::StoreError,
    values::{DeliveryId, TenantId, WebhookId},
};

use super::{
    Ports,
    body::Body,
    integration::only_id,
    views,
    webhook::batch_rule,
    work::{CommandError, Outcome, Work, not_found},
};

/// `get {id}`
pub(super) async fn get(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let id = only_id(body)?;
    let found = ports.store.delivery(tenant, DeliveryId(id)).await?;
    let (delivery, attempts) = found.ok_or_else(|| not_found("delivery", "id", id))?;
    Ok(views::delivery(&delivery, Some(&attempts)))
}

/// The webhook of the delivery that a `retry` names, read without a lock; it never changes.
pub(super) async fn webhook_of(
    ports: &Ports,
    tenant: &TenantId,
    delivery: Uuid,
) -> Result<Option<WebhookId>, StoreError> {
    let found = ports.store.delivery(tenant, DeliveryId(delivery)).await?;
    Ok(found.map(|(delivery, _)| delivery.webhook_id))
}

/// `retry {id}`: due now, with its whole retry schedule anew, together with others or alone as the webhook
/// has it now. Answers without the attempts.
pub(super) async fn retry(work: &mut Work<'_>, body: Body) -> Outcome {
    let id = only_id(body)?;
    let webhook_id = work.known.webhook;
    let webhook_id = webhook_id.ok_or_else(|| not_found("delivery", "id", id))?;
    // The webhook first, as its deletion does; it cannot go while the delivery is changed.
    let tenant = &work.command.context.tenant;
    let webhook = work.unit.webhook(tenant, webhook_id).await?;
    let (mut delivery, event_kept) = locked(work, id).await?;
    let state = delivery.status.as_str();
    delivery.retry(work.ports.clock.store_now())?;
    let refused = |remedy| InvalidTransition {
        entity: "delivery",
        state,
        remedy,
    };
    if !event_kept {
        return Err(refused("its event was pruned, so there is nothing to send").into());
    }
    let Some(webhook) = webhook else {
        return Err(refused("its webhook was deleted, so it cannot be sent again").into());
    };
    delivery.batch = match batch_rule(&webhook) {
        Some(_) if delivery.lane.is_none() => Batching::Waits,
        _ => Batching::Alone,
    };
    work.unit.update_delivery(&delivery).await?;
    work.audit(id.to_string());
    work.effects.parked = true;
    Ok(views::delivery(&delivery, None))
}

/// `cancel {id}`: no further attempt. Answers without the attempts.
pub(super) async fn cancel(work: &mut Work<'_>, body: Body) -> Outcome {
    let id = only_id(body)?;
    let (mut delivery, _) = locked(work, id).await?;
    if delivery.cancel(work.now)? {
        work.unit.update_delivery(&delivery).await?;
        work.audit(id.to_string());
    }
    Ok(views::delivery(&delivery, None))
}

async fn locked(work: &mut Work<'_>, id: Uuid) -> Result<(Delivery, bool), CommandError> {
    let tenant = &work.command.context.tenant;
    let found = work.unit.delivery(tenant, DeliveryId(id)).await?;
    Ok(found.ok_or_else(|| not_found("delivery", "id", id))?)
}
