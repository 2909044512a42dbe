//! Replays: one for each webhook, one worker at a time, and what they are to send.

use integration_worker::domain::{
    entities::{
        Delivery, DeliveryStatus, LanePlace, Replay, ReplayCursor, ReplayKind, ReplaySelection,
        ReplayStatus, Webhook,
    },
    events::Context,
    interfaces::{Candidate, ClaimedReplay, FirstRecord, PageRequest, UnitOfWork},
    values::{LaneKey, ReplayId},
};

use crate::{
    deliveries::our_webhook,
    harness::Database,
    samples::{
        at, delivery, first_attempt, new_id, ours, parked, pattern, stored_event, tenant, webhook,
    },
};

both!(
    a_replay_comes_back_as_it_was_written,
    one_replay_runs_for_a_webhook_at_a_time,
    running_replays_are_counted_for_each_tenant,
    a_replay_has_one_worker_at_a_time_and_the_one_that_waits_longest_is_next,
    candidates_come_in_the_order_of_their_creation_within_the_selection,
    candidates_of_one_moment_come_once_each_over_the_ends_of_pages,
    ordered_candidates_come_by_their_turns_and_before_the_others,
    candidates_are_of_the_types_and_states_that_are_meant,
    a_selection_is_counted_by_types_and_the_count_has_an_end,
    an_ended_replay_is_not_claimed_and_pruned_in_time,
    what_is_due_of_a_webhook_is_counted_up_to_a_limit,
    what_waits_behind_a_blocked_front_is_not_counted,
);

pub(crate) fn context() -> Context {
    Context {
        tenant: ours(),
        actor: "anna".to_owned(),
        correlation_id: "correlation".to_owned(),
        causation_id: "command".to_owned(),
        trace: None,
    }
}

fn selection(hook: &Webhook) -> ReplaySelection {
    ReplaySelection {
        tenant: hook.meta.tenant.clone(),
        webhook_id: hook.id,
        since: at(0),
        until: at(1_000),
        statuses: Vec::new(),
        event_types: Vec::new(),
    }
}

fn replay(selection: ReplaySelection) -> Replay {
    let id = ReplayId(new_id());
    let kind = ReplayKind::Replay;
    Replay::start(id, kind, selection, Some(3), context(), at(2_000)).0
}

async fn inserted(database: &Database, replay: &Replay) -> bool {
    let mut inserted = false;
    database
        .work(async |work: &mut dyn UnitOfWork| {
            inserted = work.insert_replay(replay).await.expect("it inserts");
        })
        .await;
    inserted
}

async fn begun(database: &Database, hook: &Webhook) -> Replay {
    let one = replay(selection(hook));
    assert!(inserted(database, &one).await);
    one
}

pub(crate) async fn update(database: &Database, changed: &Replay) {
    database
        .work(async |work: &mut dyn UnitOfWork| {
            work.update_replay(changed).await.expect("it updates");
        })
        .await;
}

pub(crate) async fn claim(database: &Database, now: i64) -> Option<ClaimedReplay> {
    let claimed = database.store.claim_replay(at(now), at(now + 100)).await;
    claimed.expect("it claims")
}

pub(crate) async fn claimed(database: &Database, hook: &Webhook) -> ClaimedReplay {
    begun(database, hook).await;
    claim(database, 3_000).await.expect("it is free")
}

pub(crate) async fn candidates(
    database: &Database,
    replay: &Replay,
    limit: usize,
) -> Vec<Candidate> {
    let found = database.store.replay_candidates(replay, limit).await;
    found.expect("it reads").items
}

/// Delivered ones, with these numbers.
pub(crate) async fn deliver(database: &Database, hook: &Webhook, numbers: &[i64]) -> Vec<Delivery> {
    let records: Vec<FirstRecord> = numbers
        .iter()
        .map(|number| first_attempt(&delivery(hook, *number), DeliveryStatus::Delivered))
        .collect();
    database.record_first(records.clone()).await;
    records.into_iter().map(|record| record.delivery).collect()
}

/// The types of the replay's events in the outbox.
pub(crate) async fn told(database: &Database) -> Vec<String> {
    let rows = database.outbox().await.into_iter();
    rows.map(|row| row.event_type)
        .filter(|kind| kind.starts_with("webhook.replay"))
        .collect()
}

