//! Whether webhooks with few events feel that others have many.

use std::time::Duration;

use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::{
    Effort,
    report::{Bar, Report},
    throughput::Latencies,
    world::World,
};

/// Webhooks in all, and those of them that get nearly everything.
const WEBHOOKS: u64 = 1_000;
const BUSY: u64 = 10;
/// Events to the busy ones for each to one of the others.
const BUSY_SHARE: u64 = 99;
/// The load comes evenly: a share of it in each step, and an event to one of the others in every 20th.
const STEP: Duration = Duration::from_millis(1);
const STEPS: u64 = 20;
/// How much more the others may wait than on an idle worker.
const FAIR: f64 = 2.0;

pub(crate) async fn sharing(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    for number in 0..WEBHOOKS {
        let path = match number {
            // Each has an integration of its own, named after its URL.
            ..BUSY => format!("/busy?{number}"),
            _ => format!("/latency?{number}"),
        };
        world.webhook_for(&kind(number), &path, json!({})).await;
    }
    let events = effort.choose(1_500, 150);
    // The first ones open connections and fill caches.
    others(&mut world, events / 10, 0).await;
    let idle = others(&mut world, events, 0).await;
    let loaded = others(&mut world, events, BUSY_SHARE).await;
    for percent in [50, 99] {
        let (idle, loaded) = (idle.percentile(percent), loaded.percentile(percent));
        report.remark(format!(
            "sharing: p{percent} of the others {idle:.2} ms idle, {loaded:.2} ms beside the load"
        ));
    }
    let ratio = loaded.percentile(99) / idle.percentile(99);
    let what = "990 of 1,000 webhooks, with 1 % of the events: p99 against idle";
    report.figure("sharing", what, ratio, "", Bar::LessThan(FAIR));
}

fn kind(webhook: u64) -> String {
    format!("sales.order-{webhook}.created")
}

/// Events to the others in turn, with so many to the busy ones for each of them.
async fn others(world: &mut World, events: u64, beside: u64) -> Latencies {
    world.tell_sink("reset").await;
    let mut ticks = tokio::time::interval(STEP);
    // What was late is made up for, so that the load is what it is said to be.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for step in 0..events * STEPS {
        ticks.tick().await;
        for busy in step * beside / STEPS..(step + 1) * beside / STEPS {
            world.publish_unconfirmed(&kind(busy % BUSY)).await;
        }
        if step % STEPS == 0 {
            let other = BUSY + (step / STEPS) % (WEBHOOKS - BUSY);
            world.publish_now_as(&kind(other)).await;
        }
    }
    world.served(events * (1 + beside)).await;
    Latencies::told(world).await
}
