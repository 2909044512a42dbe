//! Which of several batches a worker is given, and what a claim looks for.

use integration_worker::domain::{
    entities::{Batching, Delivery, LanePlace, Webhook},
    interfaces::{BatchClaim, ClaimedBatch},
    values::LaneKey,
};

use crate::{
    batches::{all_numbers, claim, rule, ruled, set_rule, wait},
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, delivery, integration, parked, webhook},
};

both!(
    some_webhooks_are_asked_in_one_claim,
    enough_is_looked_for_where_it_is_asked_for,
    what_has_been_due_for_longest_goes_first,
    a_retried_delivery_moves_between_those_that_go_alone_and_together,
    batches_and_lanes_are_overdue_too,
);

async fn take(database: &Database, claim: &BatchClaim) -> Vec<ClaimedBatch> {
    let claimed = database.store.claim_batches(claim).await;
    claimed.expect("it claims").batches
}

async fn some_webhooks_are_asked_in_one_claim(database: &Database) {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..4).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (number, hook) in (0..).zip(&hooks[..3]) {
        wait(database, hook, number..=number).await;
    }
    let of = |places: &[usize]| BatchClaim {
        only: Some(places.iter().map(|place| hooks[*place].id).collect()),
        ..claim(at(100))
    };

    assert_eq!(take(database, &of(&[])).await, []);
    assert_eq!(take(database, &of(&[3])).await, []);
    let two = take(database, &of(&[0, 2, 3])).await;
    assert_eq!(all_numbers(&two), [[0], [2]]);
    assert_eq!(all_numbers(&take(database, &claim(at(100))).await), [[1]]);
}

async fn enough_is_looked_for_where_it_is_asked_for(database: &Database) {
    let hook = ruled(database, rule(2, 100_000)).await;
    wait(database, &hook, 50..52).await;
    let due_alone = |now| BatchClaim {
        enough: false,
        ..claim(at(now))
    };

    assert_eq!(take(database, &due_alone(49)).await, []);
    let batches = take(database, &claim(at(49))).await;
    assert_eq!(all_numbers(&batches), [[50, 51]]);
    wait(database, &hook, 60..63).await;
    let batches = take(database, &due_alone(60)).await;
    assert_eq!(all_numbers(&batches), [[60, 61]]);
}

async fn what_has_been_due_for_longest_goes_first(database: &Database) {
    let hook = ruled(database, rule(2, 100_000)).await;
    set_rule(database, hook.id, Some(rule(2, 100_000))).await;
    wait(database, &hook, 0..2).await;
    let made = take(database, &claim(at(10))).await.remove(0);
    let leases: Vec<_> = made.deliveries.iter().map(|one| one.lease).collect();
    let released = database.store.release(&leases, at(100)).await;
    released.expect("it is given back");
    wait(database, &hook, 50..52).await;
    wait(database, &hook, 150..152).await;

    for expected in [[50, 51], [0, 1], [150, 151]] {
        let batches = take(database, &claim(at(200))).await;
        assert_eq!(all_numbers(&batches), [expected]);
    }
}

async fn a_retried_delivery_moves_between_those_that_go_alone_and_together(database: &Database) {
    let hook = ruled(database, rule(2, 100_000)).await;
    let records = [parked(&delivery(&hook, 1)), parked(&delivery(&hook, 2))];
    database.record_first(records.to_vec()).await;
    let put = async |number, batch| {
        let one = delivery(&hook, number);
        database
            .work(async |work| {
                let found = work.delivery(&one.tenant, one.id).await;
                let (mut one, _) = found.expect("it reads").expect("it is there");
                one.retry(at(100)).expect("it can be retried");
                one.batch = batch;
                work.update_delivery(&one).await.expect("it is changed");
            })
            .await;
    };

    put(1, Batching::Waits).await;
    let batches = take(database, &claim(at(100))).await;
    assert_eq!(all_numbers(&batches), [[1]]);
    let alone = database.claim(&everything_due(at(100))).await;
    assert_eq!(alone.len(), 1);

    put(1, Batching::Alone).await;
    let alone = database.claim(&everything_due(at(100))).await;
    assert_eq!(alone.len(), 1);
    assert_eq!(alone[0].delivery.batch, Batching::Alone);
    assert_eq!(take(database, &claim(at(100))).await, []);
}

async fn batches_and_lanes_are_overdue_too(database: &Database) {
    let hook = our_webhook(database).await;
    let due = async |now| {
        let figures = database.store.stats(at(now)).await;
        figures.expect("it counts").oldest_due
    };
    wait(database, &hook, [30, 40, 90_000].into_iter()).await;
    assert_eq!(due(29).await, None);
    assert_eq!(due(100).await, Some(at(30)));

    // What is made is leased up to 60,100, and then due again.
    let batches = take(database, &claim(at(100))).await;
    assert_eq!(batches.len(), 1);
    assert_eq!(due(200).await, None);
    assert_eq!(due(70_000).await, Some(at(60_100)));

    let in_lane = |key: &str, turn, number| {
        let place = LanePlace {
            key: LaneKey::new(key),
            turn,
            blocks: false,
        };
        parked(&Delivery {
            lane: Some(place),
            ..delivery(&hook, number)
        })
    };
    // The second in its lane waits for the first, which is not due.
    let records = vec![
        in_lane("a", 1, 80_000),
        in_lane("a", 2, 5),
        in_lane("b", 1, 70),
        in_lane("c", 1, 60),
    ];
    database.record_first(records).await;
    assert_eq!(due(200).await, Some(at(60)));
}
