//! Pruning, figures, key ids and the schema.

use integration_worker::domain::{
    entities::{DeliveryStatus, IntegrationStatus, WebhookStatus},
    interfaces::{ClaimRequest, Inserted, StoreStats, StoredReply, UnitOfWork},
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due, sorted},
    samples::{
        at, command_key, delivery, event, first_attempt, integration, parked, sealed, secret,
        stored_reply, under_lease, webhook,
    },
};

both!(
    completed_deliveries_are_pruned_by_age_and_in_pieces,
    figures_count_what_waits_and_since_when,
    only_what_could_be_attempted_is_overdue,
    the_ids_of_all_keys_in_use_are_known,
    migrating_again_changes_nothing,
    a_schema_of_another_program_is_not_ready,
);

async fn completed_deliveries_are_pruned_by_age_and_in_pieces(database: &Database) {
    let hook = our_webhook(database).await;
    // Ended at 1 … 9, in each of the ways; and one that waits since long ago.
    let ends = [
        DeliveryStatus::Delivered,
        DeliveryStatus::Exhausted,
        DeliveryStatus::Cancelled,
    ];
    let done = (1..=9).zip(ends.into_iter().cycle());
    let done: Vec<_> = done
        .map(|(n, status)| first_attempt(&delivery(&hook, n), status))
        .collect();
    let waiting = delivery(&hook, -100);
    database.record_first(done.clone()).await;
    database.record_first(vec![parked(&waiting)]).await;
    // One ended late although it began early, and has more than one attempt.
    let late = delivery(&hook, 0);
    database.record_first(vec![parked(&late)]).await;
    let mut current = late;
    for (status, end) in [
        (DeliveryStatus::Pending, 1),
        (DeliveryStatus::Exhausted, 70_000),
    ] {
        let claimed = database.claim(&everything_due(at(end))).await;
        let claimed = claimed.iter().find(|one| one.delivery.id == current.id);
        let lease = claimed.expect("it is due").lease;
        let record = under_lease(lease, &current, status, at(end));
        current = record.delivery.clone();
        assert_eq!(database.record_leased(vec![record]).await, [current.id]);
    }
    let prune = async |before, limit| {
        let pruned = database.store.prune_deliveries(at(before), limit).await;
        pruned.expect("it prunes")
    };

    assert_eq!(prune(1, 100).await, 0);
    assert_eq!(prune(7, 4).await, 4);
    assert_eq!(prune(7, 4).await, 2);
    assert_eq!(prune(7, 4).await, 0);
    for (one, n) in done.iter().zip(1..) {
        let stored = database.stored(&one.delivery).await;
        assert_eq!(stored.is_some(), n >= 7, "{n}");
    }
    assert_eq!(database.stored(&current).await.as_ref(), Some(&current));
    assert_eq!(prune(1_000_000, 100).await, 4);
    assert_eq!(database.stored(&waiting).await, Some(waiting));
    assert_eq!(database.count("deliveries").await, 1);
    assert_eq!(database.count("attempts").await, 0);
    // What was pruned may be recorded anew.
    database.record_first(vec![done[0].clone()]).await;
}

async fn figures_count_what_waits_and_since_when(database: &Database) {
    let stats = async |now| database.store.stats(at(now)).await.expect("it counts");
    assert_eq!(stats(0).await, StoreStats::default());
    let hook = our_webhook(database).await;
    database
        .record_first(vec![
            parked(&delivery(&hook, 50)),
            parked(&delivery(&hook, 20)),
            parked(&delivery(&hook, 900)),
            first_attempt(&delivery(&hook, 5), DeliveryStatus::Delivered),
        ])
        .await;
    let events = [event("a", 7), event("a", 8)];
    database
        .work(async |work: &mut dyn UnitOfWork| {
            work.add_events(&events).await.expect("it is in");
        })
        .await;

    let figures = stats(100).await;
    assert_eq!((figures.parked, figures.outbox), (3, 3));
    assert_eq!(figures.oldest_due, Some(at(20)));
    assert_eq!(figures.oldest_outbox, Some(at(5)));

    let rows = database.outbox().await;
    let published = database
        .store
        .outbox_published(&[rows[0].id], at(100))
        .await;
    published.expect("it marks");
    let figures = stats(100).await;
    assert_eq!(figures.outbox, 2);
    assert_eq!(figures.oldest_outbox, Some(at(7)));
}

