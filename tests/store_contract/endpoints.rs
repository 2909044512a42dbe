//! How endpoints are, and who may try one whose breaker is open.

use integration_worker::domain::{
    entities::Webhook,
    interfaces::{ClaimRequest, RecordBatch},
    policies::{Breaker, EndpointState},
    values::Timestamp,
};

use crate::{
    harness::{Database, everything_due, sorted},
    samples::{at, delivery, integration, parked, webhook},
};

both!(
    how_an_endpoint_is_keeps_every_field_and_a_well_one_has_no_row,
    those_with_an_open_breaker_come_first_and_the_limit_holds,
    it_goes_with_its_webhook,
    one_worker_at_a_time_gets_the_probe_of_an_endpoint_that_has_waited,
    a_claim_can_be_for_some_webhooks_alone,
    what_an_open_breaker_holds_back_is_not_overdue,
);

async fn webhooks(database: &Database, count: usize) -> Vec<Webhook> {
    let one = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    let mut all: Vec<Webhook> = (0..count)
        .map(|n| webhook(&one, &format!("hook {n}")))
        .collect();
    all.sort_by_key(|hook| hook.id);
    database.insert_webhooks(&all).await;
    all
}

fn open(until: Timestamp) -> EndpointState {
    EndpointState {
        failures: 12,
        failing_since: Some(at(3)),
        breaker: Breaker::Open { until, times: 4 },
    }
}

fn troubled() -> EndpointState {
    EndpointState {
        failures: u32::MAX,
        failing_since: Some(at(5)),
        breaker: Breaker::Closed,
    }
}

async fn put(database: &Database, hook: &Webhook, state: EndpointState) {
    database
        .work(async |work| {
            work.put_endpoint_state(hook.id, &state)
                .await
                .expect("it is kept");
        })
        .await;
}

async fn state(database: &Database, hook: &Webhook) -> EndpointState {
    let mut found = EndpointState::default();
    database
        .work(async |work| found = work.endpoint_state(hook.id).await.expect("it is read"))
        .await;
    found
}

async fn how_an_endpoint_is_keeps_every_field_and_a_well_one_has_no_row(database: &Database) {
    let hooks = webhooks(database, 2).await;
    let all = async || database.store.endpoint_states(10).await.expect("a list");
    assert_eq!(all().await, []);
    assert_eq!(state(database, &hooks[0]).await, EndpointState::default());
    for expected in [open(at(77)), troubled(), open(at(78))] {
        put(database, &hooks[0], expected).await;
        assert_eq!(state(database, &hooks[0]).await, expected);
        assert_eq!(all().await, [(hooks[0].id, expected)]);
        let ids = [hooks[0].id, hooks[1].id];
        let some = database.store.endpoint_states_of(&ids).await;
        assert_eq!(some.expect("a list"), [(hooks[0].id, expected)]);
        let other = database.store.endpoint_states_of(&ids[1..]).await;
        assert_eq!(other.expect("a list"), []);
    }
    put(database, &hooks[0], EndpointState::default()).await;
    assert_eq!(all().await, []);
}

async fn those_with_an_open_breaker_come_first_and_the_limit_holds(database: &Database) {
    let hooks = webhooks(database, 3).await;
    put(database, &hooks[0], troubled()).await;
    put(database, &hooks[1], troubled()).await;
    put(database, &hooks[2], open(at(9))).await;

    let found = database.store.endpoint_states(2).await.expect("a list");

    assert_eq!(
        found,
        [(hooks[2].id, open(at(9))), (hooks[0].id, troubled())]
    );
}

async fn it_goes_with_its_webhook(database: &Database) {
    let hooks = webhooks(database, 1).await;
    put(database, &hooks[0], troubled()).await;
    database
        .work(async |work| {
            work.delete_webhook(hooks[0].id, at(9))
                .await
                .expect("it goes");
        })
        .await;
    let found = database.store.endpoint_states(2).await.expect("a list");
    assert_eq!(found, []);
}

async fn one_worker_at_a_time_gets_the_probe_of_an_endpoint_that_has_waited(database: &Database) {
    let hooks = webhooks(database, 4).await;
    put(database, &hooks[0], open(at(100))).await;
    put(database, &hooks[1], open(at(100))).await;
    put(database, &hooks[2], open(at(101))).await;
    put(database, &hooks[3], troubled()).await;
    let ids: Vec<_> = hooks.iter().map(|hook| hook.id).collect();
    let take = async |now, until| {
        let taken = database.store.take_probes(&ids, at(now), at(until)).await;
        sorted(taken.expect("it is asked"))
    };

    let (one, two) = tokio::join!(take(100, 200), take(100, 200));
    assert_eq!(sorted([one, two].concat()), ids[..2], "each once");
    assert_eq!(take(100, 200).await, []);
    assert_eq!(take(101, 200).await, ids[2..3]);

    // A late failure changes nothing about it; another opening has a probe of its own.
    let later = EndpointState {
        failures: 13,
        ..open(at(100))
    };
    put(database, &hooks[0], later).await;
    put(database, &hooks[1], open(at(150))).await;
    assert_eq!(take(150, 300).await, ids[1..2]);
    // Whoever had it is gone.
    assert_eq!(take(200, 300).await, [ids[0], ids[2]]);

    // Of what is given back, another worker has the last by now.
    let rights = [(ids[1], at(300)), (ids[2], at(200))];
    let back = database.store.give_probes_back(&rights).await;
    back.expect("they are given back");
    assert_eq!(take(200, 400).await, ids[1..2]);
}

async fn a_claim_can_be_for_some_webhooks_alone(database: &Database) {
    let hooks = webhooks(database, 3).await;
    for hook in &hooks {
        let first = [1, 2].map(|number| parked(&delivery(hook, number)));
        let batch = RecordBatch {
            first: first.into(),
            ..RecordBatch::default()
        };
        database.store.record(&batch).await.expect("they wait");
    }
    let only = |ids| ClaimRequest {
        per_webhook: 1,
        only: Some(ids),
        ..everything_due(at(100))
    };
    assert_eq!(database.claim(&only(Vec::new())).await, []);

    let claimed = database.claim(&only(vec![hooks[0].id, hooks[2].id])).await;

    let expected = [0, 2].map(|n| delivery(&hooks[n], 1).id);
    let ids = claimed.iter().map(|one| one.delivery.id);
    assert_eq!(sorted(ids), sorted(expected));
    assert_eq!(database.claim(&everything_due(at(100))).await.len(), 4);
}

async fn what_an_open_breaker_holds_back_is_not_overdue(database: &Database) {
    let hooks = webhooks(database, 1).await;
    let batch = RecordBatch {
        first: vec![parked(&delivery(&hooks[0], 1))],
        ..RecordBatch::default()
    };
    database.store.record(&batch).await.expect("it waits");
    let oldest = async || {
        let stats = database.store.stats(at(100)).await.expect("figures");
        stats.oldest_due
    };
    assert!(oldest().await.is_some());
    put(database, &hooks[0], open(at(100))).await;
    assert_eq!(oldest().await, None);
    put(database, &hooks[0], troubled()).await;
    assert!(oldest().await.is_some());
}
