//! Webhooks with a rate limit: what all workers together are given of them.

use std::{sync::Arc, time::Duration};

use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus, LanePlace, Webhook},
    interfaces::{
        ClaimRequest, Claimed, ClaimedDelivery, FirstRecord, LaneClaim, Lease, Store, StoredEvent,
    },
    policies::RateLimit,
    values::{LaneKey, Timestamp},
};
use tokio::task::JoinSet;

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due, on_postgres, on_sqlite, sorted},
    samples::{at, delivery, integration, parked, under_lease, webhook},
    support::{PATIENCE, eventually},
};

both!(
    a_webhook_gives_no_more_than_it_has_tokens_and_the_oldest_first,
    a_claim_says_when_the_next_token_comes,
    claims_at_the_same_time_never_take_more_than_there_is,
    a_webhook_without_a_token_is_not_in_the_way_of_others,
    a_changed_rule_takes_the_tokens_over_and_a_removed_one_lets_all_go,
    what_is_given_back_brings_its_token_back_unless_the_lease_was_lost,
    what_was_cut_off_is_due_again_and_its_token_is_spent,
    lanes_take_a_token_for_each_delivery_and_the_fronts_first,
    no_lane_of_a_webhook_with_a_limit_is_passed_over,
    what_a_lane_has_no_token_for_takes_no_bytes_of_other_lanes,
    a_rule_goes_with_its_webhook,
    webhooks_with_and_without_a_limit_share_the_bytes_of_a_claim,
    what_has_no_token_takes_no_bytes_of_others,
    webhooks_with_a_limit_leave_rows_to_others,
);

fn rule(requests: u32, per_ms: u64) -> RateLimit {
    RateLimit::new(requests, Duration::from_millis(per_ms))
}

async fn limit(database: &Database, hook: &Webhook, rule: impl Into<Option<RateLimit>>) {
    let rule = rule.into();
    database
        .work(async |work| {
            let kept = work.put_rate_limit(hook.id, rule).await;
            kept.expect("it is kept");
        })
        .await;
}

async fn park(database: &Database, hook: &Webhook, numbers: std::ops::Range<i64>) {
    let records: Vec<FirstRecord> = numbers.map(|n| parked(&delivery(hook, n))).collect();
    database.record_first(records).await;
}

async fn claim(database: &Database, request: &ClaimRequest) -> Claimed {
    database.store.claim_due(request).await.expect("it claims")
}

/// What is claimed at a time, by the numbers of the events.
async fn numbers_at(database: &Database, millis: i64) -> Vec<i64> {
    let claimed = database.claim(&everything_due(at(millis))).await;
    let number = |delivery: &Delivery| delivery.source_sequence.expect("it has one");
    claimed.iter().map(|one| number(&one.delivery)).collect()
}

async fn a_webhook_gives_no_more_than_it_has_tokens_and_the_oldest_first(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(5, 1_000)).await;
    park(database, &hook, 0..20).await;
    for (time, expected) in [
        (1_000, 0..5),
        (1_000, 0..0),
        // A full bucket has a fiftieth of a token more.
        (1_195, 0..0),
        (1_200, 5..6),
        // A clock that is behind brings nothing, and takes nothing away.
        (900, 0..0),
        (1_600, 6..8),
        // It holds no more than five.
        (9_000, 8..13),
        (9_990, 13..17),
        (60_000, 17..20),
    ] {
        let expected: Vec<i64> = expected.collect();
        assert_eq!(numbers_at(database, time).await, expected, "at {time}");
    }
}

async fn a_claim_says_when_the_next_token_comes(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(2, 1_000)).await;
    park(database, &hook, 0..2).await;
    let now = everything_due(at(1_000));

    assert_eq!(claim(database, &now).await.deliveries.len(), 2);
    let claimed = claim(database, &now).await;
    assert_eq!(claimed, Claimed::default(), "nothing waits for a token");

    park(database, &hook, 2..3).await;
    let claimed = claim(database, &now).await;
    assert_eq!(claimed.deliveries, []);
    assert_eq!(claimed.next_token_at, Some(at(1_490)));
    let excluded = ClaimRequest {
        exclude: vec![hook.id],
        ..now
    };
    assert_eq!(claim(database, &excluded).await, Claimed::default());
    let then = claim(database, &everything_due(at(1_490))).await;
    assert_eq!(then.deliveries.len(), 1);
}

