//! What is stored sealed is sealed anew beside those who use it.

use std::time::Duration;

use integration_worker::domain::{
    entities::{Integration, Webhook},
    interfaces::{
        Inserted, Resealed, SealedKind, SealedPlace, StoredReply, StoredSealed, StoredToken,
    },
    values::SealedSecrets,
};

use crate::{
    harness::Database,
    samples::{at, command_key, integration, secret, stored_reply, webhook},
};

both!(
    what_another_key_sealed_is_found_in_parts_and_in_order,
    what_is_sealed_anew_stands_under_the_new_key_and_nothing_else_changes,
    what_was_changed_meanwhile_stays_as_it_is,
    a_signing_secret_that_a_rotation_moved_is_still_sealed_anew,
);

fn sealed(key_id: &str, byte: u8) -> SealedSecrets {
    SealedSecrets {
        key_id: key_id.to_owned(),
        bytes: vec![byte, 0, 255],
    }
}

/// Three of each kind under `k1`, and one under `k2`; all bytes differ. So are tokens, which are no kind.
async fn filled(database: &Database) -> (Vec<Integration>, Vec<Webhook>) {
    let (mut integrations, mut webhooks) = (Vec::new(), Vec::new());
    for n in 0..4_u8 {
        let key = if n == 1 { "k2" } else { "k1" };
        let mut one = integration(&format!("i{n}"));
        one.config.sealed = Some(sealed(key, n));
        let mut hook = webhook(&one, "w");
        hook.config.sealed = Some(sealed(key, 10 + n));
        hook.secrets = vec![secret(key, at(0))];
        hook.secrets[0].sealed = sealed(key, 20 + n);
        integrations.push(one);
        webhooks.push(hook);
    }
    // Without any.
    integrations.push(integration("bare"));
    database.insert_integrations(&integrations).await;
    database.insert_webhooks(&webhooks).await;
    keep_tokens(database, &webhooks).await;
    database
        .work(async |work| {
            for n in 0..4_u8 {
                let key = command_key(&n.to_string());
                let kept = StoredReply {
                    key_id: Some(if n == 1 { "k2" } else { "k1" }.to_owned()),
                    reply: vec![30 + n],
                    ..stored_reply(at(1))
                };
                assert_eq!(work.reply(&key).await.expect("it reads"), None);
                work.keep_reply(&key, &kept).await.expect("it is kept");
            }
            let key = command_key("bare");
            let kept = StoredReply {
                key_id: None,
                ..stored_reply(at(1))
            };
            assert_eq!(work.reply(&key).await.expect("it reads"), None);
            work.keep_reply(&key, &kept).await.expect("it is kept");
        })
        .await;
    (integrations, webhooks)
}

async fn keep_tokens(database: &Database, webhooks: &[Webhook]) {
    for (n, hook) in (0..).zip(webhooks) {
        let claimed = database.store.claim_token(hook.id, 0, at(0), at(1)).await;
        let epoch = claimed.expect("it writes").expect("nobody else asks");
        let token = StoredToken {
            sealed: sealed(if n == 1 { "k2" } else { "k1" }, 40 + n),
            got_at: at(0),
            expires_at: at(9),
        };
        let kept = database.store.put_token(hook.id, epoch, &token).await;
        assert!(kept.expect("it writes"));
    }
}

async fn others(
    database: &Database,
    kind: SealedKind,
    after: Option<&SealedPlace>,
    limit: u32,
) -> Vec<StoredSealed> {
    let found = database.store.sealed_otherwise(kind, "k2", after, limit);
    found.await.expect("it reads")
}

async fn reseal(database: &Database, kind: SealedKind, changes: &[Resealed]) -> u64 {
    let changed = database.store.reseal(kind, changes).await;
    changed.expect("it writes")
}

/// Each under `k2`, with a byte more.
fn anew(found: Vec<StoredSealed>) -> Vec<Resealed> {
    let anew = found.into_iter().map(|before| {
        let mut after = before.sealed.clone();
        "k2".clone_into(&mut after.key_id);
        after.bytes.push(7);
        Resealed { before, after }
    });
    anew.collect()
}

async fn what_another_key_sealed_is_found_in_parts_and_in_order(database: &Database) {
    for kind in SealedKind::ALL {
        assert_eq!(others(database, kind, None, 10).await, []);
    }
    let (integrations, webhooks) = filled(database).await;
    for kind in SealedKind::ALL {
        let all = others(database, kind, None, 10).await;
        let places: Vec<SealedPlace> = [0, 2, 3]
            .map(|n: usize| match kind {
                SealedKind::Integrations => SealedPlace::Credentials(integrations[n].id.0),
                SealedKind::Webhooks => SealedPlace::Credentials(webhooks[n].id.0),
                SealedKind::SigningSecrets => SealedPlace::SigningSecret(webhooks[n].id.0, 0),
                SealedKind::Replies => SealedPlace::Reply(command_key(&n.to_string())),
            })
            .into();
        let found: Vec<SealedPlace> = all.iter().map(|one| one.place.clone()).collect();
        assert_eq!(found, places);
        assert!(all.iter().all(|one| one.sealed.key_id == "k1"));

        let mut parts = others(database, kind, None, 2).await;
        assert_eq!(parts.len(), 2);
        let last = parts[1].place.clone();
        parts.extend(others(database, kind, Some(&last), 2).await);
        assert_eq!(parts, all);
        let last = parts[2].place.clone();
        assert_eq!(others(database, kind, Some(&last), 2).await, []);
    }
}

