//! Exhausted deliveries that hold up those behind them in their lanes.

use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus, LanePlace, Webhook},
    interfaces::{Blocker, FirstRecord, LaneClaim},
    values::{LaneKey, WebhookId},
};

use crate::{
    deliveries::our_webhook,
    harness::Database,
    samples::{at, delivery, first_attempt, integration, ours, parked, webhook},
};

both!(
    webhooks_with_blocked_lanes_are_listed_in_pieces_even_when_they_are_gone,
    lanes_are_let_go_in_pieces,
    the_front_of_a_lane_is_the_first_that_waits_or_blocks,
    what_blocks_a_lane_is_not_pruned_however_old_it_is,
    nothing_blocks_the_lanes_of_a_webhook_that_is_deleted,
);

fn in_lane(hook: &Webhook, turn: i64) -> Delivery {
    let place = LanePlace {
        key: LaneKey::new(&format!("{}", turn / 10)),
        turn,
        blocks: false,
    };
    Delivery {
        lane: Some(place),
        ..delivery(hook, turn)
    }
}

fn blocking(hook: &Webhook, turn: i64) -> FirstRecord {
    let mut record = first_attempt(&in_lane(hook, turn), DeliveryStatus::Exhausted);
    record.delivery.block_lane();
    record
}

async fn blockers(database: &Database, after: Option<WebhookId>, limit: u32) -> Vec<Blocker> {
    let found = database.store.blockers(after, limit).await;
    found.expect("they are looked for")
}

async fn webhooks_with_blocked_lanes_are_listed_in_pieces_even_when_they_are_gone(
    database: &Database,
) {
    let one = integration("one");
    let mut hooks: Vec<Webhook> = (0..5).map(|n| webhook(&one, &format!("{n}"))).collect();
    hooks.sort_by_key(|hook| hook.id);
    database.insert_integrations(&[one]).await;
    // The second one is gone, and the fourth blocks nothing.
    for hook in [&hooks[0], &hooks[2], &hooks[3], &hooks[4]] {
        database.insert_webhooks(std::slice::from_ref(hook)).await;
    }
    assert_eq!(blockers(database, None, 10).await, []);
    for hook in [&hooks[0], &hooks[1], &hooks[2], &hooks[4]] {
        let records = vec![blocking(hook, 10), blocking(hook, 20)];
        database.record_first(records).await;
    }
    database
        .record_first(vec![parked(&in_lane(&hooks[3], 10))])
        .await;

    let blocker = |number: usize, tenant: Option<String>| Blocker {
        webhook: hooks[number].id,
        tenant,
    };
    let tenant = || Some(ours().as_str().to_owned());
    let first = blockers(database, None, 2).await;
    assert_eq!(first, [blocker(0, tenant()), blocker(1, None)]);
    let rest = blockers(database, Some(hooks[1].id), 9).await;
    assert_eq!(rest, [blocker(2, tenant()), blocker(4, tenant())]);
    assert_eq!(blockers(database, Some(hooks[4].id), 9).await, []);
}

async fn lanes_are_let_go_in_pieces(database: &Database) {
    let hook = our_webhook(database).await;
    let records = [10, 20, 30].map(|turn| blocking(&hook, turn));
    database.record_first(records.to_vec()).await;
    for (expected, still) in [(2, 1), (1, 0), (0, 0)] {
        database
            .work(async |work| {
                let count = work.unblock_lanes(hook.id, 2).await;
                assert_eq!(count.expect("they go on"), expected);
            })
            .await;
        assert_eq!(blockers(database, None, 9).await.len(), still);
    }
}

async fn the_front_of_a_lane_is_the_first_that_waits_or_blocks(database: &Database) {
    let hook = our_webhook(database).await;
    let front = async || {
        let front = database.store.lane_front(hook.id, "1").await;
        front.expect("it reads")
    };
    assert_eq!(front().await, None);
    let records = [15, 13, 14, 22].map(|turn| parked(&in_lane(&hook, turn)));
    database.record_first(records.to_vec()).await;
    assert_eq!(front().await, Some(in_lane(&hook, 13)));

    let done = first_attempt(&in_lane(&hook, 11), DeliveryStatus::Exhausted);
    let blocker = blocking(&hook, 12);
    database.record_first(vec![done, blocker.clone()]).await;
    assert_eq!(front().await, Some(blocker.delivery));
}

async fn what_blocks_a_lane_is_not_pruned_however_old_it_is(database: &Database) {
    let hook = our_webhook(database).await;
    let mut old = blocking(&hook, 11);
    database.record_first(vec![old.clone()]).await;
    let prune = async || {
        let pruned = database.store.prune_deliveries(at(1_000_000), 10).await;
        pruned.expect("it prunes")
    };

    assert_eq!(prune().await, 0);

    let stored = database.stored(&old.delivery).await;
    assert_eq!(stored.as_ref(), Some(&old.delivery));
    database
        .work(async |work| {
            assert_eq!(
                work.unblock_lanes(hook.id, 10).await.expect("it goes on"),
                1
            );
        })
        .await;
    old.delivery.lane.as_mut().expect("it has one").blocks = false;
    assert_eq!(database.stored(&old.delivery).await, Some(old.delivery));
    assert_eq!(prune().await, 1);
}

async fn nothing_blocks_the_lanes_of_a_webhook_that_is_deleted(database: &Database) {
    let one = integration("one");
    let hooks = [webhook(&one, "deleted"), webhook(&one, "cascaded")];
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    database.insert_webhooks(&hooks).await;
    for hook in &hooks {
        let records = vec![blocking(hook, 11), parked(&in_lane(hook, 12))];
        database.record_first(records).await;
    }
    database
        .work(async |work| {
            let gone = work.delete_webhook(hooks[0].id, at(50)).await;
            gone.expect("it is deleted");
        })
        .await;
    database
        .work(async |work| {
            let gone = work.delete_webhooks_of(one.id, at(50)).await;
            assert_eq!(gone.expect("it is deleted").len(), 1);
        })
        .await;
    assert_eq!(blockers(database, None, 9).await, []);

    // Parked by a worker that has not heard of it yet.
    let late = hooks.each_ref().map(|hook| parked(&in_lane(hook, 13)));
    database.record_first(late.to_vec()).await;
    let claim = LaneClaim {
        now: at(100),
        lease_until: at(60_000),
        lanes: 10,
        per_lane: 10,
        floor: i64::MAX,
        exclude: Vec::new(),
        only: None,
    };
    let claimed = database.store.claim_lanes(&claim).await;
    assert_eq!(claimed.expect("it claims").lanes, Vec::<Vec<_>>::new());

    for (hook, turn) in [
        (&hooks[0], 12),
        (&hooks[0], 13),
        (&hooks[1], 12),
        (&hooks[1], 13),
    ] {
        let stored = database.stored(&in_lane(hook, turn)).await;
        let status = stored.map(|one| one.status);
        assert_eq!(status, Some(DeliveryStatus::Cancelled), "{turn}");
    }
}