async fn only_what_could_be_attempted_is_overdue(database: &Database) {
    let running = integration("running");
    let mut stopped = integration("stopped");
    stopped.status = IntegrationStatus::Inactive;
    let runs = webhook(&running, "runs");
    let mut off = webhook(&running, "off");
    off.status = WebhookStatus::Inactive;
    let mut disabled = webhook(&running, "disabled");
    disabled.status = WebhookStatus::Error {
        error: "410".to_owned(),
    };
    let elsewhere = webhook(&stopped, "elsewhere");
    database.insert_integrations(&[running, stopped]).await;
    let hooks = [runs, off, disabled, elsewhere];
    database.insert_webhooks(&hooks).await;
    let due = async || {
        database
            .store
            .stats(at(100))
            .await
            .expect("it counts")
            .oldest_due
    };
    let [runs, others @ ..] = &hooks;
    let others = others.iter().map(|hook| parked(&delivery(hook, 1)));
    database.record_first(others.collect()).await;
    assert_eq!(due().await, None, "nobody may attempt these");

    let records = [70, 50, 900].map(|number| parked(&delivery(runs, number)));
    database.record_first(records.to_vec()).await;
    assert_eq!(due().await, Some(at(50)));

    // What is being worked on is not overdue, until its lease has ended.
    let one = ClaimRequest {
        limit: 1,
        ..everything_due(at(60))
    };
    assert_eq!(database.claim(&one).await.len(), 1);
    assert_eq!(due().await, Some(at(70)));
    let figures = database.store.stats(at(100)).await.expect("it counts");
    assert_eq!(figures.parked, 6);
}

async fn the_ids_of_all_keys_in_use_are_known(database: &Database) {
    let keys = async || sorted(database.store.key_ids().await.expect("it reads"));
    assert_eq!(keys().await, Vec::<String>::new());
    let mut one = integration("one");
    one.config.sealed = Some(sealed("of the integration"));
    let mut hook = webhook(&one, "a");
    hook.config.sealed = Some(sealed("of the webhook"));
    hook.secrets = ["new", "old", "old"]
        .iter()
        .map(|key| secret(key, at(0)))
        .collect();
    let mut other = webhook(&one, "b");
    other.secrets = vec![secret("new", at(0))];
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    database.insert_webhooks(&[hook.clone(), other]).await;
    assert_eq!(
        keys().await,
        ["new", "of the integration", "of the webhook", "old"]
    );
    // A kept reply is sealed too, unless it says otherwise.
    database
        .work(async |work| {
            for (key, key_id) in [("a", Some("of a reply")), ("b", Some("old")), ("c", None)] {
                let reply = StoredReply {
                    key_id: key_id.map(str::to_owned),
                    ..stored_reply(at(1))
                };
                let kept = work.keep_reply(&command_key(key), &reply).await;
                kept.expect("it is kept");
            }
        })
        .await;
    assert_eq!(
        keys().await,
        [
            "new",
            "of a reply",
            "of the integration",
            "of the webhook",
            "old"
        ]
    );

    one.config.sealed = None;
    one.meta.touch("anna", at(1));
    database
        .work(async |work| {
            let done = work.update_integration(&one).await;
            assert_eq!(done.expect("it writes"), Inserted::Yes);
            work.delete_webhook(hook.id, at(1)).await.expect("it goes");
        })
        .await;

    assert_eq!(keys().await, ["new", "of a reply", "old"]);
    let pruned = database.store.prune_idempotency(at(2), 10).await;
    assert_eq!(pruned.expect("it prunes"), 3);
    assert_eq!(keys().await, ["new"]);
}

async fn migrating_again_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let before = database.count("_sqlx_migrations").await;

    database.migrate().await.expect("there is nothing to do");

    assert_eq!(database.count("_sqlx_migrations").await, before);
    let read = database.store.get_webhook(&hook.meta.tenant, hook.id).await;
    assert_eq!(read.expect("it reads"), Some(hook));
    database.store.ping().await.expect("it is ready");
}

async fn a_schema_of_another_program_is_not_ready(database: &Database) {
    database.store.ping().await.expect("it is ready");
    database
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             SELECT version + 1, 'newer', success, checksum, 0 FROM _sqlx_migrations
             ORDER BY version DESC LIMIT 1",
        )
        .await;
    let refused = database.store.ping().await;
    refused.expect_err("a newer program was here");
    database.migrate().await.expect_err("it knows no such step");

    database.execute("DELETE FROM _sqlx_migrations").await;
    let refused = database.store.ping().await;
    refused.expect_err("nothing is migrated");
}
