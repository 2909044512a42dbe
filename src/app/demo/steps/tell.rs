//! Steps 8 and 9: what the worker tells about itself.

use serde_json::Value;

use super::super::{
    domain_events::subjects_with_gaps,
    expectations::Expectation,
    missed::{Missed, check},
    ops, table,
    walk::Walk,
};

/// Domain events, and how many of each there are at least.
const TOLD: [(&str, usize); 9] = [
    ("integration.created", 1),
    ("webhook.created", 4),
    ("command.completed", 1),
    ("webhook.activated", 4),
    ("webhook.triggered", 8),
    // Goods twice, the ledger once.
    ("webhook.failed", 3),
    ("webhook.disabled", 1),
    ("deadletter.added", 1),
    ("webhook.exhausted", 0),
];

/// Metrics, and how much they have counted at least.
const COUNTED: [(&str, f64); 6] = [
    ("integration_events_total{result=\"accepted\"}", 9.0),
    ("integration_events_total{result=\"dead_letter\"}", 1.0),
    ("integration_event_matches_total", 8.0),
    (
        "integration_delivery_attempts_total{lane=\"fast\",outcome=\"delivered\"}",
        1.0,
    ),
    (
        "integration_delivery_attempts_total{lane=\"parked\",outcome=\"delivered\"}",
        1.0,
    ),
    ("integration_dead_letters_total{kind=\"events\"}", 1.0),
];

/// All domain events so far.
pub(in super::super) async fn domain_events(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("Domain events that the worker has published (stream INTEGRATION_EVENTS)");
    for (kind, count) in TOLD {
        walk.events.wait(kind, count, |_| true).await?;
    }
    for event in walk.events.seen() {
        walk.out().show(&table::line(event, &walk.names));
    }
    let with_gaps = subjects_with_gaps(walk.events.seen());
    check(
        with_gaps.is_empty(),
        format!("gaps in the versions of {with_gaps:?}"),
    )?;
    walk.saw(Expectation::DomainEvents);
    Ok(())
}

/// `/health` and `/metrics`.
pub(in super::super) async fn ops_server(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("How the worker is (ops server)");
    let health = ops::get(walk.ground.ops, "/health").await?;
    let health: Value = serde_json::from_str(&health)
        .map_err(|error| Missed(format!("GET /health: no JSON: {error}")))?;
    for field in ["status", "version", "dependencies"] {
        walk.out()
            .show(&format!("/health   {field}: {}", health[field]));
    }
    check(health["status"] == "ready", "the worker is not well")?;
    walk.saw(Expectation::Health);
    let metrics = ops::get(walk.ground.ops, "/metrics").await?;
    for (name, least) in COUNTED {
        let value = ops::value_of(&metrics, name);
        let value = value.ok_or_else(|| Missed(format!("/metrics has no {name}")))?;
        walk.out().show(&format!("/metrics  {name} {value}"));
        check(value >= least, format!("{name} is not at least {least}"))?;
    }
    walk.saw(Expectation::Metrics);
    Ok(())
}
