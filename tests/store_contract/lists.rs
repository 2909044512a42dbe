//! Lists: paged, filtered, newest first.

use chrono::TimeDelta;
use integration_worker::domain::{
    entities::{
        Delivery, DeliveryStatus, Integration, IntegrationStatus, IntegrationType, Webhook,
        WebhookStatus,
    },
    interfaces::{DeliveryFilter, EntityFilter, Page, PageRequest},
    values::Timestamp,
};
use uuid::Uuid;

use crate::{
    harness::{Database, sorted},
    samples::{at, delivery, first_attempt, integration, ours, parked, tenant, webhook},
};

both!(
    integrations_are_paged_each_once_and_newest_first,
    webhooks_are_paged_each_once_and_newest_first,
    deliveries_are_paged_each_once_and_newest_first,
    a_last_page_that_is_full_has_no_more,
    integrations_are_filtered,
    webhooks_are_filtered,
    deliveries_are_filtered,
    a_filter_holds_on_every_page,
);

/// Some share their time with others, so that the id decides.
fn time_of(number: usize) -> Timestamp {
    at(i64::try_from(number / 4).expect("it is small"))
}

/// Reads page after page of a hundred; gives the keys back, and checks their order.
async fn all_pages<T>(
    read: impl AsyncFn(PageRequest) -> Page<T>,
    key: impl Fn(&T) -> (Timestamp, Uuid),
) -> Vec<(Timestamp, Uuid)> {
    let mut keys: Vec<(Timestamp, Uuid)> = Vec::new();
    let mut more = true;
    while more {
        let page = read(PageRequest {
            limit: 100,
            after: keys.last().copied(),
        })
        .await;
        more = page.more;
        let full = page.items.len() == 100;
        assert!(page.items.len() <= 100 && (full || !more));
        keys.extend(page.items.iter().map(&key));
        assert!(keys.len() <= 1_000, "it does not end");
    }
    assert!(keys.is_sorted_by(|a, b| a > b), "newest first, each once");
    keys
}

async fn list_integrations(
    database: &Database,
    filter: &EntityFilter,
    page: PageRequest,
) -> Page<Integration> {
    let store = &database.store;
    let listed = store.list_integrations(&ours(), filter, &page).await;
    listed.expect("it lists")
}

async fn list_webhooks(
    database: &Database,
    filter: &EntityFilter,
    page: PageRequest,
) -> Page<Webhook> {
    let store = &database.store;
    let listed = store.list_webhooks(&ours(), filter, &page).await;
    listed.expect("it lists")
}

async fn list_deliveries(
    database: &Database,
    filter: &DeliveryFilter,
    page: PageRequest,
) -> Page<Delivery> {
    let store = &database.store;
    let listed = store.list_deliveries(&ours(), filter, &page).await;
    listed.expect("it lists")
}

fn first_page() -> PageRequest {
    PageRequest {
        limit: 100,
        after: None,
    }
}

async fn integrations_are_paged_each_once_and_newest_first(database: &Database) {
    let mut all: Vec<Integration> = (0..250).map(|n| integration(&format!("{n}"))).collect();
    for (one, n) in all.iter_mut().zip(0..) {
        one.meta.created_at = time_of(n);
        one.meta.updated_at = at(1_000);
    }
    database.insert_integrations(&all).await;
    let mut foreign = integration("0");
    foreign.meta.tenant = tenant("other");
    database.insert_integrations(&[foreign]).await;

    let keys = all_pages(
        async |page| list_integrations(database, &EntityFilter::default(), page).await,
        |one: &Integration| (one.meta.created_at, one.id.0),
    )
    .await;

    let expected = all.iter().map(|one| (one.meta.created_at, one.id.0));
    assert_eq!(sorted(keys), sorted(expected));
}

async fn webhooks_are_paged_each_once_and_newest_first(database: &Database) {
    let parent = integration("one");
    let mut all: Vec<Webhook> = (0..250)
        .map(|n| webhook(&parent, &format!("{n}")))
        .collect();
    for (one, n) in all.iter_mut().zip(0..) {
        one.meta.created_at = time_of(n);
    }
    database.insert_integrations(&[parent]).await;
    database.insert_webhooks(&all).await;

    let keys = all_pages(
        async |page| list_webhooks(database, &EntityFilter::default(), page).await,
        |one: &Webhook| (one.meta.created_at, one.id.0),
    )
    .await;

    let expected = all.iter().map(|one| (one.meta.created_at, one.id.0));
    assert_eq!(sorted(keys), sorted(expected));
}

async fn deliveries_are_paged_each_once_and_newest_first(database: &Database) {
    let hook = crate::deliveries::our_webhook(database).await;
    let mut all: Vec<Delivery> = (0..250).map(|n| delivery(&hook, n)).collect();
    for (one, n) in all.iter_mut().zip(0..) {
        one.created_at = time_of(n);
    }
    database
        .record_first(all.iter().map(parked).collect())
        .await;

    let keys = all_pages(
        async |page| list_deliveries(database, &DeliveryFilter::default(), page).await,
        |one: &Delivery| (one.created_at, one.id.0),
    )
    .await;

    let expected = all.iter().map(|one| (one.created_at, one.id.0));
    assert_eq!(sorted(keys), sorted(expected));
    let store = &database.store;
    let other = tenant("other");
    let foreign = store
        .list_deliveries(&other, &DeliveryFilter::default(), &first_page())
        .await
        .expect("it lists");
    assert_eq!((foreign.items, foreign.more), (Vec::new(), false));
}

