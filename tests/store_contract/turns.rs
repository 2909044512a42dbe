//! The turns of ordered deliveries whose source stream is no more.

use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus, LanePlace, Webhook},
    interfaces::{FirstRecord, LaneClaim},
    values::LaneKey,
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, sorted},
    samples::{at, delivery, first_attempt, parked},
};

both!(what_is_put_ahead_goes_first_in_the_order_that_it_had);

fn in_lane(hook: &Webhook, key: &str, turn: i64) -> Delivery {
    Delivery {
        lane: Some(LanePlace {
            key: LaneKey::new(key),
            turn,
            blocks: false,
        }),
        ..delivery(hook, turn)
    }
}

fn exhausted(hook: &Webhook, key: &str, turn: i64) -> FirstRecord {
    first_attempt(&in_lane(hook, key, turn), DeliveryStatus::Exhausted)
}

async fn park(database: &Database, hook: &Webhook, places: &[(&str, i64)]) {
    let places = places.iter();
    let records = places.map(|(key, turn)| parked(&in_lane(hook, key, *turn)));
    database.record_first(records.collect()).await;
}

async fn what_is_put_ahead_goes_first_in_the_order_that_it_had(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 7), ("a", 90), ("b", 80), ("b", 5)]).await;
    let mut blocker = exhausted(&hook, "c", 95);
    blocker.delivery.block_lane();
    let done = exhausted(&hook, "c", 99);
    database.record_first(vec![blocker.clone(), done]).await;
    database
        .record_first(vec![parked(&delivery(&hook, 98))])
        .await;
    let id = |key: &str, turn| in_lane(&hook, key, turn).id;
    let highest = async |limit| {
        let turns = database.store.highest_turns(limit).await;
        turns.expect("they are looked for")
    };
    let former = highest(3).await;
    assert_eq!(
        former,
        [(id("c", 95), 95), (id("a", 90), 90), (id("b", 80), 80)]
    );
    let ids: Vec<_> = former.iter().map(|(id, _)| *id).collect();

    for expected in [3, 0] {
        let count = database.store.put_ahead(&ids).await;
        assert_eq!(count.expect("they are put"), expected);
    }

    assert_eq!(highest(9).await, [(id("a", 7), 7), (id("b", 5), 5)]);
    let stored = database
        .stored(&blocker.delivery)
        .await
        .expect("it is there");
    assert!(stored.blocks());
    park(database, &hook, &[("c", 1)]).await;
    let claim = LaneClaim {
        now: at(100),
        lease_until: at(60_000),
        lanes: 10,
        per_lane: 10,
        floor: 6,
        exclude: Vec::new(),
        only: None,
    };
    let claimed = database.store.claim_lanes(&claim).await.expect("it claims");
    let turns = claimed.lanes.iter().map(|lane| {
        let turns = lane.iter().map(|one| one.delivery.lane_turn());
        turns.map(Option::unwrap_or_default).collect::<Vec<i64>>()
    });
    let ahead = |turn: i64| turn - LanePlace::AHEAD;
    let expected = [vec![ahead(80), 5], vec![ahead(90)]];
    assert_eq!(sorted(turns), expected);
}
