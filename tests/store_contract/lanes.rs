//! Which ordered deliveries a worker is given, and in which order.

use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus, LanePlace, Webhook, WebhookStatus},
    interfaces::{
        ClaimedDelivery, ClaimedLanes, FirstRecord, Inserted, LaneClaim, LeasedRecord, UnitOfWork,
    },
    values::{LaneKey, Timestamp},
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, attempted, delivery, first_attempt, integration, parked, under_lease, webhook},
};

both!(
    a_lane_gives_its_foremost_deliveries_in_the_order_of_their_turns,
    lanes_are_left_alone_by_other_claims_and_the_others_by_claims_of_lanes,
    a_front_that_waits_holds_up_its_own_lane_only,
    a_front_that_is_leased_holds_up_its_lane_until_the_lease_ends,
    nothing_beyond_the_floor_is_claimed,
    a_delivery_that_comes_late_goes_first,
    an_exhausted_front_lets_the_lane_go_on_unless_it_blocks,
    a_lane_that_is_blocked_goes_on_after_a_retry_or_a_cancellation,
    the_blocked_lanes_of_a_webhook_can_all_be_let_go,
    only_webhooks_that_run_and_are_not_excluded_are_claimed_for,
    what_waits_in_lanes_is_cancelled_with_its_webhook,
    a_claim_for_one_webhook_takes_no_turn_of_the_others,
    a_claim_for_some_webhooks_takes_one_lane_of_each,
    fronts_above_the_floor_crowd_nobody_out,
);

pub(crate) const FAR: i64 = i64::MAX;

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

pub(crate) fn claim(now: Timestamp, floor: i64) -> LaneClaim {
    LaneClaim {
        now,
        lease_until: now + chrono::TimeDelta::seconds(60),
        lanes: 1_000,
        per_lane: 100,
        floor,
        exclude: Vec::new(),
        only: None,
    }
}

async fn take(database: &Database, claim: &LaneClaim) -> ClaimedLanes {
    database.store.claim_lanes(claim).await.expect("it claims")
}

pub(crate) async fn park(database: &Database, hook: &Webhook, places: &[(&str, i64)]) {
    let records: Vec<FirstRecord> = places
        .iter()
        .map(|(key, turn)| parked(&in_lane(hook, key, *turn)))
        .collect();
    database.record_first(records).await;
}

/// The lanes and turns of what was claimed, sorted by lane.
fn turns(claimed: &ClaimedLanes) -> Vec<(String, Vec<i64>)> {
    let place = |one: &ClaimedDelivery| one.delivery.lane.clone().expect("it has a place");
    let mut lanes: Vec<_> = claimed
        .lanes
        .iter()
        .map(|lane| {
            let key = place(&lane[0]).key;
            assert!(lane.iter().all(|one| place(one).key == key), "one lane");
            let turns = lane.iter().map(|one| place(one).turn).collect();
            (key.as_str().to_owned(), turns)
        })
        .collect();
    lanes.sort();
    lanes
}

fn lane(key: &str, turns: &[i64]) -> (String, Vec<i64>) {
    (key.to_owned(), turns.to_vec())
}

async fn a_lane_gives_its_foremost_deliveries_in_the_order_of_their_turns(database: &Database) {
    let hook = our_webhook(database).await;
    park(
        database,
        &hook,
        &[("a", 30), ("b", 21), ("a", 10), ("a", 20), ("a", 40)],
    )
    .await;
    let three = LaneClaim {
        per_lane: 3,
        ..claim(at(100), FAR)
    };

    let claimed = take(database, &three).await;

    assert_eq!(
        turns(&claimed),
        [lane("a", &[10, 20, 30]), lane("b", &[21])]
    );
    assert!(!claimed.above_floor);
    let first = &claimed
        .lanes
        .iter()
        .find(|lane| lane.len() == 3)
        .expect("a lane of three")[0];
    assert_eq!(first.delivery, in_lane(&hook, "a", 10));
    assert_eq!(Some(&first.event), parked(&first.delivery).event.as_ref());
    let next = take(database, &three).await;
    assert_eq!(turns(&next), []);
}

