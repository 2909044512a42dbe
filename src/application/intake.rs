//! The fast lane: pulls events, matches them, makes the first attempts at once, and hands the outcomes
//! to the recorder. A message is acknowledged only when everything about it is recorded and told.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::{counter, histogram};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::{Attempt, Delivery, DeliveryStatus},
        events::BusinessEvent,
        interfaces::{Store, StoreError},
        values::{DeliveryId, TenantId},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{EVENTS, LOOP_FAULTS, MATCHES, STORE_SECONDS},
    },
};

use super::{
    dead_letters,
    deliver::Deliverer,
    delivery_events,
    first_attempt::FirstAttempt,
    health::Health,
    in_hand::{InHand, Room},
    normalise::{Normaliser, Unreadable},
    patience::until_done,
    ports::{Clock, DeadLetter, EventPublisher, MessageSource, Settle, SourceMessage},
    recorder::{Outcome, Outcomes},
    registry::{CompiledWebhook, Registry, Snapshot},
};

/// Messages in one pull at most.
pub const MAX_PULL: usize = 500;
/// Deliveries of the fast lane in hand at a time: under way, waiting for a slot, or being recorded.
pub const MAX_DELIVERIES_IN_HAND: usize = 4096;
/// How long a message rests whose event is in hand already.
const DUPLICATE_REST: Duration = Duration::from_secs(2);
/// How long the loop waits after a fault of the bus.
const FAULT_WAIT: Duration = Duration::from_secs(1);

/// Bounds of what this worker has in hand.
#[derive(Debug, Clone, Copy)]
pub struct IntakeLimits {
    /// Events that are taken and not yet settled.
    pub events: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The fast lane's ports.
pub struct Intake {
    /// Where events come from.
    pub source: Arc<dyn MessageSource>,
    /// Reads them.
    pub normaliser: Normaliser,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// What is recorded already.
    pub store: Arc<dyn Store>,
    /// For dead letters.
    pub publisher: Arc<dyn EventPublisher>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the attempts.
    pub deliverer: Arc<Deliverer>,
    /// Takes what came of them.
    pub outcomes: Outcomes,
    /// What this worker has in hand.
    pub in_hand: Arc<InHand>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
    /// Bounds.
    pub limits: IntakeLimits,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

type Message = (SourceMessage, Box<dyn Settle>);

/// An event that somebody wants, with the message that it came in.
struct Wanted {
    event: Arc<BusinessEvent>,
    webhooks: Vec<(DeliveryId, Arc<CompiledWebhook>)>,
    is_redelivery: bool,
    size: usize,
    message: Box<dyn Settle>,
}

/// What bounds the events in hand.
struct Permits {
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    deliveries: Arc<Semaphore>,
    all_bytes: usize,
}

impl Permits {
    fn new(limits: IntakeLimits) -> Self {
        Self {
            events: Arc::new(Semaphore::new(limits.events)),
            bytes: Arc::new(Semaphore::new(limits.bytes)),
            deliveries: Arc::new(Semaphore::new(MAX_DELIVERIES_IN_HAND)),
            all_bytes: limits.bytes,
        }
    }

    /// Room for one event of this size; one that is larger than all room takes all of it.
    async fn room(&self, size: usize) -> Option<Room> {
        let events = Arc::clone(&self.events).acquire_owned().await.ok()?;
        let bytes = u32::try_from(size.clamp(1, self.all_bytes)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        Some((events, bytes))
    }
}

impl Intake {
    /// Takes events until the group is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("intake", Arc::new(self).run(group.clone()));
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let permits = Permits::new(self.limits);
        loop {
            self.health.beat("intake");
            tokio::select! {
                () = stopping.cancelled() => return,
                // Room first, then a pull.
                room = permits.events.acquire() => drop(room),
            }
            let max = permits.events.available_permits().clamp(1, MAX_PULL);
            let pulled = tokio::select! {
                () = stopping.cancelled() => return,
                pulled = self.source.pull(max) => pulled,
            };
            match pulled {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => {
                    if self.take(messages, &group, &permits).await.is_none() {
                        return;
                    }
                }
                Err(error) => {
                    counter!(LOOP_FAULTS, "loop" => "intake").increment(1);
                    tracing::warn!(error = %Chain(&error), "events could not be pulled");
                    tokio::select! {
                        () = stopping.cancelled() => return,
                        () = tokio::time::sleep(FAULT_WAIT) => {}
                    }
                }
            }
        }
    }

