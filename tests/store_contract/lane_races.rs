//! Several workers on the same lanes at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use integration_worker::domain::{
    entities::DeliveryStatus,
    interfaces::{LaneClaim, RecordBatch, Store},
    values::LaneKey,
};
use tokio::task::JoinSet;

use crate::{
    deliveries::our_webhook,
    harness::Database,
    lanes::{FAR, claim, park},
    samples::{at, under_lease},
};

both!(concurrent_workers_never_change_the_order);

/// Works lanes off until nothing is left: delivers some, gives the rest back.
async fn work_off(
    store: Arc<dyn Store>,
    seen: Arc<std::sync::Mutex<Vec<(LaneKey, i64)>>>,
    left: Arc<AtomicUsize>,
) {
    let some = LaneClaim {
        lanes: 3,
        per_lane: 7,
        ..claim(at(10_000), FAR)
    };
    while left.load(Ordering::Acquire) > 0 {
        let claimed = store.claim_lanes(&some).await.expect("it claims");
        for run in claimed.lanes {
            let (done, rest) = run.split_at(run.len().div_ceil(2));
            for one in done {
                let place = one.delivery.lane.clone().expect("it has a place");
                seen.lock()
                    .expect("nobody panics")
                    .push((place.key, place.turn));
                let record = under_lease(
                    one.lease,
                    &one.delivery,
                    DeliveryStatus::Delivered,
                    at(20_000),
                );
                let batch = RecordBatch {
                    first: Vec::new(),
                    leased: vec![record],
                };
                let changed = store.record(&batch).await.expect("it is recorded");
                assert_eq!(changed.len(), 1, "the lease held");
                left.fetch_sub(1, Ordering::AcqRel);
            }
            let leases: Vec<_> = rest.iter().map(|one| one.lease).collect();
            store
                .release(&leases, at(9_000))
                .await
                .expect("they are given back");
        }
        tokio::task::yield_now().await;
    }
}

async fn concurrent_workers_never_change_the_order(database: &Database) {
    let hook = our_webhook(database).await;
    let keys = ["a", "b", "c", "d", "e"];
    let places: Vec<(&str, i64)> = (1..=200_i64)
        .zip(keys.iter().cycle())
        .map(|(turn, key)| (*key, turn))
        .collect();
    park(database, &hook, &places).await;
    let seen = Arc::default();
    let left = Arc::new(AtomicUsize::new(places.len()));

    let mut workers = JoinSet::new();
    for _ in 0..6 {
        workers.spawn(work_off(
            Arc::clone(&database.store),
            Arc::clone(&seen),
            Arc::clone(&left),
        ));
    }
    workers.join_all().await;

    let seen = seen.lock().expect("nobody panics");
    assert_eq!(seen.len(), places.len(), "each once");
    for key in keys {
        let turns: Vec<i64> = seen
            .iter()
            .filter(|(lane, _)| lane.as_str() == key)
            .map(|(_, turn)| *turn)
            .collect();
        assert!(turns.is_sorted(), "{key}: {turns:?}");
    }
}
