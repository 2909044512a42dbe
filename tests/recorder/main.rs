//! What the recorder tells is what the store holds, whoever recorded it; over SQLite.

mod relay;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use integration_worker::{
    application::{
        in_hand::InHand,
        leases::Leases,
        ports::{BusError, DeadLetter, EventPublisher, Settle},
        recorder::{Outcome, Outcomes, Recorder},
        wakers::Wakers,
    },
    domain::{
        entities::{Attempt, Batching, Delivery, DeliveryStatus},
        events::{BusinessEvent, EventMeta, Payload},
        interfaces::{DeliveryStore as _, FirstRecord, OutboxRow, RecordBatch, Store, StoredEvent},
        values::{DeliveryId, TenantId, Timestamp, WebhookId},
    },
    infrastructure::sqlite::SqliteStore,
    shared::lifecycle::{Alarm, Group},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

const NOW: Timestamp = chrono::DateTime::UNIX_EPOCH;

/// Remembers what it was given.
#[derive(Default)]
struct Told(Mutex<Vec<Uuid>>);

#[async_trait]
impl EventPublisher for Told {
    async fn publish(&self, rows: &[OutboxRow]) -> Result<(), BusError> {
        self.0
            .lock()
            .expect("it works")
            .extend(rows.iter().map(|row| row.id));
        Ok(())
    }