async fn a_replay_comes_back_as_it_was_written(database: &Database) {
    let hook = our_webhook(database).await;
    let mut one = replay(ReplaySelection {
        statuses: vec![DeliveryStatus::Delivered, DeliveryStatus::Exhausted],
        event_types: vec![pattern("größe.>"), pattern("a,b\"c")],
        ..selection(&hook)
    });
    assert!(inserted(database, &one).await);
    let cursor = ReplayCursor::Delivery(at(7), delivery(&hook, 1).id);
    let told = one.come_further(i64::MAX - 5, 5, cursor, at(8));
    assert!(told.is_some());
    assert_eq!(one.fail("kaputt „x“", at(9)).aggregate_version, 3);

    update(database, &one).await;

    let whole = PageRequest {
        limit: 10,
        after: None,
    };
    let listed = database.store.list_replays(&ours(), hook.id, &whole).await;
    assert_eq!(listed.expect("it lists").items, std::slice::from_ref(&one));
    for (whose, id) in [(tenant("other"), one.id), (ours(), ReplayId(new_id()))] {
        database
            .work(async |work: &mut dyn UnitOfWork| {
                let found = work.replay(&whose, hook.id, id).await.expect("it reads");
                assert_eq!(found, None);
            })
            .await;
    }
    database
        .work(async |work: &mut dyn UnitOfWork| {
            let found = work.replay(&ours(), hook.id, one.id).await;
            assert_eq!(found.expect("it reads"), Some(one.clone()));
        })
        .await;
}

async fn one_replay_runs_for_a_webhook_at_a_time(database: &Database) {
    let hook = our_webhook(database).await;
    let mut first = begun(database, &hook).await;
    assert!(!inserted(database, &replay(selection(&hook))).await);
    assert_eq!(first.complete(at(5)).aggregate_version, 2);
    update(database, &first).await;
    assert!(inserted(database, &replay(selection(&hook))).await);
}

async fn running_replays_are_counted_for_each_tenant(database: &Database) {
    let hook = our_webhook(database).await;
    begun(database, &hook).await;
    database
        .work(async |work: &mut dyn UnitOfWork| {
            assert_eq!(work.running_replays(&ours()).await.expect("it counts"), 1);
            let others = work.running_replays(&tenant("other")).await;
            assert_eq!(others.expect("it counts"), 0);
        })
        .await;
}

async fn a_replay_has_one_worker_at_a_time_and_the_one_that_waits_longest_is_next(
    database: &Database,
) {
    let hook = our_webhook(database).await;
    let first = begun(database, &hook).await;
    let one = claim(database, 3_000).await.expect("it is free");
    assert_eq!(one.replay, first);
    assert_eq!(claim(database, 3_099).await, None, "it is leased");
    assert!(
        database
            .store
            .free_replay(one.lease, at(3_200))
            .await
            .expect("it prolongs")
    );
    assert_eq!(claim(database, 3_150).await, None, "it is prolonged");

    let two = claim(database, 3_200).await.expect("the lease has ended");

    assert!(two.lease.epoch > one.lease.epoch);
    let lost = database.store.free_replay(one.lease, at(3_000)).await;
    assert!(!lost.expect("it answers"), "a lost lease frees nothing");
    assert!(
        database
            .store
            .free_replay(two.lease, at(4_000))
            .await
            .expect("it rests")
    );
    let other = Webhook {
        integration_id: hook.integration_id,
        ..webhook(&crate::samples::integration("x"), "other")
    };
    begun(database, &other).await;
    let next = claim(database, 5_000).await.expect("both are free");
    assert_eq!(next.replay.selection.webhook_id, other.id);
    let next = claim(database, 5_000).await.expect("one is free");
    assert_eq!(next.replay.id, first.id);
}