async fn lanes_are_left_alone_by_other_claims_and_the_others_by_claims_of_lanes(
    database: &Database,
) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 1)]).await;
    database
        .record_first(vec![parked(&delivery(&hook, 2))])
        .await;
    let stats = database.store.stats(at(100)).await.expect("it counts");
    assert_eq!(stats.parked, 2);

    let others = database.claim(&everything_due(at(100))).await;
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].delivery, delivery(&hook, 2));
    assert_eq!(
        turns(&take(database, &claim(at(100), FAR)).await),
        [lane("a", &[1])]
    );
}

async fn a_front_that_waits_holds_up_its_own_lane_only(database: &Database) {
    let hook = our_webhook(database).await;
    let failed = first_attempt(&in_lane(&hook, "a", 1), DeliveryStatus::Pending);
    let due = failed.delivery.next_attempt_at.expect("it is pending");
    database.record_first(vec![failed]).await;
    park(database, &hook, &[("a", 2), ("b", 3)]).await;

    assert_eq!(
        turns(&take(database, &claim(at(100), FAR)).await),
        [lane("b", &[3])]
    );
    assert_eq!(
        turns(&take(database, &claim(due, FAR)).await),
        [lane("a", &[1, 2])]
    );
}

async fn a_front_that_is_leased_holds_up_its_lane_until_the_lease_ends(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 1), ("a", 2), ("a", 3)]).await;
    let one = LaneClaim {
        per_lane: 1,
        ..claim(at(100), FAR)
    };
    let front = take(database, &one).await.lanes.remove(0).remove(0);
    assert_eq!(turns(&take(database, &claim(at(100), FAR)).await), []);

    let done = under_lease(
        front.lease,
        &front.delivery,
        DeliveryStatus::Delivered,
        at(200),
    );
    database.record_leased(vec![done]).await;
    assert_eq!(turns(&take(database, &one).await), [lane("a", &[2])]);
    let later = claim(one.lease_until, FAR);
    assert_eq!(turns(&take(database, &later).await), [lane("a", &[2, 3])]);
}

async fn nothing_beyond_the_floor_is_claimed(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 1), ("a", 5), ("b", 4)]).await;

    let below = take(database, &claim(at(100), 0)).await;
    assert_eq!((turns(&below), below.above_floor), (vec![], true));
    let some = take(database, &claim(at(100), 3)).await;
    assert_eq!(
        (turns(&some), some.above_floor),
        (vec![lane("a", &[1])], false)
    );
    let rest = take(database, &claim(at(100), 4)).await;
    assert_eq!(
        (turns(&rest), rest.above_floor),
        (vec![lane("b", &[4])], false)
    );
}

async fn a_delivery_that_comes_late_goes_first(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 7)]).await;
    assert_eq!(turns(&take(database, &claim(at(100), 5)).await), []);
    park(database, &hook, &[("a", 6)]).await;
    assert_eq!(
        turns(&take(database, &claim(at(100), 7)).await),
        [lane("a", &[6, 7])]
    );
}

fn exhausted(hook: &Webhook, key: &str, turn: i64, blocks: bool) -> FirstRecord {
    let mut record = first_attempt(&in_lane(hook, key, turn), DeliveryStatus::Exhausted);
    if blocks {
        record.delivery.block_lane();
    }
    record
}

