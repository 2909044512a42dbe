//! The change counter and the changes, as every worker reads them.

use std::{collections::BTreeMap, sync::Arc};

use integration_worker::domain::{
    entities::{Integration, IntegrationStatus, Webhook, WebhookStatus},
    events::Change,
    interfaces::{Inserted, RegistryChange, RegistryDelta, RegistryWebhook, Store},
    values::WebhookId,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Database, sorted},
    samples::{at, integration, ours, tenant, webhook},
};

both!(
    from_nothing_every_webhook_is_read,
    the_version_grows_with_every_committed_change_and_only_then,
    from_the_current_version_nothing_is_read,
    a_delta_has_exactly_what_changed_and_what_is_gone,
    a_change_of_an_integration_brings_all_its_webhooks,
    a_webhook_that_came_and_went_is_not_among_the_changed,
    an_answered_change_is_seen_by_whoever_asks_afterwards,
    a_log_that_reaches_too_short_is_answered_in_full,
);

async fn version(database: &Database) -> i64 {
    let version = database.store.registry_version().await;
    version.expect("it reads")
}

async fn delta(database: &Database, since: i64) -> RegistryDelta {
    let delta = database.store.registry_delta(since).await;
    delta.expect("it reads")
}

async fn tell(database: &Database, changes: &[RegistryChange]) {
    database
        .work(async |work| {
            let told = work.registry_changed(changes).await;
            told.expect("it is told");
        })
        .await;
}

fn by_id(mut all: Vec<RegistryWebhook>) -> Vec<RegistryWebhook> {
    all.sort_by_key(|one| one.webhook.id);
    all
}

fn running(webhook: &Webhook) -> RegistryWebhook {
    RegistryWebhook {
        webhook: webhook.clone(),
        integration_runs: true,
    }
}

/// Two integrations with three webhooks each, all told of.
async fn two_families(database: &Database) -> [(Integration, Vec<Webhook>); 2] {
    let families = ["one", "two"].map(|name| {
        let parent = integration(name);
        let hooks: Vec<Webhook> = ["a", "b", "c"]
            .iter()
            .map(|name| webhook(&parent, name))
            .collect();
        (parent, hooks)
    });
    for (parent, hooks) in &families {
        database
            .insert_integrations(std::slice::from_ref(parent))
            .await;
        database.insert_webhooks(hooks).await;
        tell(database, &[RegistryChange::Integration(parent.id)]).await;
    }
    families
}

async fn from_nothing_every_webhook_is_read(database: &Database) {
    let empty = delta(database, 0).await;
    assert!(empty.full);
    assert_eq!((empty.changed, empty.removed), (Vec::new(), Vec::new()));

    let mut expected = Vec::new();
    let integrations = [
        IntegrationStatus::Pending,
        IntegrationStatus::Active,
        IntegrationStatus::Inactive,
        IntegrationStatus::Error {
            error: "kaputt".to_owned(),
        },
    ];
    let webhooks = [
        WebhookStatus::Pending,
        WebhookStatus::Active,
        WebhookStatus::Inactive,
        WebhookStatus::Error {
            error: "410".to_owned(),
        },
    ];
    for (status, n) in integrations.into_iter().zip(0..) {
        let mut parent = integration(status.as_str());
        parent.status = status;
        parent.meta.tenant = tenant(&format!("tenant-{n}"));
        database
            .insert_integrations(std::slice::from_ref(&parent))
            .await;
        for status in &webhooks {
            let mut hook = webhook(&parent, status.as_str());
            hook.status = status.clone();
            database.insert_webhooks(std::slice::from_ref(&hook)).await;
            tell(database, &[RegistryChange::Webhook(hook.id)]).await;
            expected.push(RegistryWebhook {
                webhook: hook,
                integration_runs: parent.status.runs(),
            });
        }
    }

    let all = delta(database, 0).await;

    assert!(all.full);
    assert_eq!(all.version, version(database).await);
    assert_eq!(by_id(all.changed), by_id(expected));
    assert_eq!(all.removed, []);
}

async fn the_version_grows_with_every_committed_change_and_only_then(database: &Database) {
    let [(parent, hooks), _] = two_families(database).await;
    let mut last = version(database).await;
    assert!(last > 0);
    for changes in [
        vec![RegistryChange::Webhook(hooks[0].id)],
        vec![RegistryChange::Webhook(hooks[0].id)],
        vec![RegistryChange::Integration(parent.id)],
        vec![
            RegistryChange::Integration(parent.id),
            RegistryChange::Webhook(hooks[0].id),
            RegistryChange::Webhook(hooks[1].id),
            RegistryChange::Webhook(hooks[0].id),
        ],
    ] {
        database
            .drop_work(async |work| {
                let told = work.registry_changed(&changes).await;
                told.expect("it is told");
            })
            .await;
        assert_eq!(version(database).await, last);
        tell(database, &changes).await;
        let next = version(database).await;
        assert!(next > last);
        last = next;
    }
    assert_eq!(version(database).await, last);
}