async fn a_last_page_that_is_full_has_no_more(database: &Database) {
    let all: Vec<Integration> = (0..6).map(|n| integration(&format!("{n}"))).collect();
    database.insert_integrations(&all).await;
    let page = async |limit, after: Option<&Integration>| {
        let after = after.map(|one| (one.meta.created_at, one.id.0));
        let request = PageRequest { limit, after };
        let page = list_integrations(database, &EntityFilter::default(), request).await;
        (page.items.len(), page.more)
    };

    assert_eq!(page(6, None).await, (6, false));
    assert_eq!(page(5, None).await, (5, true));
    assert_eq!(page(3, Some(&all[3])).await, (3, false));
    assert_eq!(page(1, Some(&all[2])).await, (1, true));
    assert_eq!(page(100, Some(&all[0])).await, (0, false));
    // What has gone meanwhile is still a place to go on from.
    let gone = integration("gone");
    let request = PageRequest {
        limit: 2,
        after: Some((at(-1), gone.id.0)),
    };
    let page = list_integrations(database, &EntityFilter::default(), request).await;
    assert_eq!((page.items, page.more), (Vec::new(), false));
}

async fn assert_integrations(database: &Database, filter: EntityFilter, expected: &[&str]) {
    let page = list_integrations(database, &filter, first_page()).await;
    let names: Vec<&str> = page
        .items
        .iter()
        .map(|one| one.meta.name.as_str())
        .collect();
    assert_eq!(sorted(names), expected, "{filter:?}");
    assert!(!page.more);
}

async fn integrations_are_filtered(database: &Database) {
    let mut all = ["a", "b", "c", "d"].map(integration);
    let tags: [&[&str]; 4] = [
        &["api", "größe"],
        &["api2", "ap"],
        &["a,b", "\"q\""],
        &["%", "API"],
    ];
    for ((one, n), tags) in all.iter_mut().zip(0..).zip(tags) {
        one.meta.created_at = at(i64::from(n) * 10);
        one.meta.tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    }
    all[1].kind = IntegrationType::MessageQueue;
    all[2].status = IntegrationStatus::Pending;
    all[3].status = IntegrationStatus::Error {
        error: "active".to_owned(),
    };
    database.insert_integrations(&all).await;
    for (filter, expected) in integration_cases() {
        assert_integrations(database, filter, expected).await;
    }
}

#[rustfmt::skip]
fn integration_cases() -> Vec<(EntityFilter, &'static [&'static str])> {
    let none = EntityFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let kind = |kind| EntityFilter { kind: text(kind), ..none() };
    let status = |status| EntityFilter { status: text(status), ..none() };
    let name = |name| EntityFilter { name: text(name), ..none() };
    let tag = |tag| EntityFilter { tag: text(tag), ..none() };
    let time = |since: Option<i64>, until: Option<i64>| {
        EntityFilter { since: since.map(at), until: until.map(at), ..none() }
    };
    vec![
        (none(), &["a", "b", "c", "d"]),
        (kind("message-queue"), &["b"]),
        (kind("api"), &["a", "c", "d"]),
        (kind("unknown"), &[]),
        (status("active"), &["a", "b"]),
        (status("pending"), &["c"]),
        (status("error"), &["d"]),
        (status("inactive"), &[]),
        (name("b"), &["b"]),
        (name("B"), &[]),
        (name("%"), &[]),
        (tag("api"), &["a"]),
        (tag("ap"), &["b"]),
        (tag("API"), &["d"]),
        (tag("größe"), &["a"]),
        (tag("a,b"), &["c"]),
        (tag("\"q\""), &["c"]),
        (tag("%"), &["d"]),
        (tag(""), &[]),
        (time(Some(10), None), &["b", "c", "d"]),
        (time(Some(11), None), &["c", "d"]),
        (time(None, Some(20)), &["a", "b"]),
        (time(Some(10), Some(20)), &["b"]),
        (time(Some(20), Some(20)), &[]),
        (EntityFilter { kind: text("api"), tag: text("a,b"), name: text("c"), ..status("pending") }, &["c"]),
        (EntityFilter { kind: text("api"), ..status("unknown") }, &[]),
    ]
}