async fn an_exhausted_front_lets_the_lane_go_on_unless_it_blocks(database: &Database) {
    let hook = our_webhook(database).await;
    database
        .record_first(vec![
            exhausted(&hook, "goes on", 1, false),
            exhausted(&hook, "stops", 2, true),
        ])
        .await;
    park(database, &hook, &[("goes on", 3), ("stops", 4)]).await;
    assert_eq!(
        turns(&take(database, &claim(at(100), FAR)).await),
        [lane("goes on", &[3])]
    );

    // The same under a lease, in the middle of a run.
    park(database, &hook, &[("later", 5), ("later", 6)]).await;
    let run = take(database, &claim(at(100), FAR)).await.lanes.remove(0);
    let (mut after, attempt) = attempted(&run[0].delivery, DeliveryStatus::Exhausted, at(200));
    after.block_lane();
    let record = LeasedRecord {
        lease: run[0].lease,
        delivery: after.clone(),
        attempt: Some(attempt),
        events: Vec::new(),
    };
    database.record_leased(vec![record]).await;
    let released = database.store.release(&[run[1].lease], at(200)).await;
    released.expect("it is given back");
    assert_eq!(database.stored(&after).await, Some(after.clone()));
    assert_eq!(turns(&take(database, &claim(at(300), FAR)).await), []);
}

async fn locked(work: &mut dyn UnitOfWork, delivery: &Delivery) -> Delivery {
    let found = work.delivery(&delivery.tenant, delivery.id).await;
    found.expect("it reads").expect("it is there").0
}

async fn a_lane_that_is_blocked_goes_on_after_a_retry_or_a_cancellation(database: &Database) {
    let hook = our_webhook(database).await;
    for (key, turn) in [("retried", 1), ("cancelled", 2)] {
        database
            .record_first(vec![exhausted(&hook, key, turn, true)])
            .await;
    }
    park(database, &hook, &[("retried", 3), ("cancelled", 4)]).await;
    assert_eq!(turns(&take(database, &claim(at(100), FAR)).await), []);
    database
        .work(async |work| {
            let mut one = locked(work, &in_lane(&hook, "retried", 1)).await;
            one.retry(at(100)).expect("it can be retried");
            work.update_delivery(&one).await.expect("it is updated");
            let mut one = locked(work, &in_lane(&hook, "cancelled", 2)).await;
            assert_eq!(one.cancel(at(100)), Ok(true));
            work.update_delivery(&one).await.expect("it is updated");
        })
        .await;
    let claimed = take(database, &claim(at(100), FAR)).await;
    assert_eq!(
        turns(&claimed),
        [lane("cancelled", &[4]), lane("retried", &[1, 3])]
    );
}

async fn the_blocked_lanes_of_a_webhook_can_all_be_let_go(database: &Database) {
    let one = integration("one");
    let hooks = [webhook(&one, "ours"), webhook(&one, "another")];
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (hook, key) in [(&hooks[0], "a"), (&hooks[0], "b"), (&hooks[1], "c")] {
        database
            .record_first(vec![exhausted(
                hook,
                key,
                1 + i64::from(key.as_bytes()[0]),
                true,
            )])
            .await;
        park(database, hook, &[(key, 200 + i64::from(key.as_bytes()[0]))]).await;
    }
    database
        .work(async |work| {
            let count = work.unblock_lanes(hooks[0].id, 10).await;
            assert_eq!(count.expect("they go on"), 2);
        })
        .await;
    let claimed = take(database, &claim(at(1_000), FAR)).await;
    assert_eq!(turns(&claimed), [lane("a", &[297]), lane("b", &[298])]);
}

async fn only_webhooks_that_run_and_are_not_excluded_are_claimed_for(database: &Database) {
    let one = integration("one");
    let mut hooks: Vec<Webhook> = (0..3).map(|n| webhook(&one, &format!("{n}"))).collect();
    hooks[1].status = WebhookStatus::Inactive;
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (hook, key) in hooks.iter().zip(["runs", "sleeps", "is excluded"]) {
        park(database, hook, &[(key, 1)]).await;
    }
    let without = LaneClaim {
        exclude: vec![hooks[2].id],
        ..claim(at(100), FAR)
    };
    assert_eq!(turns(&take(database, &without).await), [lane("runs", &[1])]);
    assert_eq!(
        turns(&take(database, &claim(at(100), FAR)).await),
        [lane("is excluded", &[1])]
    );

    assert!(hooks[1].activate("anna", at(60)).is_some());
    database
        .work(async |work| {
            let updated = work.update_webhook(&hooks[1]).await.expect("it is updated");
            assert_eq!(updated, Inserted::Yes);
        })
        .await;
    assert_eq!(
        turns(&take(database, &claim(at(100), FAR)).await),
        [lane("sleeps", &[1])]
    );
}