    /// Takes a pull; `None` when the worker is stopping, and what is left of it comes again.
    async fn take(
        self: &Arc<Self>,
        messages: Vec<Message>,
        group: &Group,
        permits: &Permits,
    ) -> Option<()> {
        let stopping = group.stopping();
        // After the pull: a webhook whose creation was answered before an event was published is in.
        let Some(snapshot) = self.snapshot(&stopping).await else {
            give_back(&messages).await;
            return None;
        };
        let mut wanted = Vec::with_capacity(messages.len());
        for (message, settle) in messages {
            wanted.extend(self.sort_out(message, settle, &snapshot, group).await);
        }
        let recorded = self.recorded(&wanted, &stopping).await;
        let mut wanted = wanted.into_iter();
        if let Some(recorded) = &recorded {
            for one in wanted.by_ref() {
                if self.dispatch(one, recorded, group, permits).await.is_none() {
                    break;
                }
            }
        }
        // Stopping in the middle: the rest comes again at once, here or elsewhere.
        for one in wanted {
            rest(one.message.as_ref(), Duration::ZERO).await;
        }
        (!stopping.is_cancelled()).then_some(())
    }

    async fn snapshot(&self, stopping: &CancellationToken) -> Option<Arc<Snapshot>> {
        let refresh = || self.registry.refresh();
        until_done(
            stopping,
            "read the registry",
            |_: &StoreError| false,
            refresh,
        )
        .await?
        .ok()
    }

    /// Reads and matches one message; settles it at once when nobody wants it.
    async fn sort_out(
        self: &Arc<Self>,
        message: SourceMessage,
        settle: Box<dyn Settle>,
        snapshot: &Snapshot,
        group: &Group,
    ) -> Option<Wanted> {
        let event = match self.normaliser.event(&message) {
            Ok(event) => event,
            Err(unreadable) => {
                let this = Arc::clone(self);
                group.spawn("dead letter", async move {
                    this.bury(message, &unreadable, settle.as_ref()).await;
                });
                return None;
            }
        };
        counter!(EVENTS, "result" => "accepted").increment(1);
        let webhooks: Vec<_> = snapshot
            .matches(&event.meta)
            .into_iter()
            .map(|webhook| {
                let id = DeliveryId::derive(webhook.id, &event.meta.tenant, &event.meta.id);
                (id, webhook)
            })
            .collect();
        if webhooks.is_empty() {
            acknowledge(settle.as_ref()).await;
            return None;
        }
        counter!(MATCHES).increment(webhooks.len() as u64);
        Some(Wanted {
            event: Arc::new(event),
            webhooks,
            is_redelivery: message.deliveries > 1,
            size: message.body.len(),
            message: settle,
        })
    }

    async fn recorded(
        &self,
        wanted: &[Wanted],
        stopping: &CancellationToken,
    ) -> Option<HashMap<DeliveryId, (Delivery, Option<Attempt>)>> {
        let ids: Vec<DeliveryId> = wanted
            .iter()
            .flat_map(|one| one.webhooks.iter().map(|(id, _)| *id))
            .collect();
        if ids.is_empty() {
            return Some(HashMap::new());
        }
        let start = std::time::Instant::now();
        let read = || self.store.recorded(&ids);
        let rows = until_done(stopping, "read deliveries", |_: &StoreError| false, read).await?;
        histogram!(STORE_SECONDS, "operation" => "recorded").record(start.elapsed().as_secs_f64());
        let rows = rows.unwrap_or_default();
        Some(rows.into_iter().map(|row| (row.0.id, row)).collect())
    }