async fn candidates_come_in_the_order_of_their_creation_within_the_selection(database: &Database) {
    let hook = our_webhook(database).await;
    let all = deliver(database, &hook, &[5, 1, 3, 1_000, 7]).await;
    database
        .record_first(vec![parked(&delivery(&hook, 4))])
        .await;
    let mut one = replay(ReplaySelection {
        since: at(3),
        ..selection(&hook)
    });

    let first = database
        .store
        .replay_candidates(&one, 2)
        .await
        .expect("it reads");

    let numbers = |found: &[Candidate]| -> Vec<_> {
        let sequences = found.iter().map(|c| c.delivery.source_sequence);
        sequences.collect()
    };
    assert_eq!(numbers(&first.items), [Some(3), Some(4)]);
    assert_eq!(first.items[0].delivery, all[2]);
    assert_eq!(
        first.items[0].event, None,
        "what is delivered keeps no event"
    );
    assert_eq!(first.items[1].event, Some(stored_event(4)));
    one.cursor = first.cursor;
    let second = database
        .store
        .replay_candidates(&one, 9)
        .await
        .expect("it reads");
    assert_eq!(numbers(&second.items), [Some(5), Some(7)]);
    one.cursor = second.cursor;
    let last = database
        .store
        .replay_candidates(&one, 9)
        .await
        .expect("it reads");
    assert_eq!((last.items, last.cursor), (Vec::new(), None));
}

async fn candidates_of_one_moment_come_once_each_over_the_ends_of_pages(database: &Database) {
    let hook = our_webhook(database).await;
    let at_once = (2..=21).map(|number| {
        let mut one = delivery(&hook, number);
        one.created_at = at(5);
        one
    });
    let mut all = vec![delivery(&hook, 1), delivery(&hook, 30)];
    all.extend(at_once);
    let records = { all.iter() }.map(|one| first_attempt(one, DeliveryStatus::Delivered));
    database.record_first(records.collect()).await;
    all.sort_by_key(|one| (one.created_at, one.id));
    let expected: Vec<_> = all.iter().map(|one| one.id).collect();
    let any = pattern(">");

    for event_types in [Vec::new(), vec![any]] {
        let mut one = replay(ReplaySelection {
            event_types,
            ..selection(&hook)
        });
        let mut found = Vec::new();
        loop {
            let page = database.store.replay_candidates(&one, 7).await;
            let page = page.expect("it reads");
            found.extend(page.items.iter().map(|one| one.delivery.id));
            let Some(cursor) = page.cursor else { break };
            one.cursor = Some(cursor);
        }
        assert_eq!(found, expected);
    }
}

async fn ordered_candidates_come_by_their_turns_and_before_the_others(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1, 40]).await;
    let records: Vec<FirstRecord> = [(10, 30), (11, 10), (12, 20), (12_000, 5)]
        .into_iter()
        .map(|(number, turn)| {
            let mut one = delivery(&hook, number);
            one.lane = Some(LanePlace {
                key: LaneKey::new("a"),
                turn,
                blocks: false,
            });
            first_attempt(&one, DeliveryStatus::Delivered)
        })
        .collect();
    database.record_first(records).await;
    let mut one = replay(selection(&hook));
    let mut numbers = Vec::new();
    loop {
        let found = database.store.replay_candidates(&one, 2).await;
        let found = found.expect("it reads");
        numbers.extend(found.items.iter().map(|one| one.delivery.source_sequence));
        let Some(cursor) = found.cursor else { break };
        one.cursor = Some(cursor);
    }
    assert_eq!(numbers, [11, 12, 10, 1, 40].map(Some));
}

async fn candidates_are_of_the_types_and_states_that_are_meant(database: &Database) {
    let hook = our_webhook(database).await;
    let mut records: Vec<FirstRecord> = DeliveryStatus::ALL
        .into_iter()
        .zip(1..)
        .map(|(status, number)| first_attempt(&delivery(&hook, number), status))
        .collect();
    records.push(first_attempt(
        &delivery(&hook, 5),
        DeliveryStatus::Exhausted,
    ));
    records[4].delivery.event_type = String::from("order.updated.x");
    database.record_first(records).await;
    for (statuses, types, expected) in [
        (vec![], vec![], vec![1, 2, 3, 4, 5]),
        (vec![DeliveryStatus::Exhausted], vec![], vec![3, 5]),
        (
            vec![DeliveryStatus::Exhausted],
            vec!["order.created"],
            vec![3],
        ),
        (vec![], vec!["order.*"], vec![1, 2, 3, 4]),
        (vec![], vec!["nothing", "order.updated.>"], vec![5]),
    ] {
        let one = replay(ReplaySelection {
            statuses,
            event_types: types.iter().map(|text| pattern(text)).collect(),
            ..selection(&hook)
        });
        let found = candidates(database, &one, 10).await;
        let found: Vec<i64> = found
            .iter()
            .map(|one| one.delivery.source_sequence.unwrap_or_default())
            .collect();
        assert_eq!(found, expected, "{:?}", one.selection);
    }
}

