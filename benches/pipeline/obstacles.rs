//! Endpoints that are dead, or come back with everything that waited for them.

use serde_json::json;

use crate::{
    Effort,
    report::{Bar, Report},
    world::{World, float, seconds_between},
};

const NINE: [&str; 9] = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8"];

/// Nine endpoints, without and with a tenth that takes requests and never answers, in turn.
pub(crate) async fn dead_endpoint(effort: Effort, report: &mut Report) {
    let events = effort.choose(5_000, 500);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..effort.choose(2, 1) {
        without.push(nine(false, events).await.0);
        let (per_second, hung) = nine(true, events).await;
        report.remark(format!(
            "dead-endpoint: {hung} requests hung in the run at {per_second:.0}/s"
        ));
        with.push(per_second);
    }
    let shown = |runs: &[f64]| {
        let runs: Vec<String> = runs.iter().map(|run| format!("{run:.0}")).collect();
        runs.join(", ")
    };
    report.remark(format!(
        "dead-endpoint: the nine {} /s without, {} /s with it",
        shown(&without),
        shown(&with),
    ));
    let ratio = with.iter().sum::<f64>() / without.iter().sum::<f64>();
    let what = "nine endpoints beside one that never answers, against without it";
    report.figure("dead-endpoint", what, ratio, "", Bar::AtLeast(0.90));
}

/// Deliveries per second to the nine, and how many requests hung.
async fn nine(with_the_dead: bool, events: u64) -> (f64, u64) {
    let mut world = World::on_postgres().await;
    for path in NINE {
        world.webhook(path).await;
    }
    if with_the_dead {
        world.webhook("/hang").await;
    }
    world.stop_worker().await;
    world.publish(events).await;
    world.tell_sink("reset").await;
    world.start_worker();
    let deliveries = events * u64::try_from(NINE.len()).unwrap_or(0);
    let seen = world.served(deliveries).await;
    let seconds = seconds_between(seen.first, seen.last);
    (float(deliveries) / seconds, seen.hung)
}

/// A webhook that was gone is activated with everything that was parked for it.
pub(crate) async fn parked(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    world.tell_sink("gone").await;
    let webhook = world.webhook("/gone").await;
    world.publish(1).await;
    world.wait_webhook_status(&webhook, "error").await;
    world.publish(effort.choose(100_000, 5_000)).await;
    world.settled().await;
    let rows = world.database.parked_rows().await;
    world.tell_sink("back").await;
    world.tell_sink("reset").await;

    let (start, cpu) = (crate::sink::wall_nanos(), world.cpu());
    world
        .erp
        .ask("webhook.activate", json!({ "id": webhook }))
        .await;
    world.served(rows).await;
    let end = world.drained().await;
    let used = world.cpu();

    let seconds = seconds_between(start, end);
    let served = world.seen().await.served;
    report.remark(format!(
        "parked: {rows} rows drained in {seconds:.2} s with {served} requests"
    ));
    report.remark(format!("parked: {}", used.per_delivery(cpu, rows)));
    let what = format!("{rows} parked rows due, drained");
    let per_second = float(rows) / seconds;
    report.figure("parked", &what, per_second, " /s", Bar::AtLeast(3_000.0));
}
