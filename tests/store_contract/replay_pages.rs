//! The pages of replays: they change everything or nothing.

use integration_worker::domain::{
    entities::{Batching, DeliveryStatus, LanePlace, ReplayCursor},
    interfaces::{
        Candidate, ClaimedReplay, PageDone, Reopened, ReplayLanes, ReplayPage, UnitOfWork,
    },
    values::{BatchId, LaneKey, Timestamp},
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    replays::{candidates, claim, claimed, context, deliver, told, update},
    samples::{at, delivery, first_attempt, new_id, parked, stored_event, under_lease},
};

both!(
    a_page_reopens_deliveries_under_leases_and_moves_the_replay,
    a_page_without_leases_leaves_its_deliveries_to_the_lanes,
    a_page_leaves_what_has_changed_meanwhile_alone,
    a_page_records_what_never_was_and_nothing_twice,
    a_page_under_a_lost_lease_or_of_a_cancelled_replay_changes_nothing,
    a_page_for_a_webhook_that_is_gone_changes_nothing,
    what_a_replay_sends_in_order_has_lanes_of_its_own_but_for_what_blocks_one,
    what_a_replay_sends_together_is_a_batch_of_its_own,
);

async fn record(
    database: &Database,
    claimed: &ClaimedReplay,
    page: &ReplayPage,
) -> Option<PageDone> {
    let done = database.store.record_page(claimed, page, at(3_000)).await;
    done.expect("it records")
}

fn reopened(candidate: Candidate) -> Reopened {
    let mut delivery = candidate.delivery;
    delivery.replay(at(3_000));
    Reopened {
        event: stored_event(delivery.source_sequence.unwrap_or_default()),
        delivery,
        epoch: candidate.epoch,
    }
}

fn page(reopened: Vec<Reopened>, lease_until: Option<Timestamp>) -> ReplayPage {
    ReplayPage {
        reopened,
        first: Vec::new(),
        skipped: 0,
        cursor: ReplayCursor::Sequence(9),
        lease_until,
    }
}

async fn a_page_reopens_deliveries_under_leases_and_moves_the_replay(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1, 2]).await;
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 10).await;
    let reopened: Vec<Reopened> = found.into_iter().map(reopened).collect();

    let done = record(database, &claimed, &page(reopened.clone(), Some(at(9_000)))).await;

    let PageDone { replay, leases } = done.expect("the lease holds");
    assert_eq!((replay.done, replay.skipped, replay.version), (2, 0, 2));
    assert_eq!(replay.cursor, Some(ReplayCursor::Sequence(9)));
    assert_eq!(leases.len(), 2);
    for one in &reopened {
        assert_eq!(
            database.stored(&one.delivery).await,
            Some(one.delivery.clone())
        );
        assert!(database.keeps_event(&one.delivery).await);
    }
    assert_eq!(told(database).await, ["webhook.replay_progressed"]);
    assert!(
        database.claim(&everything_due(at(8_999))).await.is_empty(),
        "leased"
    );
    let of_lease = |one: &&Reopened| one.delivery.id == leases[0].delivery_id;
    let held = reopened.iter().find(of_lease).expect("it is of the page");
    let held = under_lease(
        leases[0],
        &held.delivery,
        DeliveryStatus::Delivered,
        at(4_000),
    );
    assert_eq!(database.record_leased(vec![held]).await.len(), 1);
    let due = database.claim(&everything_due(at(9_000))).await;
    assert_eq!(due.len(), 1, "the lease of the other one has ended");
    let again = claim(database, 4_000).await.expect("it is free");
    assert_eq!(again.replay, replay);
}

async fn a_page_without_leases_leaves_its_deliveries_to_the_lanes(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1]).await;
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 10).await;
    let page = page(found.into_iter().map(reopened).collect(), None);

    let done = record(database, &claimed, &page)
        .await
        .expect("the lease holds");

    assert_eq!((done.replay.done, done.leases), (1, Vec::new()));
    let due = database.claim(&everything_due(at(3_000))).await;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].event, stored_event(1));
}

async fn a_page_leaves_what_has_changed_meanwhile_alone(database: &Database) {
    let hook = our_webhook(database).await;
    let records = [1, 2].map(|n| first_attempt(&delivery(&hook, n), DeliveryStatus::Exhausted));
    database.record_first(records.to_vec()).await;
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 10).await;
    let mut retried = records[0].delivery.clone();
    retried.retry(at(2_500)).expect("it can be retried");
    database
        .work(async |work: &mut dyn UnitOfWork| {
            work.update_delivery(&retried).await.expect("it updates");
        })
        .await;

    let page = page(found.into_iter().map(reopened).collect(), Some(at(9_000)));
    let done = record(database, &claimed, &page)
        .await
        .expect("the lease holds");

    assert_eq!((done.replay.done, done.replay.skipped), (1, 1));
    assert_eq!(done.leases.len(), 1);
    assert_eq!(database.stored(&retried).await, Some(retried));
}