async fn a_selection_is_counted_by_types_and_the_count_has_an_end(database: &Database) {
    let hook = our_webhook(database).await;
    deliver(database, &hook, &[1, 2, 3, 1_000]).await;
    database
        .record_first(vec![parked(&delivery(&hook, 4))])
        .await;
    let counted = async |selection: &ReplaySelection, limit| {
        let counts = database.store.count_recorded(selection, limit).await;
        let counts = counts.expect("it counts").into_iter();
        let mut counts: Vec<_> = counts
            .map(|one| (one.event_type, one.is_pending, one.count))
            .collect();
        counts.sort();
        counts
    };
    let created = || "order.created".to_owned();
    let all = selection(&hook);
    assert_eq!(
        counted(&all, 10).await,
        [(created(), false, 3), (created(), true, 1)]
    );
    assert_eq!(
        counted(&all, 2).await.iter().map(|one| one.2).sum::<i64>(),
        2
    );
    let delivered = ReplaySelection {
        statuses: vec![DeliveryStatus::Delivered],
        since: at(2),
        ..all.clone()
    };
    assert_eq!(counted(&delivered, 10).await, [(created(), false, 2)]);
    let foreign = ReplaySelection {
        tenant: tenant("other"),
        ..all
    };
    assert_eq!(counted(&foreign, 10).await, []);
}

async fn an_ended_replay_is_not_claimed_and_pruned_in_time(database: &Database) {
    let hook = our_webhook(database).await;
    let claimed = claimed(database, &hook).await;
    let mut ended = claimed.replay.clone();
    let event = ended.complete(at(4_000));

    let written = database
        .store
        .end_replay(claimed.lease, &ended, &event)
        .await;

    assert!(written.expect("it ends"));
    assert_eq!(told(database).await, ["webhook.replay_completed"]);
    assert_eq!(claim(database, 9_000).await, None);
    let running = begun(database, &hook).await;
    let prune = async |before: i64| {
        let pruned = database.store.prune_replays(at(before), 10).await;
        pruned.expect("it prunes")
    };
    assert_eq!(prune(4_000).await, 0);
    assert_eq!(prune(4_001).await, 1);
    let whole = PageRequest {
        limit: 10,
        after: None,
    };
    let left = database.store.list_replays(&ours(), hook.id, &whole).await;
    assert_eq!(
        left.expect("it lists").items,
        std::slice::from_ref(&running)
    );
    assert_eq!(running.status, ReplayStatus::Running);
}

async fn what_is_due_of_a_webhook_is_counted_up_to_a_limit(database: &Database) {
    let hook = our_webhook(database).await;
    let records = [1, 2, 3].map(|number| parked(&delivery(&hook, number)));
    database.record_first(records.to_vec()).await;
    deliver(database, &hook, &[4]).await;
    for (now, limit, expected) in [
        (at(9), 2, 2),
        (at(9), 3, 3),
        (at(9), 10, 3),
        (at(0), 10, 0),
        (at(2), 10, 2),
        (at(2), 1, 1),
    ] {
        let count = database.store.due_of(hook.id, now, limit).await;
        assert_eq!(count.expect("it counts"), expected, "{now:?} {limit}");
    }
}

async fn what_waits_behind_a_blocked_front_is_not_counted(database: &Database) {
    let hook = our_webhook(database).await;
    let placed = |number: i64, key: &str, blocks: bool| {
        let mut one = delivery(&hook, number);
        one.lane = Some(LanePlace {
            key: LaneKey::new(key),
            turn: number,
            blocks,
        });
        one
    };
    database
        .record_first(vec![
            first_attempt(&placed(1, "a", true), DeliveryStatus::Exhausted),
            parked(&placed(2, "a", false)),
            parked(&placed(3, "a", false)),
            parked(&placed(4, "b", false)),
            parked(&placed(5, "b", false)),
            parked(&placed(6, "c", false)),
        ])
        .await;
    for (now, expected) in [(at(9), 2), (at(5), 1), (at(3), 0)] {
        let count = database.store.due_of(hook.id, now, 10).await;
        assert_eq!(count.expect("it counts"), expected, "{now:?}");
    }
}