async fn what_is_sealed_anew_stands_under_the_new_key_and_nothing_else_changes(
    database: &Database,
) {
    let (mut integrations, mut webhooks) = filled(database).await;
    let version = database.store.registry_version().await.expect("it reads");

    for kind in SealedKind::ALL {
        assert_eq!(reseal(database, kind, &[]).await, 0);
        let changes = anew(others(database, kind, None, 10).await);
        assert_eq!(reseal(database, kind, &changes).await, 3);
        assert_eq!(reseal(database, kind, &changes).await, 0, "it is done");
        assert_eq!(others(database, kind, None, 10).await, []);
    }

    let keys = database.store.key_ids().await.expect("it reads");
    assert_eq!(keys, ["k2"]);
    let after = database.store.registry_version().await.expect("it reads");
    assert_eq!(after, version);
    let renew = |sealed: &mut SealedSecrets| {
        if sealed.key_id == "k1" {
            "k2".clone_into(&mut sealed.key_id);
            sealed.bytes.push(7);
        }
    };
    for one in &mut integrations {
        one.config.sealed.as_mut().map(renew);
        let found = database.store.get_integration(&one.meta.tenant, one.id);
        assert_eq!(found.await.expect("it reads").as_ref(), Some(&*one));
    }
    for one in &mut webhooks {
        one.config.sealed.as_mut().map(renew);
        renew(&mut one.secrets[0].sealed);
        let found = database.store.get_webhook(&one.meta.tenant, one.id);
        assert_eq!(found.await.expect("it reads").as_ref(), Some(&*one));
    }
    let token = database.store.token_state(webhooks[2].id).await;
    let token = token.expect("it reads").token.expect("it is kept");
    assert_eq!(token.sealed, sealed("k1", 42), "no key is needed for it");
    database
        .work(async |work| {
            let kept = work.reply(&command_key("2")).await.expect("it reads");
            let kept = kept.expect("it is kept");
            assert_eq!(kept.key_id.as_deref(), Some("k2"));
            assert_eq!((kept.reply, kept.created_at), (vec![32, 7], at(1)));
        })
        .await;
}

async fn what_was_changed_meanwhile_stays_as_it_is(database: &Database) {
    filled(database).await;
    for kind in SealedKind::ALL {
        let found = others(database, kind, None, 10).await;
        let mut changes = anew(found.clone());
        // Somebody else was faster with the second one.
        let mut theirs = changes[1].clone();
        theirs.after.bytes = vec![99];
        "k1".clone_into(&mut theirs.after.key_id);
        assert_eq!(reseal(database, kind, &[theirs]).await, 1);

        assert_eq!(reseal(database, kind, &changes).await, 2);

        let left = others(database, kind, None, 10).await;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].sealed.bytes, [99]);
        assert_eq!(left[0].place, found[1].place);
        changes = anew(left);
        assert_eq!(reseal(database, kind, &changes).await, 1);
    }
}

async fn a_signing_secret_that_a_rotation_moved_is_still_sealed_anew(database: &Database) {
    let (_, webhooks) = filled(database).await;
    let kind = SealedKind::SigningSecrets;
    let changes = anew(others(database, kind, None, 1).await);
    let mut rotated = webhooks[0].clone();
    let mut new = secret("k2", at(5));
    new.sealed = sealed("k2", 77);
    let change = rotated.rotate_secret(new, Duration::from_hours(1), "anna", at(5));
    assert_eq!(change.version, 2);
    database
        .work(async |work| {
            let locked = work.webhook(&rotated.meta.tenant, rotated.id).await;
            assert!(locked.expect("it reads").is_some());
            let written = work.update_webhook(&rotated).await;
            assert_eq!(written.expect("it is written"), Inserted::Yes);
        })
        .await;

    assert_eq!(reseal(database, kind, &changes).await, 1);

    let found = database.store.get_webhook(&rotated.meta.tenant, rotated.id);
    let found = found.await.expect("it reads").expect("it is there");
    assert_eq!(found.secrets[0].sealed, sealed("k2", 77));
    assert_eq!(found.secrets[1].sealed, changes[0].after);
    assert_eq!(found.secrets[1].expires_at, rotated.secrets[1].expires_at);
}
