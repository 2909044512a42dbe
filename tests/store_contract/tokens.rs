//! The tokens of webhooks: one worker at a time gets a new one, and all have it.

use integration_worker::domain::{
    entities::Webhook,
    interfaces::{StoredToken, TokenState},
    values::{SealedSecrets, Timestamp, WebhookId},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    harness::Database,
    samples::{at, integration, webhook},
};

both!(
    a_token_is_kept_with_every_field_and_replaced_by_the_next_one,
    one_worker_at_a_time_has_the_right_to_get_a_token,
    of_many_that_ask_at_the_same_time_one_gets_the_right,
    a_right_that_was_lost_keeps_nothing_and_gives_nothing_back,
    a_token_goes_with_its_webhook,
    tokens_that_have_expired_or_are_not_used_any_more_are_pruned_in_pieces,
);

async fn hook(database: &Database) -> Webhook {
    let one = integration("one");
    let hook = webhook(&one, "hook");
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    hook
}

fn token(byte: u8) -> StoredToken {
    StoredToken {
        sealed: SealedSecrets {
            key_id: format!("k{byte}"),
            bytes: vec![byte, 0, 255],
        },
        got_at: at(i64::from(byte)),
        expires_at: at(i64::from(byte) + 300),
    }
}

async fn state(database: &Database, hook: WebhookId) -> TokenState {
    database.store.token_state(hook).await.expect("it reads")
}

async fn claim(
    database: &Database,
    hook: WebhookId,
    epoch: i64,
    (now, until): (Timestamp, Timestamp),
) -> Option<i64> {
    let claimed = database.store.claim_token(hook, epoch, now, until).await;
    claimed.expect("it writes")
}

async fn put(database: &Database, hook: WebhookId, epoch: i64, token: &StoredToken) -> bool {
    let kept = database.store.put_token(hook, epoch, token).await;
    kept.expect("it writes")
}

async fn release(database: &Database, hook: WebhookId, epoch: i64) {
    let released = database.store.release_token(hook, epoch).await;
    released.expect("it writes");
}

async fn a_token_is_kept_with_every_field_and_replaced_by_the_next_one(database: &Database) {
    let hook = hook(database).await.id;
    assert_eq!(state(database, hook).await, TokenState::default());
    for byte in [1, 2] {
        let before = state(database, hook).await;
        let epoch = claim(database, hook, before.epoch, (at(5), at(20))).await;
        let epoch = epoch.expect("nobody else asks");
        let under_way = state(database, hook).await;
        assert_eq!(
            under_way.token, before.token,
            "the former one is still there"
        );
        assert_eq!(under_way.fetch_until, Some(at(20)));
        assert!(put(database, hook, epoch, &token(byte)).await);
        let after = state(database, hook).await;
        assert_eq!(after.token, Some(token(byte)));
        assert_eq!(after.fetch_until, None);
        assert!(after.epoch > under_way.epoch);
    }
}

async fn one_worker_at_a_time_has_the_right_to_get_a_token(database: &Database) {
    let hook = hook(database).await.id;
    let first = claim(database, hook, 0, (at(0), at(10))).await;
    assert!(first.is_some());
    // Neither who knows nothing nor who knows it all.
    assert_eq!(claim(database, hook, 0, (at(1), at(11))).await, None);
    let known = state(database, hook).await.epoch;
    assert_eq!(claim(database, hook, known, (at(9), at(19))).await, None);
    // Who was killed with it holds nobody up for longer.
    let second = claim(database, hook, known, (at(10), at(20))).await;
    let second = second.expect("its time is over");
    release(database, hook, second).await;
    // What was known before it was given back is not enough.
    assert_eq!(claim(database, hook, second, (at(11), at(21))).await, None);
    let known = state(database, hook).await;
    assert_eq!((known.token, known.fetch_until), (None, None));
    let third = claim(database, hook, known.epoch, (at(11), at(21))).await;
    assert!(third.is_some());
}