async fn webhooks_are_filtered(database: &Database) {
    let (one, two) = (integration("one"), integration("two"));
    let mut all = [
        webhook(&one, "a"),
        webhook(&one, "b"),
        webhook(&two, "a"),
        webhook(&two, "d"),
    ];
    for (hook, n) in all.iter_mut().zip(0..) {
        hook.meta.created_at = at(n * 10);
    }
    all[1].status = WebhookStatus::Inactive;
    all[1].meta.tags = vec!["x".to_owned(), "größe".to_owned()];
    all[3].meta.tags = vec!["xx".to_owned()];
    database.insert_integrations(&[one.clone(), two]).await;
    database.insert_webhooks(&all).await;
    let none = EntityFilter::default;
    let text = |text: &str| Some(text.to_owned());
    #[rustfmt::skip]
    let cases: [(EntityFilter, &[usize]); 9] = [
        (none(), &[0, 1, 2, 3]),
        (EntityFilter { integration_id: Some(one.id), ..none() }, &[0, 1]),
        (EntityFilter { name: text("a"), ..none() }, &[0, 2]),
        (EntityFilter { name: text("a"), integration_id: Some(one.id), ..none() }, &[0]),
        (EntityFilter { status: text("inactive"), ..none() }, &[1]),
        (EntityFilter { tag: text("x"), ..none() }, &[1]),
        (EntityFilter { since: Some(at(10)), ..none() }, &[1, 2, 3]),
        (EntityFilter { until: Some(at(10)), ..none() }, &[0]),
        (EntityFilter { status: text("active"), since: Some(at(1)), until: Some(at(30)), ..none() }, &[2]),
    ];
    for (filter, expected) in cases {
        let page = list_webhooks(database, &filter, first_page()).await;
        let ids = page.items.iter().map(|hook| hook.id);
        let expected = expected.iter().map(|&n| all[n].id);
        assert_eq!(sorted(ids), sorted(expected), "{filter:?}");
    }
}

async fn deliveries_are_filtered(database: &Database) {
    let parent = integration("one");
    let hooks = [webhook(&parent, "a"), webhook(&parent, "b")];
    database.insert_integrations(&[parent]).await;
    database.insert_webhooks(&hooks).await;
    let mut records = vec![
        parked(&delivery(&hooks[0], 0)),
        first_attempt(&delivery(&hooks[0], 10), DeliveryStatus::Delivered),
        first_attempt(&delivery(&hooks[1], 10), DeliveryStatus::Exhausted),
        first_attempt(&delivery(&hooks[1], 30), DeliveryStatus::Cancelled),
    ];
    records[3].delivery.event_type = String::from("größe.x");
    database.record_first(records.clone()).await;
    let none = DeliveryFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let hook = Some(hooks[1].id);
    #[rustfmt::skip]
    let cases: [(DeliveryFilter, &[usize]); 13] = [
        (none(), &[0, 1, 2, 3]),
        (DeliveryFilter { status: text("pending"), ..none() }, &[0]),
        (DeliveryFilter { status: text("delivered"), ..none() }, &[1]),
        (DeliveryFilter { status: text("exhausted"), ..none() }, &[2]),
        (DeliveryFilter { status: text("cancelled"), ..none() }, &[3]),
        (DeliveryFilter { status: text("unknown"), ..none() }, &[]),
        (DeliveryFilter { webhook_id: hook, ..none() }, &[2, 3]),
        (DeliveryFilter { event_id: text("event-10"), ..none() }, &[1, 2]),
        (DeliveryFilter { event_type: text("größe.x"), ..none() }, &[3]),
        (DeliveryFilter { event_type: text("order.created"), status: text("pending"), ..none() }, &[0]),
        (DeliveryFilter { since: Some(at(10)), ..none() }, &[1, 2, 3]),
        (DeliveryFilter { since: Some(at(1)), until: Some(at(30)), ..none() }, &[1, 2]),
        (DeliveryFilter { event_id: text("event-10"), webhook_id: hook, status: text("exhausted"), ..none() }, &[2]),
    ];
    for (filter, expected) in cases {
        let page = list_deliveries(database, &filter, first_page()).await;
        let ids = page.items.iter().map(|one| one.id);
        let expected = expected.iter().map(|&n| records[n].delivery.id);
        assert_eq!(sorted(ids), sorted(expected), "{filter:?}");
    }
}

async fn a_filter_holds_on_every_page(database: &Database) {
    let hook = crate::deliveries::our_webhook(database).await;
    let all: Vec<_> = (0..250)
        .map(|n| {
            let one = delivery(&hook, n);
            let status = if n % 2 == 0 {
                DeliveryStatus::Delivered
            } else {
                DeliveryStatus::Exhausted
            };
            first_attempt(&one, status)
        })
        .collect();
    database.record_first(all.clone()).await;
    let filter = DeliveryFilter {
        status: Some("exhausted".to_owned()),
        webhook_id: Some(hook.id),
        since: Some(at(0)),
        until: Some(at(249) + TimeDelta::milliseconds(1)),
        ..DeliveryFilter::default()
    };

    let keys = all_pages(
        async |page| list_deliveries(database, &filter, page).await,
        |one: &Delivery| (one.created_at, one.id.0),
    )
    .await;

    let expected = all
        .iter()
        .filter(|one| one.delivery.status == DeliveryStatus::Exhausted)
        .map(|one| (one.delivery.created_at, one.delivery.id.0));
    assert_eq!(sorted(keys), sorted(expected));
}
