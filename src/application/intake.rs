//! The fast lane: pulls events, matches them, makes the first attempts at once, and hands the outcomes
//! to the recorder. A message is acknowledged only when everything about it is recorded and told.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::{counter, histogram};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::{Attempt, Delivery},
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
    fast_lane::FastLane,
    filters::{Match, matches},
    health::Health,
    in_hand::{InHand, Room, Ticket},
    normalise::{Normaliser, Unreadable},
    patience::until_done,
    ports::{Clock, DeadLetter, EventPublisher, MessageSource, Settle, SourceMessage},
    recorder::{Outcome, Outcomes},
    registry::{Registry, Snapshot},
};

/// Messages in one pull at most.
pub const MAX_PULL: usize = 500;
/// Deliveries of the fast lane in hand at a time: under way, waiting for a slot, or being recorded.
pub const MAX_DELIVERIES_IN_HAND: usize = 4096;
/// How long a message rests whose event is in hand already.
const DUPLICATE_REST: Duration = Duration::from_secs(2);
/// How long an event rests whose tenant has a webhook with patterns that cannot be read.
const HELD_REST: Duration = Duration::from_secs(15);
/// How long a message rests whose dead letter could not be kept.
const UNBURIED_REST: Duration = Duration::from_secs(5);
/// Deliveries that are looked up in one statement at most.
const MAX_LOOK_UP: usize = 5000;
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

type RecordedDelivery = (Delivery, Option<Attempt>);
type Message = (SourceMessage, Box<dyn Settle>);

/// An event that somebody wants, with the message that it came in.
struct Wanted {
    event: Arc<BusinessEvent>,
    webhooks: Vec<Match>,
    size: usize,
    /// Whether its deliveries are in hand for it, and not for the same event in another message.
    is_ours: bool,
    ticket: Arc<Ticket>,
}

impl Wanted {
    fn ids(&self) -> Vec<DeliveryId> {
        self.webhooks.iter().map(|one| one.id).collect()
    }
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

    /// Room for one event of this size; one that is larger than all room takes all of it. `None` when
    /// the worker is stopping.
    async fn room(&self, size: usize, stopping: &CancellationToken) -> Option<Room> {
        tokio::select! {
            room = self.wait(size) => room,
            () = stopping.cancelled() => None,
        }
    }

