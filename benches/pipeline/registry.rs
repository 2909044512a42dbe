//! How a worker bears a large registry: 100,000 webhooks of 1,000 tenants.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Effort,
    processes::worker_memory,
    report::{Bar, Report},
    throughput::Latencies,
    world::World,
};

const WEBHOOKS_OF_A_TENANT: usize = 100;
/// Commands on their way at a time.
const AT_ONCE: usize = 64;
/// Between two events.
const PAUSE: Duration = Duration::from_millis(20);
/// MiB.
const MOST: f64 = 500.0;
/// What a change may cost the next event, in milliseconds: no reload of everything.
const INCREMENTAL: f64 = 20.0;

pub(crate) async fn registry(effort: Effort, report: &mut Report) {
    let tenants = effort.choose(1_000, 20);
    let mut world = World::on_postgres().await;
    let mine = world.webhook("/latency").await;
    let (before, _) = worker_memory();
    let start = Instant::now();
    let made = stream::iter(0..tenants)
        .map(|tenant| of_a_tenant(&world, tenant))
        .buffer_unordered(AT_ONCE);
    let webhooks: usize = made.fold(0, async |sum, made| sum + made).await;
    let took = start.elapsed();
    report.remark(format!(
        "registry: {webhooks} webhooks made in {:.1} s",
        took.as_secs_f64()
    ));

    world.stop_worker().await;
    let start = Instant::now();
    world.start_worker();
    world.wait_answers().await;
    world.publish_now().await;
    world.served(1).await;
    let took = start.elapsed().as_secs_f64();
    let what = format!("{webhooks} webhooks: start until the first delivery");
    report.figure("registry", &what, took, " s", Bar::None);
    let (after, most) = worker_memory();
    let what = format!("{webhooks} webhooks: worker memory");
    report.figure("registry", &what, after, " MiB", Bar::LessThan(MOST));
    report.remark(format!(
        "registry: {before:.1} MiB with one webhook, {after:.1} MiB with all (at most {most:.1})"
    ));

    let events = effort.choose(300, 50);
    let plain = latencies(&mut world, events, None).await;
    let changed = latencies(&mut world, events, Some(&mine)).await;
    let (plain, changed) = (plain.percentile(50), changed.percentile(50));
    let what = format!("{webhooks} webhooks: publish → received right after one is changed, p50");
    let bar = Bar::LessThan(INCREMENTAL);
    report.figure("registry", &what, changed, " ms", bar);
    report.remark(format!("registry: {plain:.2} ms without a change"));
}

/// One integration with its webhooks: how many.
async fn of_a_tenant(world: &World, tenant: usize) -> usize {
    let name = format!("tenant-{tenant}");
    let headers = [("X-Tenant-Id", name.as_str())];
    let ask = async |action: &str, body: Value| {
        let reply = world.erp.request(action, &headers, &body).await;
        assert_eq!(reply["success"], true, "{action}: {reply}");
        reply["data"]["id"].clone()
    };
    let integration = json!({ "name": "shop", "type": "webhook", "config": {} });
    let integration = ask("integration.create", integration).await;
    for number in 0..WEBHOOKS_OF_A_TENANT {
        let kind = format!("sales.order.changed-{number}");
        let config = json!({ "url": world.sink_url("/0"), "filter": "data.totalNet > 1000" });
        let webhook = json!({
            "name": format!("w{number}"), "integrationId": integration,
            "events": [kind], "config": config,
        });
        ask("webhook.create", webhook).await;
    }
    WEBHOOKS_OF_A_TENANT
}

/// Of events, each right after a change of that webhook if there is one.
async fn latencies(world: &mut World, events: u64, change: Option<&str>) -> Latencies {
    world.tell_sink("reset").await;
    for number in 0..events {
        if let Some(webhook) = change {
            let body = json!({ "id": webhook, "description": format!("change {number}") });
            world.erp.ask("webhook.update", body).await;
        }
        world.publish_now().await;
        tokio::time::sleep(PAUSE).await;
    }
    world.served(events).await;
    Latencies::told(world).await
}