async fn of_many_that_ask_at_the_same_time_one_gets_the_right(database: &Database) {
    let hook = hook(database).await.id;
    let ask = || claim(database, hook, 0, (at(0), at(10)));
    let (a, b, c, d) = tokio::join!(ask(), ask(), ask(), ask());
    let got = [a, b, c, d].into_iter().flatten().count();
    assert_eq!(got, 1);
}

async fn a_right_that_was_lost_keeps_nothing_and_gives_nothing_back(database: &Database) {
    let hook = hook(database).await.id;
    let slow = claim(database, hook, 0, (at(0), at(10))).await;
    let slow = slow.expect("nobody else asks");
    let other = claim(database, hook, slow, (at(10), at(20))).await;
    let other = other.expect("its time is over");
    assert!(!put(database, hook, slow, &token(1)).await);
    release(database, hook, slow).await;
    let now = state(database, hook).await;
    assert_eq!((now.token, now.fetch_until), (None, Some(at(20))));
    assert!(put(database, hook, other, &token(2)).await);
    assert!(!put(database, hook, other, &token(3)).await, "it is used");
    assert_eq!(state(database, hook).await.token, Some(token(2)));
}

async fn a_token_goes_with_its_webhook(database: &Database) {
    let hook = hook(database).await;
    let epoch = claim(database, hook.id, 0, (at(0), at(10))).await;
    assert!(put(database, hook.id, epoch.expect("a right"), &token(1)).await);
    database
        .work(async |work| {
            let deleted = work.delete_webhook(hook.id, at(1)).await;
            deleted.expect("it is deleted");
        })
        .await;
    assert_eq!(state(database, hook.id).await, TokenState::default());
    assert_eq!(claim(database, hook.id, 0, (at(1), at(2))).await, None);
    let nobody = WebhookId(Uuid::from_u128(404));
    assert_eq!(claim(database, nobody, 0, (at(1), at(2))).await, None);
    assert!(!put(database, nobody, 1, &token(1)).await);
}

async fn tokens_that_have_expired_or_are_not_used_any_more_are_pruned_in_pieces(
    database: &Database,
) {
    let one = integration("one");
    let hooks = ["good", "expired", "other", "under way", "lost", "never"].map(|name| {
        let mut hook = webhook(&one, name);
        if name != "other" {
            let oauth2 = json!({ "type": "oauth2", "credentials": {} });
            hook.config
                .shown
                .insert("authentication".to_owned(), oauth2);
        }
        hook
    });
    let [good, expired, other, under_way, lost, never] = hooks.each_ref().map(|hook| hook.id);
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    let now = at(1000);
    for (hook, expires_at) in [
        (good, at(1001)),
        (expired, now),
        (other, at(1001)),
        (under_way, now),
        (lost, now),
    ] {
        let token = StoredToken {
            expires_at,
            ..token(1)
        };
        let epoch = claim(database, hook, 0, (at(0), at(10))).await;
        assert!(put(database, hook, epoch.expect("a right"), &token).await);
    }
    for (hook, until) in [(under_way, at(1001)), (lost, now)] {
        let epoch = state(database, hook).await.epoch;
        let claimed = claim(database, hook, epoch, (at(11), until)).await;
        assert!(claimed.is_some());
    }
    let epoch = claim(database, never, 0, (at(0), at(10))).await;
    release(database, never, epoch.expect("a right")).await;

    let prune = async || {
        let pruned = database.store.prune_tokens(now, 3).await;
        pruned.expect("it prunes")
    };
    assert_eq!((prune().await, prune().await, prune().await), (3, 1, 0));

    for (hook, is_kept) in [
        (good, true),
        (expired, false),
        (other, false),
        (under_way, true),
        (lost, false),
        (never, false),
    ] {
        let state = state(database, hook).await;
        assert_eq!(state != TokenState::default(), is_kept);
    }
    // What was known before does not keep anybody from getting one.
    let claimed = claim(database, expired, 2, (now, at(1010))).await;
    assert!(claimed.is_some());
}
