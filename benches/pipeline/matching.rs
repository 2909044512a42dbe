//! What it costs an event that there are webhooks which do not match it.

use std::{hint::black_box, time::Instant};

use integration_worker::{
    application::{
        event_view::EventView,
        normalise::Normaliser,
        ports::{Expressions as _, Scope, SourceMessage},
    },
    domain::{
        events::BusinessEvent,
        policies::Matcher,
        values::{EventPattern, TenantId, Timestamp, WebhookId},
    },
    infrastructure::expression::Cel,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Effort,
    report::{Bar, Report},
    world::{EVENT_TYPE, event, float},
};

/// How much more an event may cost beside 10,000 times the webhooks, with colder caches.
const FLAT: f64 = 2.0;

pub(crate) fn matching(effort: Effort, report: &mut Report) {
    let events = effort.choose(2_000_000, 200_000);
    let sizes = [10, 1_000, 100_000];
    let costs = sizes.map(|webhooks| nanoseconds_per_event(webhooks, events));
    for (webhooks, cost) in sizes.into_iter().zip(costs) {
        let what = format!("an event beside {webhooks} webhooks that do not match");
        report.figure("matching", &what, cost, " ns", Bar::None);
    }
    filter(events / 10, report);
    let [few, _, many] = costs;
    let what = "100,000 of them against 10";
    report.figure("matching", what, many / few, "", Bar::LessThan(FLAT));
}

/// A filter over an event of the usual size, which is read for it.
fn filter(events: u64, report: &mut Report) {
    let filter = Cel.compile("data.totalNet > 1000", Scope::Event);
    let filter = filter.expect("an expression");
    let event = business_event();
    let start = Instant::now();
    for _ in 0..events {
        let view = EventView::new(black_box(&event));
        assert!(black_box(filter.is_true(&view)).expect("it is a comparison"));
    }
    let cost = start.elapsed().as_secs_f64() * 1e6 / float(events);
    let what = "a filter on the data of an event of 1 KiB";
    report.figure("matching", what, cost, " µs", Bar::None);
}

fn business_event() -> BusinessEvent {
    let normaliser = Normaliser {
        stream: "ERP_EVENTS".to_owned(),
        default_tenant: TenantId::try_new("default").expect("a tenant"),
        max_bytes: 1 << 20,
    };
    let message = SourceMessage {
        subject: EVENT_TYPE.to_owned(),
        headers: Vec::new(),
        body: event("1", &json!({})).into(),
        sequence: 1,
        published_at: Timestamp::default(),
        deliveries: 1,
    };
    normaliser.event(&message).expect("an event")
}

/// One webhook matches; the others share the event's tenant and some of its tokens.
fn nanoseconds_per_event(others: u32, events: u64) -> f64 {
    let tenant = TenantId::try_new("default").expect("a tenant");
    let mut matcher = Matcher::default();
    let mut add = |number: u32, pattern: &str| {
        let pattern = EventPattern::try_new(pattern).expect("a pattern");
        let webhook = WebhookId(Uuid::from_u128(number.into()));
        matcher.add(&tenant, &pattern, webhook);
    };
    add(0, EVENT_TYPE);
    for number in 1..=others {
        let pattern = match number % 5 {
            0 => format!("sales.order.created-{number}"),
            1 => format!("sales.order.{number}.>"),
            2 => format!("sales.*.changed-{number}"),
            3 => format!("*.order.of-{number}"),
            _ => format!("crm.customer-{number}.*"),
        };
        add(number, &pattern);
    }
    let start = Instant::now();
    for _ in 0..events {
        let found = matcher.matches(&tenant, black_box(EVENT_TYPE));
        assert_eq!(black_box(found).len(), 1);
    }
    start.elapsed().as_secs_f64() * 1e9 / float(events)
}