async fn take_until_nothing_is_left(store: Arc<dyn Store>, now: Timestamp) -> usize {
    let request = ClaimRequest {
        limit: 7,
        ..everything_due(now)
    };
    let (mut taken, mut empty) = (0, 0);
    // Who comes while another one holds the tokens finds none: it looks again.
    while empty < 20 {
        let claimed = store.claim_due(&request).await.expect("it claims");
        taken += claimed.deliveries.len();
        empty = if claimed.deliveries.is_empty() {
            empty + 1
        } else {
            0
        };
    }
    taken
}

async fn claims_at_the_same_time_never_take_more_than_there_is(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(50, 1_000)).await;
    park(database, &hook, 0..200).await;
    for (time, tokens) in [(1_000, 50), (1_500, 25), (60_000, 50)] {
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            let store = Arc::clone(&database.store);
            tasks.spawn(take_until_nothing_is_left(store, at(time)));
        }
        let taken: usize = tasks.join_all().await.into_iter().sum();
        assert_eq!(taken, tokens, "at {time}");
    }
}

async fn a_webhook_without_a_token_is_not_in_the_way_of_others(database: &Database) {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..12).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    let (free, limited) = hooks.split_last().expect("there are some");
    for hook in limited {
        limit(database, hook, rule(1, 60_000)).await;
        park(database, hook, 0..10).await;
    }
    let first = database.claim(&everything_due(at(1_000))).await;
    assert_eq!(first.len(), limited.len(), "one token each");

    park(database, free, 100..110).await;
    let few = ClaimRequest {
        limit: 4,
        ..everything_due(at(1_000))
    };
    let mut served = 0;
    for _ in 0..3 {
        let claimed = database.claim(&few).await;
        assert!(claimed.iter().all(|c| c.delivery.webhook_id == free.id));
        served += claimed.len();
    }
    assert_eq!(served, 10);
}

async fn a_changed_rule_takes_the_tokens_over_and_a_removed_one_lets_all_go(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(5, 1_000)).await;
    park(database, &hook, 0..100).await;
    assert_eq!(numbers_at(database, 1_000).await.len(), 5);

    limit(database, &hook, rule(10, 10_000)).await;
    assert_eq!(numbers_at(database, 1_000).await.len(), 0, "none is given");
    assert_eq!(numbers_at(database, 1_979).await.len(), 0);
    assert_eq!(numbers_at(database, 2_000).await.len(), 1);
    assert_eq!(numbers_at(database, 60_000).await.len(), 10);

    limit(database, &hook, None).await;
    assert_eq!(database.count("rate_limits").await, 0);
    assert_eq!(numbers_at(database, 60_000).await.len(), 84);
}

async fn what_is_given_back_brings_its_token_back_unless_the_lease_was_lost(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(3, 60_000)).await;
    park(database, &hook, 0..10).await;
    let claimed = database.claim(&everything_due(at(1_000))).await;
    assert_eq!(claimed.len(), 3);
    let leases: Vec<Lease> = claimed.iter().map(|one| one.lease).collect();

    let release = async |leases: &[Lease]| {
        let released = database.store.release(leases, at(5_000)).await;
        released.expect("they are given back");
    };
    release(&leases[..2]).await;
    release(&leases[..2]).await;

    assert_eq!(numbers_at(database, 1_000).await, [3, 4], "two, and once");
    let again = database.claim(&everything_due(at(1_000))).await;
    assert_eq!(again, []);
}

async fn what_was_cut_off_is_due_again_and_its_token_is_spent(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(3, 60_000)).await;
    park(database, &hook, 0..3).await;
    let claimed = database.claim(&everything_due(at(1_000))).await;
    let leases: Vec<Lease> = claimed.iter().map(|one| one.lease).collect();
    assert_eq!(leases.len(), 3);

    let abandoned = database.store.abandon(&leases, at(1_500)).await;
    abandoned.expect("they are given back");

    assert_eq!(numbers_at(database, 2_000).await, [0; 0]);
    assert_eq!(numbers_at(database, 40_000).await.len(), 1);
    assert_eq!(numbers_at(database, 99_000).await.len(), 2);
}

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

fn all_lanes(now: Timestamp) -> LaneClaim {
    LaneClaim {
        now,
        lease_until: now + Duration::from_mins(1),
        lanes: 100,
        per_lane: 10,
        floor: i64::MAX,
        exclude: Vec::new(),
        only: None,
    }
}

