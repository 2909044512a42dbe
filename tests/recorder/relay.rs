//! The relay between a store and a bus that does not take everything; over SQLite.

use std::{
    future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use integration_worker::{
    application::{
        health::Health,
        ports::{BusError, DeadLetter, EventPublisher, Refusal},
        relay::{FAULT_WAIT, Relay},
        wakers::Wakers,
    },
    domain::{
        events::{Context, DomainEvent, MadeBy, Response},
        interfaces::{
            OutboxClaim, OutboxRow, OutboxStore as _, Queries as _, Store, UnitOfWorkFactory as _,
        },
        values::{TenantId, WebhookId},
    },
    infrastructure::{clock::SystemClock, sqlite::SqliteStore},
    shared::lifecycle::{Alarm, Group},
};
use serde_json::json;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of events made of answers.
#[derive(Clone, Copy)]
enum Responses {
    Hang,
    Refuse,
}

/// Takes the worker's own events, if it does.
struct Bus {
    takes_own: bool,
    responses: Responses,
    asked: Mutex<Vec<Instant>>,
}

#[async_trait]
impl EventPublisher for Bus {
    async fn publish(&self, _: &[OutboxRow]) -> Result<(), BusError> {
        self.asked.lock().expect("it works").push(Instant::now());
        if self.takes_own {
            return Ok(());
        }
        Err(BusError {
            what: "anything".to_owned(),
            source: "no".into(),
        })
    }

    async fn publish_each(&self, rows: &[OutboxRow]) -> Result<Vec<Refusal>, BusError> {
        if let Responses::Hang = self.responses {
            future::pending::<()>().await;
        }
        let refusal = |row: &OutboxRow| Refusal {
            id: row.id,
            subject: row.event_type.clone(),
            source: "no".into(),
        };
        Ok(rows.iter().map(refusal).collect())
    }

    async fn dead_letter(&self, _: &DeadLetter) -> Result<(), BusError> {
        Ok(())
    }
}

struct Running {
    store: SqliteStore,
    bus: Arc<Bus>,
    wakers: Arc<Wakers>,
    group: Group,
    _folder: tempfile::TempDir,
}

/// A relay, with one event of each kind to publish.
async fn relay(takes_own: bool, responses: Responses) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(&folder.path().join("store.db")).await;
    let store = store.expect("it is opened");
    store.migrate().await.expect("it has tables");
    let own = event(Uuid::from_u128(1), None);
    let made_by = MadeBy::after(None, WebhookId(Uuid::nil())).expect("the first");
    let data = "{}".to_owned();
    let made = event(Uuid::from_u128(2), Some(Response { made_by, data }));
    let mut work = store.begin().await.expect("it begins");
    work.add_events(&[made, own]).await.expect("they are in");
    work.commit().await.expect("it is committed");
    let bus = Arc::new(Bus {
        takes_own,
        responses,
        asked: Mutex::default(),
    });
    let (wakers, group) = (
        Arc::<Wakers>::default(),
        Group::new("test", &Alarm::default()),
    );
    Relay {
        store: Arc::new(store.clone()) as Arc<dyn Store>,
        publisher: Arc::<Bus>::clone(&bus),
        clock: Arc::new(SystemClock::new()),
        wakers: Arc::clone(&wakers),
        health: Arc::<Health>::default(),
    }
    .start(&group);
    Running {
        store,
        bus,
        wakers,
        group,
        _folder: folder,
    }
}

fn event(id: Uuid, response: Option<Response>) -> DomainEvent {
    DomainEvent {
        id,
        event_type: "a.b".to_owned(),
        subject: "s".to_owned(),
        time: chrono::DateTime::UNIX_EPOCH,
        aggregate_version: 1,
        context: Context {
            tenant: TenantId::try_new("t").expect("a tenant"),
            actor: "system".to_owned(),
            correlation_id: "c".to_owned(),
            causation_id: "e".to_owned(),
            trace: None,
        },
        data: json!({}),
        response,
    }
}

async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_answer_holds_neither_the_workers_own_events_nor_its_lease_up() {
    let running = relay(true, Responses::Hang).await;
    let now = chrono::DateTime::UNIX_EPOCH;
    eventually(async || {
        let stats = running.store.stats(now).await.expect("it counts");
        (stats.outbox, stats.responses) == (0, 1)
    })
    .await;
    assert!(running.group.shut_down(Duration::from_secs(5)).await);
    let claim = OutboxClaim {
        holder: Uuid::from_u128(9),
        now,
        lease: Duration::from_secs(30),
        responses: true,
        limit: 10,
        max_bytes: 1,
    };
    let rows = running.store.outbox_batch(claim).await.expect("it reads");
    assert_eq!(rows.expect("the lease is given up").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_waited_out_however_much_is_committed_meanwhile() {
    let running = relay(false, Responses::Refuse).await;
    let asked = || running.bus.asked.lock().expect("it works").clone();
    eventually(async || {
        running.wakers.outbox.notify_one();
        asked().len() >= 3
    })
    .await;
    let asked = asked();
    assert!(asked[2] - asked[0] >= 2 * FAULT_WAIT, "{asked:?}");
    let stats = running.store.stats(chrono::DateTime::UNIX_EPOCH).await;
    let stats = stats.expect("it counts");
    assert_eq!((stats.outbox, stats.responses), (1, 1));
}