async fn a_claim_for_one_webhook_takes_no_turn_of_the_others(database: &Database) {
    let one = integration("one");
    let mut hooks: Vec<Webhook> = (0..3).map(|n| webhook(&one, &format!("{n}"))).collect();
    hooks.sort_by_key(|hook| hook.id);
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (hook, key) in hooks.iter().zip(["first", "second", "third"]) {
        park(database, hook, &[(key, 1)]).await;
    }
    let one_lane = LaneClaim {
        lanes: 1,
        ..claim(at(100), FAR)
    };
    let of_the_last = LaneClaim {
        only: Some(vec![hooks[2].id]),
        ..one_lane.clone()
    };
    let first = turns(&take(database, &one_lane).await);
    // Whoever begins anew finds this one.
    park(database, &hooks[0], &[("begins", 9)]).await;

    let last = turns(&take(database, &of_the_last).await);
    let next = turns(&take(database, &one_lane).await);

    assert_eq!(first, [lane("first", &[1])]);
    assert_eq!(last, [lane("third", &[1])]);
    assert_eq!(next, [lane("second", &[1])]);
}

async fn a_claim_for_some_webhooks_takes_one_lane_of_each(database: &Database) {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..4).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (hook, key) in hooks.iter().zip(["a", "b", "c"]) {
        let above = format!("{key} above");
        park(database, hook, &[(&above, 9), (key, 1), (key, 2), ("z", 3)]).await;
    }
    let some = LaneClaim {
        per_lane: 1,
        exclude: vec![hooks[1].id],
        only: Some(vec![hooks[0].id, hooks[1].id, hooks[2].id, hooks[3].id]),
        ..claim(at(100), 2)
    };

    let claimed = take(database, &some).await;

    assert_eq!(turns(&claimed), [lane("a", &[1]), lane("c", &[1])]);
    let again = take(database, &some).await;
    assert_eq!((turns(&again), again.above_floor), (vec![], true));
    let none = LaneClaim {
        only: Some(Vec::new()),
        ..some
    };
    let nobody = take(database, &none).await;
    assert_eq!((turns(&nobody), nobody.above_floor), (vec![], false));
}

async fn fronts_above_the_floor_crowd_nobody_out(database: &Database) {
    let hook = our_webhook(database).await;
    park(
        database,
        &hook,
        &[("a", 7), ("b", 8), ("below", 3), ("c", 9), ("also", 4)],
    )
    .await;
    let one_lane = LaneClaim {
        lanes: 1,
        ..claim(at(100), 5)
    };
    let probe = LaneClaim {
        only: Some(vec![hook.id]),
        ..one_lane.clone()
    };

    let mut got = turns(&take(database, &probe).await);
    got.extend(turns(&take(database, &one_lane).await));
    got.sort();

    assert_eq!(got, [lane("also", &[4]), lane("below", &[3])]);
    let rest = take(database, &one_lane).await;
    assert_eq!((turns(&rest), rest.above_floor), (vec![], true));
}

async fn what_waits_in_lanes_is_cancelled_with_its_webhook(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, &[("a", 1), ("b", 2)]).await;
    database
        .work(async |work| {
            work.delete_webhook(hook.id, at(50))
                .await
                .expect("it is deleted");
        })
        .await;
    // Parked by a worker that has not heard of it yet.
    park(database, &hook, &[("a", 3)]).await;

    assert_eq!(turns(&take(database, &claim(at(100), FAR)).await), []);

    for (key, turn) in [("a", 1), ("b", 2), ("a", 3)] {
        let stored = database.stored(&in_lane(&hook, key, turn)).await;
        assert_eq!(
            stored.map(|one| one.status),
            Some(DeliveryStatus::Cancelled)
        );
    }
}
