//! What the worker itself changes about a webhook: its first success makes it `active`, a `410` disables
//! it.
//!
//! Both are committed before the delivery that caused them is recorded. A crash in between repeats the
//! attempt, and the change, being made already, is not made twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use tokio::sync::OnceCell;

use crate::domain::{
    entities::{Delivery, Webhook},
    events::{Context, DomainEvent, WebhookChange},
    interfaces::{AuditRow, Inserted, RegistryChange, Store, StoreError},
    values::{Timestamp, TraceContext, WebhookId},
};

use super::{ports::Clock, wakers::Wakers};

/// What a change follows from.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// The delivery whose attempt it was.
    pub delivery: &'a Delivery,
    /// The trace of its event.
    pub trace: Option<&'a TraceContext>,
}

/// Makes those changes.
pub struct WebhookChanges {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    wakers: Arc<Wakers>,
    /// First successes under way: many deliveries may have one at the same time.
    activations: Mutex<HashMap<WebhookId, Arc<OnceCell<()>>>>,
}

impl std::fmt::Debug for WebhookChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookChanges").finish_non_exhaustive()
    }
}

impl WebhookChanges {
    /// Changes through this store.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, wakers: Arc<Wakers>) -> Self {
        Self {
            store,
            clock,
            wakers,
            activations: Mutex::default(),
        }
    }

    /// The delivery's webhook, pending so far, had a success.
    ///
    /// # Errors
    /// The store's; nothing is changed then.
    pub async fn first_success(&self, cause: Cause<'_>) -> Result<(), StoreError> {
        let cell = Arc::clone(
            self.activations()
                .entry(cause.delivery.webhook_id)
                .or_default(),
        );
        let change = || self.change(cause, "webhook.activate", Webhook::first_success);
        cell.get_or_try_init(change).await?;
        self.activations().remove(&cause.delivery.webhook_id);
        Ok(())
    }

    /// The worker gives up on the address of the delivery's webhook.
    ///
    /// # Errors
    /// The store's; nothing is changed then.
    pub async fn disable(&self, cause: Cause<'_>, reason: &str) -> Result<(), StoreError> {
        self.change(cause, "webhook.disable", |webhook, now| {
            webhook.disable(reason, now)
        })
        .await
    }

    async fn change(
        &self,
        cause: Cause<'_>,
        action: &str,
        decide: impl FnOnce(&mut Webhook, Timestamp) -> Option<WebhookChange> + Send,
    ) -> Result<(), StoreError> {
        let Cause {
            delivery: cause,
            trace,
        } = cause;
        let mut work = self.store.begin().await?;
        let Some(mut webhook) = work.webhook(&cause.tenant, cause.webhook_id).await? else {
            return Ok(());
        };
        let now = self.clock.now();
        let Some(change) = decide(&mut webhook, now) else {
            return Ok(());
        };
        if work.update_webhook(&webhook).await? == Inserted::NameTaken {
            return Err(StoreError::Conflict);
        }
        let context = context(cause, trace);
        let audit = AuditRow {
            tenant: cause.tenant.clone(),
            at: now,
            actor: context.actor.clone(),
            action: action.to_owned(),
            entity_id: webhook.id.to_string(),
            command_id: cause.event_id.clone(),
            correlation_id: context.correlation_id.clone(),
        };
        let event = event(&webhook, change, context, cause, now, self.clock.new_id());
        work.add_events(&[event]).await?;
        work.add_audit(&[audit]).await?;
        work.registry_changed(&[RegistryChange::Webhook(webhook.id)])
            .await?;
        work.commit().await?;
        self.wakers.outbox.notify_one();
        tracing::info!(webhook = %webhook.id, status = webhook.status.as_str(), "webhook changed by its deliveries");
        Ok(())
    }

    fn activations(&self) -> std::sync::MutexGuard<'_, HashMap<WebhookId, Arc<OnceCell<()>>>> {
        self.activations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn context(cause: &Delivery, trace: Option<&TraceContext>) -> Context {
    Context {
        tenant: cause.tenant.clone(),
        actor: "system".to_owned(),
        correlation_id: cause
            .correlation_id
            .clone()
            .unwrap_or_else(|| cause.event_id.clone()),
        causation_id: cause.event_id.clone(),
        trace: trace.cloned(),
    }
}

fn event(
    webhook: &Webhook,
    change: WebhookChange,
    context: Context,
    cause: &Delivery,
    now: Timestamp,
    id: uuid::Uuid,
) -> DomainEvent {
    let mut data = json!({
        "name": webhook.meta.name,
        "status": webhook.status.as_str(),
        "integrationId": webhook.integration_id,
        "deliveryId": cause.id,
    });
    if let (crate::domain::entities::WebhookStatus::Error { error }, Some(data)) =
        (&webhook.status, data.as_object_mut())
    {
        data.insert("error".to_owned(), json!(error));
    }
    DomainEvent {
        id,
        event_type: format!("webhook.{}", change.change.as_str()),
        subject: webhook.id.to_string(),
        time: now,
        aggregate_version: change.version,
        context,
        data,
    }
}
