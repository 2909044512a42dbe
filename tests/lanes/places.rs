//! How many lanes a webhook has in hand, for how long, and how often the database is asked for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_worker::domain::entities::Webhook;
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use crate::world::{Does, World, until};

#[tokio::test]
async fn an_endpoint_that_is_slow_leaves_places_to_the_others() {
    let world = World::new(|n| if n < 1_000 { Does::Hang } else { Does::Answer }).await;
    world.floor.value.store(2_000, Ordering::SeqCst);
    let others = world.fixture.create(8, &["order.*"]).await;
    let keys: Vec<String> = (1..=300).map(|n| format!("key {n}")).collect();
    let slow = (1..).zip(&keys);
    let slow = slow.map(|(n, key)| world.waiting(n, Some(key), 0));
    world.park(slow.collect()).await;
    let other = world.waiting_for(&others, 1_000, Some("a"), 0);
    world.park(vec![other]).await;

    world.start();

    let is_sent = || world.endpoint.got().contains(&1_000);
    until("the other one has its turn", is_sent).await;
    let claimed = "SELECT count(*) FROM deliveries WHERE lease_epoch > 0";
    let claimed = world.count(claimed).await;
    assert!(claimed < 64, "{claimed} are");
    world.endpoint.let_go.send_replace(true);
    world.until_delivered(301).await;
}

#[tokio::test]
async fn a_lane_that_takes_long_waits_for_its_turn_again() {
    let mut world = World::new(|_| Does::Answer).await;
    world.stretch = Duration::ZERO;
    world.floor.value.store(10, Ordering::SeqCst);
    let lane = [1, 2, 3].map(|n| world.waiting(n, Some("a"), 0));
    world.park(lane.into()).await;

    world.start();

    world.until_delivered(3).await;
    assert_eq!(world.endpoint.got(), [1, 2, 3]);
    // One for each claim, each time that it was given back, and the record.
    let epoch = "SELECT lease_epoch FROM deliveries WHERE lane_turn = 3";
    assert_eq!(world.count(epoch).await, 6);
}

/// Counts what takes the store how long.
#[derive(Default)]
struct Statements {
    claims: Arc<Count>,
    claims_of_lanes: Arc<Count>,
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl HistogramFn for Count {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder for Statements {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let operation = key.labels().find(|label| label.key() == "operation");
        match operation.map(metrics::Label::value) {
            Some("claim") => Histogram::from_arc(Arc::clone(&self.claims)),
            Some("claim_lanes") => Histogram::from_arc(Arc::clone(&self.claims_of_lanes)),
            _ => Histogram::noop(),
        }
    }
}

#[tokio::test]
async fn however_many_endpoints_are_down_they_are_probed_by_one_claim() {
    let statements = Statements::default();
    // The test has one thread.
    let _guard = metrics::set_default_local_recorder(&statements);
    let world = World::new(|_| Does::Answer).await;
    world.floor.value.store(100, Ordering::SeqCst);
    let mut webhooks: Vec<Webhook> = Vec::new();
    for number in 100..130 {
        let webhook = world.fixture.create(number, &["order.*"]).await;
        world.open_breaker_of(&webhook).await;
        webhooks.push(webhook);
    }
    world.start();
    let held = || world.breakers.held(world.store_now()).len() == webhooks.len();
    until("all may be tried", held).await;

    let (claims, lanes) = (statements.claims.get(), statements.claims_of_lanes.get());
    until("both lanes have looked", || {
        statements.claims.get() >= claims + 8 && statements.claims_of_lanes.get() >= lanes + 8
    })
    .await;
    let asked = statements.claims_of_lanes.get() - lanes;
    assert!(asked < 60, "{asked} claims find nothing");

    let lanes = statements.claims_of_lanes.get();
    let probes = webhooks.iter().zip(1..);
    let probes = probes.map(|(webhook, n)| world.waiting_for(webhook, n, Some("a"), 0));
    world.park(probes.collect()).await;
    world.until_got(webhooks.len()).await;
    let asked = statements.claims_of_lanes.get() - lanes;
    assert!(asked < webhooks.len(), "{asked} claims for as many probes");
    world.until_closed().await;
}
