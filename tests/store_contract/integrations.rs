//! Integrations in a unit of work.

use integration_worker::domain::{
    entities::{Integration, IntegrationStatus, IntegrationType},
    interfaces::{EntityFilter, Inserted, PageRequest, StoreError},
    values::{IntegrationId, SecretConfig},
};
use serde_json::Value;

use crate::{
    harness::Database,
    samples::{at, integration, new_id, object, ours, sealed, tenant, webhook},
};

both!(
    an_integration_keeps_every_field,
    a_config_keeps_its_order_and_its_numbers,
    an_update_keeps_every_field,
    a_name_is_unique_within_a_tenant_and_a_taken_one_stops_nothing,
    an_update_to_a_taken_name_changes_nothing_and_stops_nothing,
    a_name_is_free_again_after_a_delete_or_a_rename,
    another_tenant_sees_nothing,
    a_stale_version_is_a_conflict,
    an_integration_with_webhooks_is_not_deleted,
    the_children_of_an_integration_come_by_id_and_limited,
);

/// One of each kind and status, with everything that a field may hold.
fn of_all_sorts() -> Vec<Integration> {
    let statuses = [
        IntegrationStatus::Pending,
        IntegrationStatus::Active,
        IntegrationStatus::Inactive,
        IntegrationStatus::Error {
            error: "Zertifikat „abgelaufen“\n\tam 1. März 🙈".to_owned(),
        },
        IntegrationStatus::Error {
            error: String::new(),
        },
    ];
    let names = [
        "Müller & Söhne 'GmbH' \"quoted\"",
        "名前 🚚",
        "%_\\",
        "a",
        &"ß".repeat(255),
    ];
    let tags = [
        vec![],
        vec!["production", "api"],
        vec!["b", "a", "b"],
        vec!["mit,Komma", "{geschweift}", "\"zitiert\"", "back\\slash"],
        vec!["", "NULL", "größe"],
    ];
    let kinds = IntegrationType::ALL;
    (0..5)
        .map(|n| {
            let mut one = integration(names[n]);
            one.kind = kinds[n];
            one.status = statuses[n].clone();
            one.meta.tags = tags[n].iter().map(|&tag| tag.to_owned()).collect();
            one.meta.description =
                [None, Some(""), Some("zwei\nZeilen"), None, Some("x")][n].map(ToOwned::to_owned);
            one.meta.version = [1, 1, 7, 2, i64::from(i32::MAX) + 1][n];
            one.meta.updated_at = at([0, 1, 999, 86_400_001, -1][n]);
            one.meta.updated_by = String::from("bernd@größe.example");
            one.config.sealed = (n % 2 == 0).then(|| sealed(&format!("key-{n}")));
            one
        })
        .collect()
}

/// Read in both ways, it is what it was; the config to the letter.
async fn assert_stored(database: &Database, expected: &Integration) {
    let read = database
        .store
        .get_integration(&expected.meta.tenant, expected.id)
        .await
        .expect("it reads");
    assert_same(&read.expect("it is there"), expected);
    database
        .drop_work(async |work| {
            let locked = work.integration(&expected.meta.tenant, expected.id).await;
            assert_same(&locked.expect("it reads").expect("it is there"), expected);
        })
        .await;
}

fn assert_same(found: &Integration, expected: &Integration) {
    assert_eq!(found, expected);
    let text = |one: &Integration| serde_json::to_string(&one.config.shown).expect("it is JSON");
    assert_eq!(text(found), text(expected));
}

async fn an_integration_keeps_every_field(database: &Database) {
    let all = of_all_sorts();

    database.insert_integrations(&all).await;

    for one in &all {
        assert_stored(database, one).await;
    }
    let page = PageRequest {
        limit: 100,
        after: None,
    };
    let listed = database
        .store
        .list_integrations(&ours(), &EntityFilter::default(), &page)
        .await
        .expect("it lists");
    assert_eq!(listed.items.len(), all.len());
    for found in &listed.items {
        let expected = all.iter().find(|one| one.id == found.id);
        assert_same(found, expected.expect("it was inserted"));
    }
}

fn difficult_config() -> SecretConfig {
    let text = r#"{"zeta":1,"alpha":{"z":18450.00,"a":0.1,"m":[3,1,2]},"10":true,"9":null,
        "big":18446744073709551615,"small":-9223372036854775808,"huge":1e300,"tiny":5e-324,
        "negative zero":-0.0,"":"","nul":"a\u0000b","line":"a\u2028b","astral":"🚚","quote":"\"'\\"}"#;
    let shown = serde_json::from_str::<Value>(text).expect("it is JSON");
    SecretConfig {
        shown: object(shown),
        sealed: Some(sealed("k")),
    }
}

async fn a_config_keeps_its_order_and_its_numbers(database: &Database) {
    let mut one = integration("a");
    one.config = difficult_config();

    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;

    assert_stored(database, &one).await;
}

async fn an_update_keeps_every_field(database: &Database) {
    let all = of_all_sorts();
    database.insert_integrations(&all).await;
    let mut changed = all[0].clone();
    let mut version = 1;
    for other in &all[1..] {
        version += 1;
        let (id, created_at) = (changed.id, changed.meta.created_at);
        changed = other.clone();
        changed.id = id;
        changed.meta.created_at = created_at;
        changed.meta.name = format!("{} neu", other.meta.name.chars().next().unwrap_or('x'));
        changed.meta.version = version;
        changed.config = difficult_config();
        changed.config.sealed = (version % 2 == 0).then(|| sealed("new"));

        database
            .work(async |work| {
                let done = work.update_integration(&changed).await;
                assert_eq!(done.expect("it writes"), Inserted::Yes);
            })
            .await;

        assert_stored(database, &changed).await;
    }
    for other in &all[1..] {
        assert_stored(database, other).await;
    }
}