    /// Starts the first attempts of an event; `None` when the worker is stopping.
    async fn dispatch(
        self: &Arc<Self>,
        wanted: Wanted,
        recorded: &HashMap<DeliveryId, (Delivery, Option<Attempt>)>,
        group: &Group,
        permits: &Permits,
    ) -> Option<()> {
        let Wanted {
            event,
            webhooks,
            is_redelivery,
            size,
            message,
        } = wanted;
        let (old, new): (Vec<_>, Vec<_>) = webhooks
            .into_iter()
            .partition(|(id, _)| recorded.contains_key(id));
        let ids: Vec<DeliveryId> = new.iter().map(|(id, _)| *id).collect();
        if !self.in_hand.take(&ids) {
            // The same event in another message: that one is recorded first.
            rest(message.as_ref(), DUPLICATE_REST).await;
            return Some(());
        }
        let stopping = group.stopping();
        let room = tokio::select! {
            room = permits.room(size) => room,
            () = stopping.cancelled() => None,
        };
        let Some(room) = room else {
            self.in_hand.release(&ids);
            rest(message.as_ref(), Duration::ZERO).await;
            return None;
        };
        let ticket = self.in_hand.ticket(message, old.len() + new.len(), room);
        for (id, _) in &old {
            let again = is_redelivery.then(|| recorded.get(id)).flatten();
            let announce = again.and_then(|row| announcement(row, &event));
            self.hand_in(Outcome::Again {
                announce,
                ticket: Arc::clone(&ticket),
            })
            .await;
        }
        for (id, webhook) in new {
            let permit = tokio::select! {
                permit = Arc::clone(&permits.deliveries).acquire_owned() => permit.ok()?,
                // The ticket stays open: the message is given back with all others in hand.
                () = stopping.cancelled() => return None,
            };
            let (this, event, ticket) = (Arc::clone(self), Arc::clone(&event), Arc::clone(&ticket));
            group.spawn("first attempt", async move {
                let first = FirstAttempt {
                    id,
                    webhook: &webhook,
                    event: &event,
                };
                if let Some((record, announce)) =
                    first.make(&this.deliverer, this.clock.as_ref()).await
                {
                    this.hand_in(Outcome::First {
                        record,
                        announce,
                        ticket,
                        permit,
                    })
                    .await;
                }
            });
        }
        Some(())
    }

    async fn hand_in(&self, outcome: Outcome) {
        // The recorder outlives the intake; if it is gone, the message comes again.
        drop(self.outcomes.send(outcome).await);
    }

    async fn bury(&self, message: SourceMessage, unreadable: &Unreadable, settle: &dyn Settle) {
        counter!(EVENTS, "result" => "dead_letter").increment(1);
        let tenant = message
            .header("X-Tenant-Id")
            .and_then(|name| TenantId::try_new(name).ok());
        let tenant = tenant.unwrap_or_else(|| self.normaliser.default_tenant.clone());
        let letter = DeadLetter {
            kind: "events",
            reason: unreadable.to_string(),
            tenant: tenant.to_string(),
            subject: message.subject,
            stream: self.normaliser.stream.clone(),
            sequence: message.sequence,
            published_at: message.published_at,
            headers: message.headers,
            body: message.body,
        };
        let now = self.clock.now();
        let publisher = self.publisher.as_ref();
        if let Err(error) = dead_letters::bury(publisher, &letter, &tenant, now, settle).await {
            tracing::warn!(error = %Chain(&error), "a dead letter was not kept, the message comes again");
            rest(settle, Duration::from_secs(5)).await;
        }
    }
}

/// A delivery that was recorded as a success of its first attempt is told again; everything else went
/// through the outbox.
fn announcement(
    (delivery, attempt): &(Delivery, Option<Attempt>),
    event: &BusinessEvent,
) -> Option<crate::domain::interfaces::OutboxRow> {
    let first = delivery.status == DeliveryStatus::Delivered
        && delivery.attempt_count == 1
        && delivery.event_version == 1;
    let attempt = attempt.as_ref().filter(|_| first)?;
    let told = delivery_events::triggered(delivery, attempt, event.meta.traceparent.as_deref());
    Some(delivery_events::to_row(&told))
}

async fn acknowledge(message: &dyn Settle) {
    if let Err(error) = message.ack().await {
        tracing::debug!(error = %Chain(&error), "a message was not acknowledged and will come again");
    }
}

async fn rest(message: &dyn Settle, delay: Duration) {
    if let Err(error) = message.nak(delay).await {
        tracing::debug!(error = %Chain(&error), "a message was not given back and will come again");
    }
}

async fn give_back(messages: &[Message]) {
    for (_, message) in messages {
        rest(message.as_ref(), Duration::ZERO).await;
    }
}
