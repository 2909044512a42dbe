//! Whether live traffic feels a replay.

use std::time::Duration;

use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::{
    Effort,
    report::{Bar, Report},
    throughput::Latencies,
    world::{EVENT_TYPE, World, float},
};

/// What the live webhook gets.
const LIVE_TYPE: &str = "sales.invoice.created";
/// Between two live events: hardly any, and many.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(1)];
/// How long each measurement takes.
const LENGTH: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(2));
/// Measurements of each side, in turn.
const ROUNDS: u32 = 3;
/// How much more the live events may wait.
const UNFELT: f64 = 1.10;

/// A live webhook, without and with another one's recorded deliveries going out again beside it.
pub(crate) async fn replaying(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    let replayed = world.webhook_for(EVENT_TYPE, "/0", json!({})).await;
    world.webhook_for(LIVE_TYPE, "/latency", json!({})).await;
    world.publish(effort.choose(100_000, 10_000)).await;
    world.settled().await;

    let length = effort.choose(LENGTH.0, LENGTH.1);
    // The first ones open connections and fill caches.
    live(&mut world, PAUSES[0], length / 5).await;
    for pause in PAUSES {
        beside(&mut world, &replayed, pause, length, report).await;
    }
}

async fn beside(
    world: &mut World,
    replayed: &str,
    pause: Duration,
    length: Duration,
    report: &mut Report,
) {
    let per_second = 1_000 / pause.as_millis();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut others = Vec::new();
    for _ in 0..ROUNDS {
        without.push(live(world, pause, length).await.0);
        let whole = json!({ "id": replayed, "since": "2020-01-01T00:00:00Z" });
        let replay = world.erp.ask("webhook.replay", whole).await;
        let (latencies, again) = live(world, pause, length).await;
        with.push(latencies);
        others.push(format!("{:.0}", float(again) / length.as_secs_f64()));
        let cancel = json!({ "id": replayed, "replayId": replay["replayId"] });
        world.erp.ask("webhook.cancel_replay", cancel).await;
        world.drained().await;
    }
    let (without, with) = (Latencies::of_all(without), Latencies::of_all(with));
    let (median, median_beside) = (without.percentile(50), with.percentile(50));
    let (late, late_beside) = (without.percentile(99), with.percentile(99));
    report.remark(format!(
        "replaying: {per_second} live events/s, p50 {median:.2} ms alone, {median_beside:.2} ms beside it, p99 {late:.2} and {late_beside:.2}; {} again per second",
        others.join(", ")
    ));
    let what = format!("{per_second} live events/s beside a replay: p99 against without it");
    let ratio = late_beside / late;
    report.figure("replaying", &what, ratio, "", Bar::LessThan(UNFELT));
}

/// Live events one after the other: how late they were, and how many other requests came meanwhile.
async fn live(world: &mut World, pause: Duration, length: Duration) -> (Latencies, u64) {
    let events = u64::try_from(length.as_millis() / pause.as_millis()).unwrap_or(0);
    world.tell_sink("reset").await;
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..events {
        ticks.tick().await;
        world.publish_now_as(LIVE_TYPE).await;
    }
    world.live_served(events).await;
    let others = world.seen().await.served - events;
    (Latencies::told(world).await, others)
}