async fn a_name_is_unique_within_a_tenant_and_a_taken_one_stops_nothing(database: &Database) {
    let first = integration("ERP");
    let mut elsewhere = integration("ERP");
    elsewhere.meta.tenant = tenant("other");
    let other_case = integration("erp");
    database
        .insert_integrations(&[first.clone(), elsewhere, other_case])
        .await;

    let (same, next) = (integration("ERP"), integration("next"));
    database
        .work(async |work| {
            let taken = work.insert_integration(&same).await;
            assert_eq!(taken.expect("it answers"), Inserted::NameTaken);
            let free = work.insert_integration(&next).await;
            assert_eq!(free.expect("it is in"), Inserted::Yes);
        })
        .await;

    assert_stored(database, &next).await;
    assert_stored(database, &first).await;
    let gone = database.store.get_integration(&ours(), same.id).await;
    assert_eq!(gone.expect("it reads"), None);
}

async fn an_update_to_a_taken_name_changes_nothing_and_stops_nothing(database: &Database) {
    let (one, two) = (integration("one"), integration("two"));
    database
        .insert_integrations(&[one.clone(), two.clone()])
        .await;
    let mut taken = two.clone();
    taken.meta.name = String::from("one");
    taken.meta.touch("bernd", at(1));
    let third = integration("three");

    database
        .work(async |work| {
            let done = work.update_integration(&taken).await;
            assert_eq!(done.expect("it answers"), Inserted::NameTaken);
            let free = work.insert_integration(&third).await;
            assert_eq!(free.expect("it is in"), Inserted::Yes);
        })
        .await;

    for one in [one, two, third] {
        assert_stored(database, &one).await;
    }
}

async fn a_name_is_free_again_after_a_delete_or_a_rename(database: &Database) {
    let (one, mut two) = (integration("one"), integration("two"));
    database
        .insert_integrations(&[one.clone(), two.clone()])
        .await;
    two.meta.name = String::from("zwei");
    two.meta.touch("bernd", at(1));
    database
        .work(async |work| {
            work.delete_integration(one.id).await.expect("it deletes");
            let renamed = work.update_integration(&two).await;
            assert_eq!(renamed.expect("it writes"), Inserted::Yes);
        })
        .await;

    let again = [integration("one"), integration("two")];
    database.insert_integrations(&again).await;

    let gone = database.store.get_integration(&ours(), one.id).await;
    assert_eq!(gone.expect("it reads"), None);
}

async fn another_tenant_sees_nothing(database: &Database) {
    let one = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    let other = tenant("other");

    let read = database.store.get_integration(&other, one.id).await;
    assert_eq!(read.expect("it reads"), None);
    database
        .drop_work(async |work| {
            let locked = work.integration(&other, one.id).await;
            assert_eq!(locked.expect("it reads"), None);
            let unknown = work.integration(&ours(), IntegrationId(new_id())).await;
            assert_eq!(unknown.expect("it reads"), None);
        })
        .await;
}

async fn a_stale_version_is_a_conflict(database: &Database) {
    let one = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    for version in [0, 1, 3] {
        let mut stale = one.clone();
        stale.meta.version = version;
        database
            .drop_work(async |work| {
                let refused = work.update_integration(&stale).await;
                let refused = refused.expect_err("it is stale");
                assert!(matches!(refused, StoreError::Conflict), "{refused:?}");
            })
            .await;
    }
    let mut unknown = integration("unknown");
    unknown.meta.version = 2;
    database
        .drop_work(async |work| {
            let refused = work.update_integration(&unknown).await;
            let refused = refused.expect_err("there is none");
            assert!(matches!(refused, StoreError::Conflict), "{refused:?}");
        })
        .await;

    assert_stored(database, &one).await;
}

async fn an_integration_with_webhooks_is_not_deleted(database: &Database) {
    let one = integration("one");
    let hook = webhook(&one, "hook");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    database.insert_webhooks(std::slice::from_ref(&hook)).await;

    database
        .drop_work(async |work| {
            let refused = work.delete_integration(one.id).await;
            let refused = refused.expect_err("a webhook hangs on it");
            assert!(!refused.is_retryable(), "{refused:?}");
        })
        .await;
    assert_stored(database, &one).await;

    database
        .work(async |work| {
            work.delete_webhook(hook.id, at(1)).await.expect("it goes");
            work.delete_integration(one.id).await.expect("it goes");
        })
        .await;
    let gone = database.store.get_integration(&ours(), one.id).await;
    assert_eq!(gone.expect("it reads"), None);
}

async fn the_children_of_an_integration_come_by_id_and_limited(database: &Database) {
    let (one, other) = (integration("one"), integration("other"));
    database
        .insert_integrations(&[one.clone(), other.clone()])
        .await;
    let hooks = ["c", "a", "b"].map(|name| webhook(&one, name));
    database.insert_webhooks(&hooks).await;
    database.insert_webhooks(&[webhook(&other, "d")]).await;

    database
        .drop_work(async |work| {
            let children = work.webhooks_of(one.id, 10).await.expect("it reads");
            let names: Vec<&str> = children.iter().map(|child| child.name.as_str()).collect();
            assert_eq!(names, ["c", "a", "b"]);
            let ids: Vec<_> = children.iter().map(|child| child.id).collect();
            assert_eq!(ids, hooks.each_ref().map(|hook| hook.id));
            let first = work.webhooks_of(one.id, 2).await.expect("it reads");
            assert_eq!(first, children[..2]);
            let none = work.webhooks_of(IntegrationId(new_id()), 2).await;
            assert_eq!(none.expect("it reads"), []);
        })
        .await;
}
