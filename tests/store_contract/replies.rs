//! Replies that are kept, so that a command is done once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use integration_worker::domain::interfaces::{CommandKey, Store, StoredReply};
use tokio::task::JoinSet;

use crate::{
    harness::Database,
    samples::{A_WHILE, at, command_key, stored_reply, tenant},
};

both!(
    a_kept_reply_is_read_back,
    a_key_is_a_tenant_an_action_and_a_key,
    the_same_command_waits_for_the_first_and_sees_its_reply,
    a_command_that_was_dropped_lets_the_next_one_do_it,
    of_many_same_commands_one_is_done,
    different_commands_are_all_done,
    replies_are_pruned_by_age_and_in_pieces,
);

async fn reply(database: &Database, key: &CommandKey) -> Option<StoredReply> {
    let mut work = database.store.begin().await.expect("it begins");
    work.reply(key).await.expect("it reads")
}

async fn keep(database: &Database, key: &CommandKey, reply: &StoredReply) {
    database
        .work(async |work| {
            assert_eq!(work.reply(key).await.expect("it reads"), None);
            work.keep_reply(key, reply).await.expect("it is kept");
            let own = work.reply(key).await.expect("it reads");
            assert_eq!(own.as_ref(), Some(reply));
        })
        .await;
}

async fn a_kept_reply_is_read_back(database: &Database) {
    let key = command_key("größe „x“ 'y' 🚚");
    let kept = stored_reply(at(999));
    assert_eq!(reply(database, &key).await, None);

    keep(database, &key, &kept).await;

    assert_eq!(reply(database, &key).await, Some(kept));
    let empty = StoredReply {
        key_id: None,
        reply: Vec::new(),
        ..stored_reply(at(1))
    };
    keep(database, &command_key(""), &empty).await;
    assert_eq!(reply(database, &command_key("")).await, Some(empty));
}

async fn a_key_is_a_tenant_an_action_and_a_key(database: &Database) {
    let key = command_key("a");
    let others = [
        command_key("A"),
        CommandKey {
            action: "webhook.update".to_owned(),
            ..key.clone()
        },
        CommandKey {
            tenant: tenant("other"),
            ..key.clone()
        },
        // The same letters, cut elsewhere.
        CommandKey {
            action: "webhook.creat".to_owned(),
            key: "ea".to_owned(),
            ..key.clone()
        },
    ];
    keep(database, &key, &stored_reply(at(0))).await;
    for (other, n) in others.iter().zip(1..) {
        assert_eq!(reply(database, other).await, None);
        keep(database, other, &stored_reply(at(n))).await;
    }

    let kept = reply(database, &key).await.expect("it is kept");
    assert_eq!(kept.created_at, at(0));
}

async fn the_same_command_waits_for_the_first_and_sees_its_reply(database: &Database) {
    let (key, kept) = (command_key("a"), stored_reply(at(1)));
    let mut first = database.store.begin().await.expect("it begins");
    assert_eq!(first.reply(&key).await.expect("it reads"), None);
    first.keep_reply(&key, &kept).await.expect("it is kept");
    let mut second = Box::pin(reply(database, &key));
    tokio::time::timeout(A_WHILE, &mut second)
        .await
        .expect_err("it waits for the first");

    first.commit().await.expect("it commits");

    assert_eq!(second.await, Some(kept));
}

async fn a_command_that_was_dropped_lets_the_next_one_do_it(database: &Database) {
    let (key, kept) = (command_key("a"), stored_reply(at(1)));
    for _ in 0..2 {
        database
            .drop_work(async |work| {
                assert_eq!(work.reply(&key).await.expect("it reads"), None);
                work.keep_reply(&key, &stored_reply(at(0)))
                    .await
                    .expect("it is kept");
            })
            .await;
    }
    keep(database, &key, &kept).await;
    assert_eq!(reply(database, &key).await, Some(kept));
}

/// Does the command unless its reply is there; counts how often it is done.
async fn command(store: Arc<dyn Store>, key: CommandKey, done: Arc<AtomicUsize>) {
    let mut work = store.begin().await.expect("it begins");
    if work.reply(&key).await.expect("it reads").is_some() {
        return;
    }
    done.fetch_add(1, Ordering::Relaxed);
    tokio::task::yield_now().await;
    work.keep_reply(&key, &stored_reply(at(1)))
        .await
        .expect("nobody else does it");
    work.commit().await.expect("it commits");
}

async fn of_many_same_commands_one_is_done(database: &Database) {
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..60 {
        let key = command_key(["a", "b", "c"][n % 3]);
        tasks.spawn(command(Arc::clone(&database.store), key, Arc::clone(&done)));
    }
    tasks.join_all().await;
    assert_eq!(done.load(Ordering::Relaxed), 3);
}

async fn different_commands_are_all_done(database: &Database) {
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..60 {
        let key = command_key(&n.to_string());
        tasks.spawn(command(Arc::clone(&database.store), key, Arc::clone(&done)));
    }
    tasks.join_all().await;
    assert_eq!(done.load(Ordering::Relaxed), 60);
    assert_eq!(database.count("idempotency").await, 60);
}

async fn replies_are_pruned_by_age_and_in_pieces(database: &Database) {
    for n in 1..=8 {
        keep(database, &command_key(&n.to_string()), &stored_reply(at(n))).await;
    }
    let prune = async |before, limit| {
        let pruned = database.store.prune_idempotency(at(before), limit).await;
        pruned.expect("it prunes")
    };

    assert_eq!(prune(1, 100).await, 0);
    assert_eq!(prune(6, 3).await, 3);
    assert_eq!(prune(6, 3).await, 2);
    assert_eq!(prune(6, 3).await, 0);
    for n in 1..=8 {
        let kept = reply(database, &command_key(&n.to_string())).await;
        assert_eq!(kept.is_some(), n >= 6, "{n}");
    }
}