    async fn wait(&self, size: usize) -> Option<Room> {
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

    /// Takes a pull; `None` when the worker is stopping: what is open then is given back at the end.
    async fn take(
        self: &Arc<Self>,
        messages: Vec<Message>,
        group: &Group,
        permits: &Permits,
    ) -> Option<()> {
        let stopping = group.stopping();
        // First of all: from now on the bus is told that they are in hand, however long this takes.
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(message, settle)| (message, self.in_hand.ticket(settle)))
            .collect();
        // After the pull: a webhook whose creation was answered before an event was published is in.
        let snapshot = self.snapshot(&stopping).await?;
        let mut wanted = Vec::with_capacity(messages.len());
        for (message, ticket) in messages {
            match self.normaliser.event(&message) {
                Ok(event) => {
                    wanted.extend(self.sort_out(event, &message, ticket, &snapshot).await);
                }
                Err(unreadable) => {
                    let room = permits.room(message.body.len(), &stopping).await?;
                    self.spawn_burial(message, unreadable, ticket, room, group);
                }
            }
        }
        let recorded = self.recorded(&wanted, &stopping).await?;
        for one in wanted {
            self.dispatch(one, &recorded, group, permits).await?;
        }
        Some(())
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

    /// Matches one event, and takes its deliveries in hand. Settles the message at once when nobody
    /// wants it.
    async fn sort_out(
        &self,
        event: BusinessEvent,
        message: &SourceMessage,
        ticket: Arc<Ticket>,
        snapshot: &Snapshot,
    ) -> Option<Wanted> {
        if snapshot.holds(&event.meta.tenant) {
            ticket.rest(HELD_REST).await;
            return None;
        }
        counter!(EVENTS, "result" => "accepted").increment(1);
        let webhooks = matches(snapshot, &event);
        if webhooks.is_empty() {
            ticket.done().await;
            return None;
        }
        counter!(MATCHES).increment(webhooks.len() as u64);
        let ids: Vec<_> = webhooks.iter().map(|one| one.id).collect();
        Some(Wanted {
            event: Arc::new(event),
            webhooks,
            size: message.body.len(),
            // Before they are looked up: what another message records meanwhile is found then.
            is_ours: self.in_hand.take(&ids),
            ticket,
        })
    }

    async fn recorded(
        &self,
        wanted: &[Wanted],
        stopping: &CancellationToken,
    ) -> Option<HashMap<DeliveryId, RecordedDelivery>> {
        let ids: Vec<DeliveryId> = wanted.iter().flat_map(Wanted::ids).collect();
        let mut recorded = HashMap::new();
        for ids in ids.chunks(MAX_LOOK_UP) {
            let start = std::time::Instant::now();
            let read = || self.store.recorded(ids);
            let never = |_: &StoreError| false;
            let rows = until_done(stopping, "read deliveries", never, read).await?;
            histogram!(STORE_SECONDS, "operation" => "recorded")
                .record(start.elapsed().as_secs_f64());
            recorded.extend(rows.into_iter().flatten().map(|row| (row.0.id, row)));
        }
        Some(recorded)
    }

    /// Starts the first attempts of an event; `None` when the worker is stopping.
    async fn dispatch(
        self: &Arc<Self>,
        wanted: Wanted,
        recorded: &HashMap<DeliveryId, RecordedDelivery>,
        group: &Group,
        permits: &Permits,
    ) -> Option<()> {
        if !wanted.is_ours && wanted.ids().iter().any(|id| !recorded.contains_key(id)) {
            wanted.ticket.rest(DUPLICATE_REST).await;
            return Some(());
        }
        let stopping = group.stopping();
        let Wanted {
            event,
            webhooks,
            size,
            is_ours,
            ticket,
        } = wanted;
        let room = permits.room(size, &stopping).await?;
        ticket.expect(webhooks.len(), room);
        for one in webhooks {
            let id = one.id;
            if let Some((delivery, attempt)) = recorded.get(&id) {
                if is_ours {
                    self.in_hand.release([&id]);
                }
                // In case the worker that recorded it died before it told it.
                let announce = delivery_events::first_success(delivery, attempt.as_ref(), &event);
                let ticket = Arc::clone(&ticket);
                self.hand_in(Outcome::Again { announce, ticket }).await;
                continue;
            }
            let permit = tokio::select! {
                permit = Arc::clone(&permits.deliveries).acquire_owned() => permit.ok()?,
                () = stopping.cancelled() => return None,
            };
            let lane = FastLane {
                deliverer: Arc::clone(&self.deliverer),
                clock: Arc::clone(&self.clock),
                outcomes: self.outcomes.clone(),
                deliveries: Arc::clone(&permits.deliveries),
            };
            let (event, ticket) = (Arc::clone(&event), Arc::clone(&ticket));
            let attempt = Box::pin(lane.attempt(one, event, ticket, permit));
            // Boxed: it is large, and would be copied a few times on its way.
            group.spawn("first attempt", attempt);
        }
        ticket.done().await;
        Some(())
    }

    fn spawn_burial(
        self: &Arc<Self>,
        message: SourceMessage,
        unreadable: Unreadable,
        ticket: Arc<Ticket>,
        room: Room,
        group: &Group,
    ) {
        let this = Arc::clone(self);
        ticket.expect(0, room);
        group.spawn("dead letter", async move {
            this.bury(message, &unreadable, &ticket).await;
        });
    }

    async fn hand_in(&self, outcome: Outcome) {
        // The recorder outlives the intake; if it is gone, the message comes again.
        drop(self.outcomes.send(outcome).await);
    }

    async fn bury(&self, message: SourceMessage, unreadable: &Unreadable, ticket: &Ticket) {
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
        match dead_letters::bury(publisher, &letter, &tenant, now, ticket.message()).await {
            Ok(()) => ticket.close(),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "a dead letter was not kept, the message comes again");
                ticket.rest(UNBURIED_REST).await;
            }
        }
    }
}
