//! Batches of webhooks with a rate limit: one token for each request.

use std::{sync::Arc, time::Duration};

use integration_worker::domain::{
    entities::Webhook,
    interfaces::{BatchClaim, ClaimedBatches, Lease},
    policies::RateLimit,
    values::BatchId,
};
use tokio::task::JoinSet;

use crate::{
    batches::{all_numbers, claim, rule, ruled, set_rule, wait},
    harness::Database,
    samples::{at, integration, new_id, webhook},
};

both!(
    a_batch_takes_one_token_and_waits_for_the_next_one,
    a_batch_that_is_given_back_brings_one_token_back,
    claims_at_the_same_time_never_take_more_than_there_is,
    a_webhook_without_a_token_is_not_in_the_way_of_others,
);

async fn limit(database: &Database, hook: &Webhook, requests: u32) {
    let limit = RateLimit::new(requests, Duration::from_secs(1));
    database
        .work(async |work| {
            let kept = work.put_rate_limit(hook.id, Some(limit)).await;
            kept.expect("it is kept");
        })
        .await;
}

async fn take(database: &Database, claim: &BatchClaim) -> ClaimedBatches {
    let claimed = database.store.claim_batches(claim).await;
    claimed.expect("it claims")
}

fn leases(claimed: &ClaimedBatches) -> Vec<Lease> {
    let all = claimed.batches.iter().flat_map(|one| &one.deliveries);
    all.map(|one| one.lease).collect()
}

async fn a_batch_takes_one_token_and_waits_for_the_next_one(database: &Database) {
    let hook = ruled(database, rule(10, 100_000)).await;
    limit(database, &hook, 2).await;
    wait(database, &hook, 0..35).await;
    for expected in [
        vec![(0..10).collect::<Vec<i64>>()],
        vec![(10..20).collect()],
    ] {
        let claimed = take(database, &claim(at(1_000))).await;
        assert_eq!(all_numbers(&claimed.batches), expected);
    }

    let claimed = take(database, &claim(at(1_000))).await;

    assert_eq!(claimed.batches, []);
    let next = claimed.next_token_at.expect("a token comes");
    assert!(next > at(1_400) && next <= at(1_500), "{next}");
    let excluded = BatchClaim {
        exclude: vec![hook.id],
        ..claim(at(1_000))
    };
    assert_eq!(take(database, &excluded).await.next_token_at, None);
    let claimed = take(database, &claim(next)).await;
    assert_eq!(
        all_numbers(&claimed.batches),
        [(20..30).collect::<Vec<i64>>()]
    );
}

async fn a_batch_that_is_given_back_brings_one_token_back(database: &Database) {
    let hook = ruled(database, rule(10, 100_000)).await;
    limit(database, &hook, 1).await;
    wait(database, &hook, 0..30).await;
    let first = take(database, &claim(at(1_000))).await;
    assert_eq!(take(database, &claim(at(1_000))).await.batches, []);

    let released = database.store.release(&leases(&first), at(5)).await;
    released.expect("it is given back");

    let again = take(database, &claim(at(1_000))).await;
    assert_eq!(again.batches.len(), 1);
    assert_eq!(again.batches[0].id, first.batches[0].id);
    // Ten deliveries were one request.
    assert_eq!(take(database, &claim(at(1_000))).await.batches, []);
}

async fn claims_at_the_same_time_never_take_more_than_there_is(database: &Database) {
    let hook = ruled(database, rule(2, 100_000)).await;
    limit(database, &hook, 5).await;
    wait(database, &hook, 0..100).await;
    let mut claims = JoinSet::new();
    for _ in 0..20 {
        let store = Arc::clone(&database.store);
        claims.spawn(async move {
            let claimed = store.claim_batches(&claim(at(1_000))).await;
            claimed.expect("it claims").batches.len()
        });
    }
    let mut taken: usize = claims.join_all().await.into_iter().sum();
    // Who found the tokens in another's hands left them.
    while take(database, &claim(at(1_000))).await.batches.len() == 1 {
        taken += 1;
    }
    assert_eq!(taken, 5);
}

async fn a_webhook_without_a_token_is_not_in_the_way_of_others(database: &Database) {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..4).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for hook in &hooks {
        set_rule(database, hook.id, Some(rule(2, 100_000))).await;
        wait(database, hook, 0..6).await;
    }
    for hook in &hooks[..3] {
        limit(database, hook, 1).await;
    }
    assert_eq!(take(database, &claim(at(1_000))).await.batches.len(), 4);
    let one_more = BatchClaim {
        ids: vec![BatchId(new_id())],
        ..claim(at(1_000))
    };
    for _ in 0..2 {
        let claimed = take(database, &one_more).await;
        assert_eq!(claimed.batches.len(), 1);
        let webhook = claimed.batches[0].deliveries[0].delivery.webhook_id;
        assert_eq!(webhook, hooks[3].id);
    }
}