    async fn dead_letter(&self, _: &DeadLetter) -> Result<(), BusError> {
        Ok(())
    }
}

/// Remembers how it was settled.
#[derive(Default)]
struct Message(Arc<Mutex<Vec<&'static str>>>);

#[async_trait]
impl Settle for Message {
    async fn ack(&self) -> Result<(), BusError> {
        self.0.lock().expect("it works").push("ack");
        Ok(())
    }

    async fn progress(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn nak(&self, _: std::time::Duration) -> Result<(), BusError> {
        self.0.lock().expect("it works").push("nak");
        Ok(())
    }

    async fn terminate(&self) -> Result<(), BusError> {
        Ok(())
    }
}

fn event() -> Arc<BusinessEvent> {
    let raw = Bytes::from_static(b"{}");
    Arc::new(BusinessEvent {
        meta: EventMeta {
            made_by: None,
            id: "e-1".to_owned(),
            event_type: "a.b".to_owned(),
            source: "/erp".to_owned(),
            subject: "a.b".to_owned(),
            time: NOW,
            tenant: TenantId::try_new("t").expect("it works"),
            correlation_id: None,
            trace: None,
            content_type: None,
            source_sequence: Some(1),
        },
        payload: Payload::Json(raw.clone()),
        raw,
    })
}

/// The delivery of that event as one worker has it: delivered, or failed and waiting.
fn record(is_delivered: bool) -> FirstRecord {
    let webhook_id = WebhookId(Uuid::from_u128(7));
    let tenant = TenantId::try_new("t").expect("it works");
    let error = (!is_delivered).then(|| "HTTP 500".to_owned());
    let event = event();
    FirstRecord {
        delivery: Delivery {
            id: DeliveryId::derive(webhook_id, &tenant, "e-1"),
            tenant,
            webhook_id,
            event_id: "e-1".to_owned(),
            event_type: "a.b".to_owned(),
            correlation_id: None,
            source_sequence: Some(1),
            status: if is_delivered {
                DeliveryStatus::Delivered
            } else {
                DeliveryStatus::Pending
            },
            attempt_count: 1,
            event_version: 1,
            budget_base: 0,
            next_attempt_at: (!is_delivered).then_some(NOW),
            error: error.clone(),
            created_at: NOW,
            completed_at: is_delivered.then_some(NOW),
            lane: None,
            batch: Batching::Alone,
        },
        attempt: Some(Attempt {
            number: 1,
            started_at: NOW,
            duration_ms: 1,
            status_code: Some(if is_delivered { 200 } else { 500 }),
            error,
            response: None,
        }),
        event: (!is_delivered).then(|| StoredEvent {
            meta: event.stored_meta(),
            raw: event.raw.clone(),
        }),
        events: Vec::new(),
    }
}

struct World {
    store: SqliteStore,
    told: Arc<Told>,
    in_hand: Arc<InHand>,
    outcomes: Outcomes,
    wakers: Arc<Wakers>,
    waits_for_token: bool,
    group: Group,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("it works");
        let store = SqliteStore::open(&folder.path().join("store.db"))
            .await
            .expect("it works");
        store.migrate().await.expect("it works");
        let (told, in_hand) = (Arc::<Told>::default(), Arc::<InHand>::default());
        let wakers = Arc::<Wakers>::default();
        let recorder = Recorder {
            store: Arc::new(store.clone()) as Arc<dyn Store>,
            publisher: Arc::<Told>::clone(&told),
            in_hand: Arc::clone(&in_hand),
            leases: Arc::<Leases>::default(),
            wakers: Arc::clone(&wakers),
            give_up: tokio_util::sync::CancellationToken::new(),
        };
        let group = Group::new("test", &Alarm::default());
        let outcomes = recorder.start(&group, 16);
        Self {
            store,
            told,
            in_hand,
            outcomes,
            wakers,
            waits_for_token: false,
            group,
            _folder: folder,
        }
    }

    /// Hands in a first record, lets the recorder end, and answers what was told and how the message
    /// was settled.
    async fn hand_in(self, record: FirstRecord, announce: Uuid) -> (Vec<Uuid>, Vec<&'static str>) {
        let settled = Arc::<Mutex<Vec<&'static str>>>::default();
        let room = Arc::new(Semaphore::new(3));
        let permit = || Arc::clone(&room).try_acquire_owned().expect("it works");
        let ticket = self.in_hand.ticket(Box::new(Message(Arc::clone(&settled))));
        ticket.expect(1, (permit(), permit()));
        ticket.done().await;
        let announce = OutboxRow {
            is_response: false,
            id: announce,
            event_type: "webhook.triggered".to_owned(),
            trace: None,
            body: Vec::new(),
        };
        let outcome = Outcome::First {
            record: Box::new(record),
            announce: Some(announce),
            event: event(),
            ticket,
            permit: permit(),
            recorded: None,
            waits_for_token: self.waits_for_token,
        };
        self.outcomes.send(outcome).await.expect("it works");
        drop(self.outcomes);
        assert!(
            self.group
                .shut_down(std::time::Duration::from_secs(10))
                .await
        );
        let settled = settled.lock().expect("it works").clone();
        assert_eq!(room.available_permits(), 3, "all room is given back");
        (self.told.0.lock().expect("it works").clone(), settled)
    }
}

fn batch(first: FirstRecord) -> RecordBatch {
    RecordBatch {
        first: vec![first],
        leased: Vec::new(),
    }
}

#[tokio::test]
async fn what_is_new_is_told_and_acknowledged() {
    let world = World::new().await;
    let id = Uuid::from_u128(1);

    assert_eq!(
        world.hand_in(record(true), id).await,
        (vec![id], vec!["ack"])
    );
}

#[tokio::test]
async fn a_success_is_not_told_when_another_worker_has_recorded_a_failure() {
    let world = World::new().await;
    world
        .store
        .record(&batch(record(false)))
        .await
        .expect("it works");

    let (told, settled) = world.hand_in(record(true), Uuid::from_u128(1)).await;

    assert!(told.is_empty(), "{told:?}");
    assert_eq!(
        settled,
        ["ack"],
        "the failure goes its own way through the outbox"
    );
}

#[tokio::test]
async fn a_success_that_another_worker_has_recorded_is_told_as_that_one() {
    let world = World::new().await;
    let before = record(true);
    let expected = before.delivery.id.event_id(1);
    world.store.record(&batch(before)).await.expect("it works");

    let (told, settled) = world.hand_in(record(true), Uuid::from_u128(1)).await;

    assert_eq!(told, [expected]);
    assert_eq!(settled, ["ack"]);
}

#[tokio::test]
async fn the_parked_lane_is_woken_for_what_waits_for_a_token_whatever_its_error_says() {
    use futures_util::FutureExt as _;

    for waits_for_token in [false, true] {
        let mut world = World::new().await;
        world.waits_for_token = waits_for_token;
        let wakers = Arc::clone(&world.wakers);
        let mut first = record(false);
        first.delivery.error = Some("waiting for the webhook's rate limit".to_owned());
        if waits_for_token {
            first.delivery.error = Some("something else".to_owned());
        }

        world.hand_in(first, Uuid::from_u128(1)).await;

        let is_woken = wakers.parked.notified().now_or_never().is_some();
        assert_eq!(is_woken, waits_for_token);
    }
}
