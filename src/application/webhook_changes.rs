//! What the worker itself changes about a webhook: its first success makes it `active`, a `410` disables
//! it.
//!
//! Both are committed before the delivery that caused them is recorded. A crash in between repeats the
//! attempt, and the change, being made already, is not made twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::counter;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    domain::{
        entities::{Delivery, Webhook, WebhookStatus},
        events::{Change, Context, DomainEvent, WebhookChange},
        interfaces::{AuditRow, Inserted, RegistryChange, Store, StoreError, UnitOfWork},
        policies::{BreakerRules, EndpointState, Signs, Switched},
        values::{Timestamp, TraceContext, WebhookId, format_time},
    },
    shared::{duration::format_duration, metrics::BREAKER_SWITCHES},
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
        self.write(
            work.as_mut(),
            &webhook,
            change,
            (cause, trace, action),
            Value::Null,
        )
        .await?;
        work.registry_changed(&[RegistryChange::Webhook(webhook.id)])
            .await?;
        work.commit().await?;
        self.wakers.outbox.notify_one();
        tracing::info!(webhook = %webhook.id, status = webhook.status.as_str(), "webhook changed by its deliveries");
        Ok(())
    }

    /// The changed webhook, its event with `more` in its data, and the line of the audit log.
    async fn write(
        &self,
        work: &mut dyn UnitOfWork,
        webhook: &Webhook,
        change: WebhookChange,
        (cause, trace, action): (&Delivery, Option<&TraceContext>, &str),
        more: Value,
    ) -> Result<(), StoreError> {
        if work.update_webhook(webhook).await? == Inserted::NameTaken {
            return Err(StoreError::Conflict);
        }
        let now = webhook.meta.updated_at;
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
        let mut event = event(webhook, change, context, cause, now, self.clock.new_id());
        if let (Some(data), Value::Object(more)) = (event.data.as_object_mut(), more) {
            data.extend(more);
        }
        work.add_events(&[event]).await?;
        work.add_audit(&[audit]).await
    }

    /// Counts what some attempts say about the endpoint of the delivery's webhook, with all that follows:
    /// its breaker opens or closes, or the webhook is disabled. Answers how the endpoint is now; what
    /// comes late for a webhook that is gone or does not run counts nothing.
    ///
    /// # Errors
    /// The store's; nothing is changed then.
    pub(super) async fn judge(
        &self,
        seen: Seen<'_>,
        rules: &BreakerRules,
        disable_after: Duration,
    ) -> Result<EndpointState, StoreError> {
        let cause = seen.cause;
        let mut work = self.store.begin().await?;
        let Some(mut webhook) = work.webhook(&cause.tenant, cause.webhook_id).await? else {
            return Ok(EndpointState::default());
        };
        let before = work.endpoint_state(webhook.id).await?;
        if !matches!(
            webhook.status,
            WebhookStatus::Pending | WebhookStatus::Active
        ) {
            return Ok(before);
        }
        let (due, now) = (self.clock.store_now(), self.clock.now());
        let (mut state, switched) = before.after(seen.signs, rules, due);
        let mut disabled = false;
        if seen.signs.ends_badly && state.is_hopeless(due, disable_after) {
            let reason = format!(
                "nothing but failures for {}",
                format_duration(disable_after)
            );
            if let Some(change) = webhook.disable(&reason, now) {
                let told = (cause, None, "webhook.disable");
                self.write(work.as_mut(), &webhook, change, told, Value::Null)
                    .await?;
                // Whoever activates it again begins anew.
                state = EndpointState::default();
                disabled = true;
            }
        } else if let Some(switched) = switched {
            let (change, action, more) = told(webhook.id, switched, &state, seen.error);
            let change = webhook.changed(change, "system", now);
            self.write(work.as_mut(), &webhook, change, (cause, None, action), more)
                .await?;
        }
        if state != before {
            work.put_endpoint_state(webhook.id, &state).await?;
        }
        if disabled {
            work.registry_changed(&[RegistryChange::Webhook(webhook.id)])
                .await?;
        }
        work.commit().await?;
        if disabled || switched.is_some() {
            self.wakers.outbox.notify_one();
            log(&webhook, &state, disabled, seen.error);
        }
        Ok(state)
    }

    fn activations(&self) -> std::sync::MutexGuard<'_, HashMap<WebhookId, Arc<OnceCell<()>>>> {
        self.activations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What some attempts say about an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    /// The last of their deliveries.
    pub(super) cause: &'a Delivery,
    /// What they say.
    pub(super) signs: Signs,
    /// Why the last one was no success.
    pub(super) error: Option<&'a str>,
}

/// The change that a switched breaker is, the audit log's word for it, and what its event says besides.
fn told(
    webhook: WebhookId,
    switched: Switched,
    state: &EndpointState,
    error: Option<&str>,
) -> (Change, &'static str, Value) {
    match switched {
        Switched::Opened { until } => {
            counter!(BREAKER_SWITCHES, "to" => "open").increment(1);
            let more = json!({
                "webhookId": webhook,
                "failures": state.failures,
                "openUntil": format_time(until),
                "error": error,
            });
            (Change::BreakerOpened, "webhook.open_breaker", more)
        }
        Switched::Closed => {
            counter!(BREAKER_SWITCHES, "to" => "closed").increment(1);
            let more = json!({ "webhookId": webhook });
            (Change::BreakerClosed, "webhook.close_breaker", more)
        }
    }
}

fn log(webhook: &Webhook, state: &EndpointState, disabled: bool, error: Option<&str>) {
    let (webhook, failures) = (webhook.id, state.failures);
    match state.open_until() {
        _ if disabled => {
            tracing::warn!(%webhook, error, "webhook disabled: nothing but failures for too long");
        }
        Some(until) => {
            tracing::warn!(%webhook, failures, %until, error, "breaker open: nothing is sent for a while");
        }
        None => tracing::info!(%webhook, "breaker closed: the endpoint is sent to again"),
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
    if let (WebhookStatus::Error { error }, Some(data)) = (&webhook.status, data.as_object_mut()) {
        data.insert("error".to_owned(), json!(error));
    }
    DomainEvent {
        response: None,
        id,
        event_type: format!("webhook.{}", change.change.as_str()),
        subject: webhook.id.to_string(),
        time: now,
        aggregate_version: change.version,
        context,
        data,
    }
}
