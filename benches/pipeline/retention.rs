//! Whether what was delivered long ago slows what is delivered now.

use crate::{
    Effort,
    report::{Bar, Report},
    world::{World, float, seconds_between},
};

/// What intake may lose beside ten million rows.
const FLAT: f64 = 0.90;
/// What it may lose while old rows are deleted, which costs the same two cores.
const WHILE_PRUNING: f64 = 0.50;

/// A million deliveries of the last 20 days, as many as are kept.
const MILLION: &str = "
    INSERT INTO deliveries (id, tenant, webhook_id, event_id, event_type, source_sequence, status,
        attempt_count, event_version, budget_base, created_at, completed_at,
        first_started_at, first_duration_ms, first_status_code)
    SELECT gen_random_uuid(), 'default', (SELECT id FROM webhooks LIMIT 1),
        gen_random_uuid()::text, 'sales.order.created', n, 'delivered', 1, 1, 0, t.at, t.at, t.at, 3, 200
    FROM generate_series(1, 1000000) n,
        LATERAL (SELECT now() - interval '20 days' + n * interval '1.728 seconds' AS at) t";
/// A million deliveries that are past their retention.
const OLD: &str = "
    INSERT INTO deliveries (id, tenant, webhook_id, event_id, event_type, source_sequence, status,
        attempt_count, event_version, budget_base, created_at, completed_at,
        first_started_at, first_duration_ms, first_status_code)
    SELECT gen_random_uuid(), 'default', (SELECT id FROM webhooks LIMIT 1),
        gen_random_uuid()::text, 'sales.order.created', n, 'delivered', 1, 1, 0, t.at, t.at, t.at, 3, 200
    FROM generate_series(1, 1000000) n,
        LATERAL (SELECT now() - interval '400 days' + n * interval '1 second' AS at) t";
const COUNT: &str = "SELECT count(*) FROM deliveries";

pub(crate) async fn retention(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    world.webhook("/0").await;
    let events = effort.choose(50_000, 2_000);
    // The first run opens connections and fills caches.
    delivered_per_second(&mut world, events).await;
    let alone = delivered_per_second(&mut world, events).await;
    report.remark(format!("retention: {alone:.0}/s beside no rows"));
    let mut filled = 0;
    for millions in effort.choose([1, 10], [1, 1]) {
        while filled < millions {
            world.database.run(MILLION).await;
            filled += 1;
        }
        world.database.run("VACUUM (ANALYZE) deliveries").await;
        world.database.run("CHECKPOINT").await;
        let beside = delivered_per_second(&mut world, events).await;
        let what = format!("events → delivered beside {millions} million rows, against none");
        let ratio = beside / alone;
        report.figure("retention", &what, ratio, "", Bar::AtLeast(FLAT));
        report.remark(format!(
            "retention: {beside:.0}/s beside {millions} million rows"
        ));
    }
    world.database.run(OLD).await;
    let full = world.database.number(COUNT).await;
    world.falls(COUNT, full).await;
    let pruning = delivered_per_second(&mut world, events).await;
    let left = full - world.database.number(COUNT).await;
    let what = "events → delivered while old rows are deleted, against none";
    let ratio = pruning / alone;
    report.figure("retention", what, ratio, "", Bar::AtLeast(WHILE_PRUNING));
    report.remark(format!(
        "retention: {pruning:.0}/s while {left} rows more were deleted than written"
    ));
}

/// A worker that runs, and events that are published to it at once.
async fn delivered_per_second(world: &mut World, events: u64) -> f64 {
    world.tell_sink("reset").await;
    world.publish(events).await;
    let end = world.settled().await;
    let seen = world.served(events).await;
    float(events) / seconds_between(seen.first, end.max(seen.last))
}