async fn lanes_take_a_token_for_each_delivery_and_the_fronts_first(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(5, 1_000)).await;
    let lanes = ["a", "b", "c"].into_iter().cycle().zip(0..30);
    let places = lanes.map(|(key, turn)| parked(&in_lane(&hook, key, turn)));
    database.record_first(places.collect()).await;
    let claim = all_lanes(at(1_000));
    let take = async |claim: &LaneClaim| {
        let claimed = database.store.claim_lanes(claim).await;
        claimed.expect("it claims")
    };

    let first = take(&claim).await;
    let mut turns: Vec<Vec<i64>> = first
        .lanes
        .iter()
        .map(|lane| {
            let turn = |d: &Delivery| d.lane.as_ref().map(|lane| lane.turn);
            lane.iter().filter_map(|c| turn(&c.delivery)).collect()
        })
        .collect();
    turns.sort();
    let lengths: Vec<usize> = turns.iter().map(Vec::len).collect();
    assert_eq!(lengths.iter().sum::<usize>(), 5);
    assert!(lengths.iter().all(|length| *length >= 1), "{turns:?}");
    for lane in &turns {
        let steps = lane.windows(2).all(|pair| pair[1] - pair[0] == 3);
        assert!(lane[0] < 3 && steps, "from the front on: {turns:?}");
    }

    // The lanes are in hand. When they are given back, their tokens are there again.
    assert_eq!(take(&claim).await.lanes.len(), 0);
    let leases: Vec<Lease> = first.lanes.iter().flatten().map(|one| one.lease).collect();
    let released = database.store.release(&leases[..1], at(1_000)).await;
    released.expect("it is given back");
    let again = take(&claim).await;
    assert_eq!(again.lanes.iter().map(Vec::len).sum::<usize>(), 1);
    let released = database.store.release(&leases[1..], at(1_000)).await;
    released.expect("they are given back");
    assert_eq!(take(&claim).await.lanes.iter().flatten().count(), 4);

    let dry = take(&claim).await;
    assert_eq!(dry.lanes.len(), 0);
    assert_eq!(dry.next_token_at, Some(at(1_196)));
}

/// The turns that a claim of lanes gets at a time.
async fn turns_at(database: &Database, millis: i64) -> Vec<i64> {
    let claimed = database.store.claim_lanes(&all_lanes(at(millis))).await;
    let lanes = claimed.expect("it claims").lanes;
    let turn = |one: &ClaimedDelivery| one.delivery.lane.as_ref().map(|lane| lane.turn);
    sorted(lanes.iter().flatten().filter_map(turn))
}

async fn no_lane_of_a_webhook_with_a_limit_is_passed_over(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(1, 1_000)).await;
    // Each lane has more, and the first lane by name began last.
    for (key, turns) in [("c", [0, 3]), ("b", [1, 4]), ("a", [2, 5])] {
        let places = turns.map(|turn| parked(&in_lane(&hook, key, turn)));
        database.record_first(places.to_vec()).await;
    }
    for turn in 0..6 {
        let now = 1_000 + turn * 1_000;
        let claimed = database.store.claim_lanes(&all_lanes(at(now))).await;
        let lanes = claimed.expect("it claims").lanes;
        let one = lanes.into_iter().flatten().next().expect("there is one");
        assert_eq!(one.delivery.source_sequence, Some(turn));
        let done = under_lease(one.lease, &one.delivery, DeliveryStatus::Delivered, at(now));
        let changed = database.record_leased(vec![done]).await;
        assert_eq!(changed.len(), 1);
    }
}

async fn what_a_lane_has_no_token_for_takes_no_bytes_of_other_lanes(database: &Database) {
    let (limited, free) = hooks_of_which_one_is_free(database, 2, rule(1, 60_000)).await;
    for (hook, key, turns) in [
        (&limited[0], "a", 0..3),
        (&limited[0], "b", 3..6),
        (&free, "a", 10..13),
    ] {
        for turn in turns {
            let record = large(&in_lane(hook, key, turn));
            database.record_first(vec![record]).await;
        }
    }
    assert_eq!(turns_at(database, 1_000).await, [0, 10, 11, 12]);
}

async fn a_rule_goes_with_its_webhook(database: &Database) {
    let hook = our_webhook(database).await;
    limit(database, &hook, rule(5, 1_000)).await;
    database
        .work(async |work| {
            let deleted = work.delete_webhook(hook.id, at(1)).await;
            deleted.expect("it is deleted");
        })
        .await;
    assert_eq!(database.count("rate_limits").await, 0);
}