async fn from_the_current_version_nothing_is_read(database: &Database) {
    two_families(database).await;
    let current = version(database).await;

    let nothing = delta(database, current).await;

    assert_eq!(nothing.version, current);
    assert!(!nothing.full);
    assert_eq!((nothing.changed, nothing.removed), (Vec::new(), Vec::new()));
}

async fn a_delta_has_exactly_what_changed_and_what_is_gone(database: &Database) {
    let [(parent, mut hooks), (other, others)] = two_families(database).await;
    let since = version(database).await;
    // Twice, so that it would be there twice.
    for n in 1..=2 {
        hooks[0].meta.description = Some(format!("{n}"));
        let change = hooks[0].changed(Change::Updated, "anna", at(n));
        assert_eq!(change.version, n + 1);
        hooks[0].secrets.clear();
        database
            .work(async |work| {
                let done = work.update_webhook(&hooks[0]).await;
                assert_eq!(done.expect("it writes"), Inserted::Yes);
                let changes = [RegistryChange::Webhook(hooks[0].id)];
                work.registry_changed(&changes).await.expect("it is told");
            })
            .await;
    }
    let new = webhook(&parent, "new");
    let between = version(database).await;
    database
        .work(async |work| {
            let done = work.insert_webhook(&new).await;
            assert_eq!(done.expect("it is in"), Inserted::Yes);
            work.delete_webhook(hooks[1].id, at(3))
                .await
                .expect("it goes");
            let changes = [
                RegistryChange::Webhook(hooks[1].id),
                RegistryChange::Webhook(new.id),
            ];
            work.registry_changed(&changes).await.expect("it is told");
        })
        .await;

    let all = delta(database, since).await;
    assert!(!all.full);
    assert_eq!(all.version, version(database).await);
    let expected = vec![running(&hooks[0]), running(&new)];
    assert_eq!(by_id(all.changed), by_id(expected));
    assert_eq!(all.removed, [hooks[1].id]);
    // The later part of it, by itself.
    let last = delta(database, between).await;
    assert_eq!(last.changed, [running(&new)]);
    assert_eq!(last.removed, [hooks[1].id]);
    // An integration that goes takes its webhooks along.
    let since = version(database).await;
    database
        .work(async |work| {
            let mut changes = vec![RegistryChange::Integration(other.id)];
            for hook in &others {
                work.delete_webhook(hook.id, at(4)).await.expect("it goes");
                changes.push(RegistryChange::Webhook(hook.id));
            }
            work.delete_integration(other.id).await.expect("it goes");
            work.registry_changed(&changes).await.expect("it is told");
        })
        .await;
    let gone = delta(database, since).await;
    assert_eq!(gone.changed, []);
    let expected = others.iter().map(|hook| hook.id);
    assert_eq!(sorted(gone.removed), sorted(expected));
    assert_eq!(delta(database, 0).await.changed.len(), 3);
}

async fn a_change_of_an_integration_brings_all_its_webhooks(database: &Database) {
    let [(mut parent, hooks), _] = two_families(database).await;
    let since = version(database).await;
    assert!(parent.deactivate("anna", at(1)).is_some());
    database
        .work(async |work| {
            let done = work.update_integration(&parent).await;
            assert_eq!(done.expect("it writes"), Inserted::Yes);
            // One of the webhooks is named besides: it comes once all the same.
            let changes = [
                RegistryChange::Integration(parent.id),
                RegistryChange::Webhook(hooks[1].id),
            ];
            work.registry_changed(&changes).await.expect("it is told");
        })
        .await;

    let delta = delta(database, since).await;

    assert!(!delta.full);
    let expected = hooks.into_iter().map(|webhook| RegistryWebhook {
        webhook,
        integration_runs: false,
    });
    assert_eq!(by_id(delta.changed), by_id(expected.collect()));
    assert_eq!(delta.removed, []);
}

async fn a_webhook_that_came_and_went_is_not_among_the_changed(database: &Database) {
    let [(parent, _), _] = two_families(database).await;
    let since = version(database).await;
    let short = webhook(&parent, "short");
    database.insert_webhooks(std::slice::from_ref(&short)).await;
    tell(database, &[RegistryChange::Webhook(short.id)]).await;
    database
        .work(async |work| {
            work.delete_webhook(short.id, at(3)).await.expect("it goes");
            let changes = [RegistryChange::Webhook(short.id)];
            work.registry_changed(&changes).await.expect("it is told");
        })
        .await;

    let delta = delta(database, since).await;

    assert_eq!(delta.changed, []);
    // Naming it as gone harms nobody.
    assert!(delta.removed.iter().all(|gone| *gone == short.id));
}

// ---- Exactness under concurrency -----------------------------------------------------------