async fn a_page_records_what_never_was_and_nothing_twice(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1]).await;
    let claimed = claimed(database, &hook).await;
    let page = ReplayPage {
        first: vec![
            parked(&delivery(&hook, 1)),
            parked(&delivery(&hook, 2)),
            first_attempt(&delivery(&hook, 3), DeliveryStatus::Exhausted),
        ],
        ..page(Vec::new(), Some(at(9_000)))
    };

    let done = record(database, &claimed, &page)
        .await
        .expect("the lease holds");

    assert_eq!((done.replay.done, done.replay.skipped), (2, 1));
    let leased: Vec<_> = done.leases.iter().map(|lease| lease.delivery_id).collect();
    assert_eq!(leased, [delivery(&hook, 2).id], "what waits is leased");
    assert!(database.claim(&everything_due(at(8_999))).await.is_empty());
    assert_eq!(database.claim(&everything_due(at(9_000))).await.len(), 1);
}

async fn a_page_under_a_lost_lease_or_of_a_cancelled_replay_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let before = deliver(database, &hook, &[1]).await.remove(0);
    let lost = claimed(database, &hook).await;
    let held = claim(database, 3_100).await.expect("the lease has ended");
    let found = candidates(database, &held.replay, 10).await;
    let page = page(found.into_iter().map(reopened).collect(), None);
    assert_eq!(record(database, &lost, &page).await, None);
    let mut ended = lost.replay.clone();
    let event = ended.complete(at(3_200));
    let written = database.store.end_replay(lost.lease, &ended, &event).await;
    assert!(!written.expect("it answers"));
    let mut cancelled = held.replay.clone();
    let event = cancelled.cancel(context(), at(3_300)).expect("it runs");
    assert!(event.is_some());
    update(database, &cancelled).await;

    assert_eq!(record(database, &held, &page).await, None);

    assert_eq!(database.stored(&before).await, Some(before));
    assert_eq!(told(database).await, Vec::<String>::new());
}

async fn a_page_for_a_webhook_that_is_gone_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let before = deliver(database, &hook, &[1]).await.remove(0);
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 10).await;
    database
        .work(async |work: &mut dyn UnitOfWork| {
            work.delete_webhook(hook.id, at(2_000))
                .await
                .expect("it goes");
        })
        .await;
    let page = ReplayPage {
        first: vec![parked(&delivery(&hook, 2))],
        ..page(found.into_iter().map(reopened).collect(), Some(at(9_000)))
    };

    assert_eq!(record(database, &claimed, &page).await, None);

    assert_eq!(database.stored(&before).await, Some(before));
    assert_eq!(database.stored(&delivery(&hook, 2)).await, None);
    assert_eq!(told(database).await, Vec::<String>::new());
}

async fn what_a_replay_sends_in_order_has_lanes_of_its_own_but_for_what_blocks_one(
    database: &Database,
) {
    let hook = our_webhook(database).await;
    let records = [(1, "a", true), (2, "b", false), (3, "b", false)].map(|(turn, key, blocks)| {
        let mut one = delivery(&hook, turn);
        one.lane = Some(LanePlace {
            key: LaneKey::new(key),
            turn,
            blocks: false,
        });
        let mut record = first_attempt(&one, DeliveryStatus::Exhausted);
        if blocks {
            record.delivery.block_lane();
        }
        record
    });
    database.record_first(records.to_vec()).await;
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 10).await;
    let reopened: Vec<Reopened> = found.into_iter().map(reopened).collect();
    let page = page(reopened.clone(), None);

    record(database, &claimed, &page).await.expect("it records");

    let mut keys = Vec::new();
    for one in &reopened {
        let stored = database.stored(&one.delivery).await.expect("it is there");
        assert_eq!(stored, one.delivery);
        let mut exhausted = stored.clone();
        exhausted.block_lane();
        keys.push((stored.lane_key().map(str::to_owned), exhausted.blocks()));
    }
    let key = |text: &str| Some(text.to_owned());
    assert_eq!(
        keys,
        [
            (key("a"), true),
            (key("replay:b"), false),
            (key("replay:b"), false)
        ]
    );
    for (now, limit, waiting, due) in [(3_000, 9, 2, 1), (2_999, 9, 2, 0), (3_000, 1, 1, 1)] {
        let lanes = database.store.replay_lanes(hook.id, at(now), limit).await;
        assert_eq!(lanes.expect("it counts"), ReplayLanes { waiting, due });
    }
}

async fn what_a_replay_sends_together_is_a_batch_of_its_own(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1, 2]).await;
    let mut live = delivery(&hook, 3);
    live.batch = Batching::Waits;
    database.record_first(vec![parked(&live)]).await;
    let claimed = claimed(database, &hook).await;
    let found = candidates(database, &claimed.replay, 2).await;
    let batch = Batching::In(BatchId(new_id()));
    let mut new = delivery(&hook, 4);
    new.batch = batch;
    let reopened = found.into_iter().map(reopened).map(|mut one| {
        one.delivery.batch = batch;
        one
    });
    let page = ReplayPage {
        first: vec![parked(&new)],
        ..page(reopened.collect(), None)
    };

    record(database, &claimed, &page).await.expect("it records");

    for number in [1, 2, 4] {
        let stored = database.stored(&delivery(&hook, number)).await;
        assert_eq!(stored.map(|one| one.batch), Some(batch), "{number}");
    }
    let stored = database.stored(&live).await;
    assert_eq!(stored.map(|one| one.batch), Some(Batching::Waits));
}