/// Some webhooks, the last of them without a rule.
async fn hooks_of_which_one_is_free(
    database: &Database,
    count: usize,
    rule: RateLimit,
) -> (Vec<Webhook>, Webhook) {
    let one = integration("one");
    let mut hooks: Vec<Webhook> = (0..count).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    let free = hooks.pop().expect("there are some");
    for hook in &hooks {
        limit(database, hook, rule).await;
    }
    (hooks, free)
}

/// Events of which four fill a claim.
async fn park_large(database: &Database, hook: &Webhook, numbers: std::ops::Range<i64>) {
    for number in numbers {
        let record = large(&delivery(hook, number));
        database.record_first(vec![record]).await;
    }
}

fn large(delivery: &Delivery) -> FirstRecord {
    let record = parked(delivery);
    let event = record.event.as_ref().map(|event| StoredEvent {
        meta: event.meta.clone(),
        raw: vec![b'x'; 16 << 20].into(),
    });
    FirstRecord { event, ..record }
}

fn count_of(claimed: &[ClaimedDelivery], hook: &Webhook) -> usize {
    let is_of = |one: &&ClaimedDelivery| one.delivery.webhook_id == hook.id;
    claimed.iter().filter(is_of).count()
}

async fn webhooks_with_and_without_a_limit_share_the_bytes_of_a_claim(database: &Database) {
    let (limited, free) = hooks_of_which_one_is_free(database, 2, rule(100, 1_000)).await;
    park_large(database, &limited[0], 0..5).await;
    park_large(database, &free, 10..13).await;
    let claimed = database.claim(&everything_due(at(1_000))).await;
    assert_eq!(count_of(&claimed, &free), 2);
    assert_eq!(count_of(&claimed, &limited[0]), 2);
}

async fn what_has_no_token_takes_no_bytes_of_others(database: &Database) {
    let (limited, free) = hooks_of_which_one_is_free(database, 2, rule(1, 60_000)).await;
    park_large(database, &limited[0], 0..3).await;
    park_large(database, &free, 10..14).await;
    let claimed = database.claim(&everything_due(at(1_000))).await;
    assert_eq!(count_of(&claimed, &limited[0]), 1);
    assert_eq!(count_of(&claimed, &free), 3);
}

async fn webhooks_with_a_limit_leave_rows_to_others(database: &Database) {
    let (limited, free) = hooks_of_which_one_is_free(database, 4, rule(50, 1_000)).await;
    for hook in &limited {
        park(database, hook, 0..10).await;
    }
    park(database, &free, 100..110).await;
    let few = ClaimRequest {
        limit: 4,
        ..everything_due(at(1_000))
    };
    for _ in 0..3 {
        let claimed = database.claim(&few).await;
        assert_eq!(count_of(&claimed, &free), 1);
        assert_eq!(claimed.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_taken_its_token_is_answered_although_the_rest_of_the_claim_fails() {
    on_postgres(async |database: &Database| {
        let (limited, free) = hooks_of_which_one_is_free(database, 2, rule(5, 1_000)).await;
        park(database, &limited[0], 0..3).await;
        park(database, &free, 10..13).await;
        let fault = format!(
            "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE 'out of order'; END $$;
             CREATE TRIGGER fault BEFORE UPDATE ON deliveries FOR EACH ROW
             WHEN (NEW.webhook_id = '{}') EXECUTE FUNCTION fault()",
            free.id
        );
        database.execute(&fault).await;

        assert_eq!(numbers_at(database, 1_000).await, [0, 1, 2]);
        // The rows may be locked for a moment, until the fault has ended their transaction.
        let request = everything_due(at(1_000));
        let fault = async || database.store.claim_due(&request).await.err();
        eventually(PATIENCE, fault).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_of_this_machine_that_was_set_back_stops_no_limit() {
    on_sqlite(async |database: &Database| {
        let hook = our_webhook(database).await;
        limit(database, &hook, rule(5, 1_000)).await;
        park(database, &hook, 0..20).await;
        let day = 86_400_000;
        assert_eq!(numbers_at(database, day).await.len(), 5);
        assert_eq!(numbers_at(database, day - 60_000).await, [0; 0], "a minute");
        assert_eq!(numbers_at(database, 1_000).await, [0; 0], "it was empty");
        park(database, &hook, 20..21).await;
        assert_eq!(numbers_at(database, 2_000).await.len(), 5);
    })
    .await;
}
