//! What it costs that deliveries go out in order: one key for all, a hundred, ten thousand.

use serde_json::json;

use crate::{
    Effort,
    report::{Bar, Report},
    world::{EVENT_TYPE, World, float, seconds_between},
};

pub(crate) async fn ordered(effort: Effort, report: &mut Report) {
    let events = effort.choose(20_000, 1_000);
    for keys in [1, 100, 10_000] {
        let mut world = World::on_postgres().await;
        let config = json!({ "ordering": { "key": "data.customerId" } });
        world.webhook_for(EVENT_TYPE, "/0", config).await;
        world.stop_worker().await;
        let customer = |number: u64| json!({ "customerId": format!("K-{}", number % keys) });
        world.publish_each(events, customer).await;
        world.tell_sink("reset").await;

        let cpu = world.cpu();
        world.start_worker();
        world.settled().await;
        world.served(events).await;
        let end = world.drained().await;
        let used = world.cpu();

        let seconds = seconds_between(world.seen().await.first, end);
        let what = format!("{events} events in order, {keys} keys");
        let per_second = float(events) / seconds;
        report.figure("ordered", &what, per_second, " /s", Bar::None);
        let split = used.per_delivery(cpu, events);
        report.remark(format!("ordered, {keys} keys: {split}"));
    }
}