/// A worker's copy: which version of each webhook it knows.
#[derive(Default)]
struct Copy {
    version: i64,
    webhooks: BTreeMap<WebhookId, i64>,
}

impl Copy {
    async fn refresh(&mut self, store: &dyn Store) {
        let promised = store.registry_version().await.expect("it reads");
        assert!(promised >= self.version, "the counter goes backwards");
        if promised == self.version {
            return;
        }
        let delta = store.registry_delta(self.version).await.expect("it reads");
        assert!(
            delta.version >= promised,
            "the changes fall behind the counter"
        );
        if delta.full {
            self.webhooks.clear();
        }
        for one in delta.changed {
            let meta = one.webhook.meta;
            let former = self.webhooks.insert(one.webhook.id, meta.version);
            assert!(former.is_none_or(|former| former <= meta.version));
        }
        for gone in delta.removed {
            self.webhooks.remove(&gone);
        }
        self.version = delta.version;
    }
}

/// Makes webhooks, changes them, deletes every second one; after each answer a copy must know.
async fn write(store: Arc<dyn Store>, parent: Integration, writer: usize) {
    let mut copy = Copy::default();
    for n in 0..6 {
        let mut hook = webhook(&parent, &format!("{writer}-{n}"));
        let told = [RegistryChange::Webhook(hook.id)];
        let mut work = store.begin().await.expect("it begins");
        let done = work.insert_webhook(&hook).await;
        assert_eq!(done.expect("it is in"), Inserted::Yes);
        work.registry_changed(&told).await.expect("it is told");
        work.commit().await.expect("it commits");
        copy.refresh(store.as_ref()).await;
        assert_eq!(copy.webhooks.get(&hook.id), Some(&1));

        let mut work = store.begin().await.expect("it begins");
        let locked = work.webhook(&ours(), hook.id).await.expect("it reads");
        assert_eq!(locked.as_ref(), Some(&hook));
        let change = hook.changed(Change::Updated, "anna", at(1));
        assert_eq!(change.version, 2);
        let done = work.update_webhook(&hook).await;
        assert_eq!(done.expect("it writes"), Inserted::Yes);
        work.registry_changed(&told).await.expect("it is told");
        work.commit().await.expect("it commits");
        copy.refresh(store.as_ref()).await;
        assert_eq!(copy.webhooks.get(&hook.id), Some(&2));

        if n % 2 == 0 {
            let mut work = store.begin().await.expect("it begins");
            let gone = work.delete_webhook(hook.id, at(2)).await;
            gone.expect("it goes");
            work.registry_changed(&told).await.expect("it is told");
            work.commit().await.expect("it commits");
            copy.refresh(store.as_ref()).await;
            assert_eq!(copy.webhooks.get(&hook.id), None);
        }
    }
}

/// Refreshes a copy until it is told to stop, and once more.
async fn follow(store: Arc<dyn Store>, stop: CancellationToken) -> BTreeMap<WebhookId, i64> {
    let mut copy = Copy::default();
    loop {
        let last = stop.is_cancelled();
        copy.refresh(store.as_ref()).await;
        if last {
            return copy.webhooks;
        }
        tokio::task::yield_now().await;
    }
}

async fn an_answered_change_is_seen_by_whoever_asks_afterwards(database: &Database) {
    let parent = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&parent))
        .await;
    let stop = CancellationToken::new();
    let mut readers = JoinSet::new();
    for _ in 0..2 {
        readers.spawn(follow(Arc::clone(&database.store), stop.clone()));
    }
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        writers.spawn(write(Arc::clone(&database.store), parent.clone(), writer));
    }
    writers.join_all().await;
    stop.cancel();

    let all = delta(database, 0).await;
    let expected: BTreeMap<WebhookId, i64> = all
        .changed
        .iter()
        .map(|one| (one.webhook.id, one.webhook.meta.version))
        .collect();
    assert_eq!(expected.len(), 12);
    for copy in readers.join_all().await {
        assert_eq!(copy, expected);
    }
}

async fn a_log_that_reaches_too_short_is_answered_in_full(database: &Database) {
    let [(_, hooks), _] = two_families(database).await;
    let since = version(database).await;
    // More changes than any log keeps.
    database
        .execute("UPDATE registry_state SET version = version + 10000000")
        .await;
    let before = version(database).await;
    tell(database, &[RegistryChange::Webhook(hooks[0].id)]).await;
    assert_eq!(database.count("registry_changes").await, 1);

    let pruned = delta(database, since).await;
    assert!(pruned.full);
    assert_eq!(pruned.changed.len(), 6);
    let kept = delta(database, before).await;
    assert!(!kept.full);
    assert_eq!(kept.changed, [running(&hooks[0])]);
    // A counter that is behind is another database's, or one that was restored.
    let ahead = delta(database, before + 1_000).await;
    assert!(ahead.full);
    assert_eq!((ahead.version, ahead.changed.len()), (before + 1, 6));
}
