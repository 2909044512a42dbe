//! Events in, deliveries out: how many, and how soon.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::{
    Effort, raw,
    report::{Bar, Report},
    world::{World, float, seconds_between},
};

/// Between two events of the idle worker.
const PAUSE: Duration = Duration::from_millis(20);

/// What the pipeline did, beside what the raw loop did before and after.
struct Compared {
    per_second: f64,
    raw: f64,
}

pub(crate) async fn one_webhook(effort: Effort, report: &mut Report) {
    let world = World::on_postgres().await;
    let events = effort.choose(50_000, 5_000);
    let compared = compare("one-webhook", world, &["/0"], events, effort, report).await;
    let ratio = compared.per_second / compared.raw;
    let what = "events → delivered and recorded, against a raw signed loop";
    report.figure("one-webhook", what, ratio, "", Bar::AtLeast(0.40));
}

pub(crate) async fn ten_webhooks(effort: Effort, report: &mut Report) {
    let world = World::on_postgres().await;
    let paths = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9"];
    let events = effort.choose(10_000, 1_000);
    let compared = compare("ten-webhooks", world, &paths, events, effort, report).await;
    let ratio = compared.per_second / compared.raw;
    let what = "1 event → 10 webhooks, per delivery, against a raw signed loop";
    report.figure("ten-webhooks", what, ratio, "", Bar::AtLeast(0.40));
}

pub(crate) async fn sqlite(effort: Effort, report: &mut Report) {
    let world = World::on_sqlite().await;
    let events = effort.choose(50_000, 5_000);
    let compared = compare("sqlite", world, &["/0"], events, effort, report).await;
    let ratio = compared.per_second / compared.raw;
    let what = "one-webhook on SQLite, against a raw signed loop";
    report.figure("sqlite", what, ratio, "", Bar::None);
}

/// A stream full of events, and a worker that starts: from the first request that the sink sees
/// until nothing is left to be acknowledged.
async fn compare(
    scenario: &'static str,
    mut world: World,
    paths: &[&str],
    events: u64,
    effort: Effort,
    report: &mut Report,
) -> Compared {
    let length = Duration::from_secs(effort.choose(5, 1));
    for path in paths {
        world.webhook(path).await;
    }
    world.stop_worker().await;
    let url = world.sink_url("/raw");
    let before = raw::requests_per_second(&url, length).await;
    world.publish(events).await;
    world.tell_sink("reset").await;

    let cpu = world.cpu();
    world.start_worker();
    let acknowledged = world.settled().await;
    let deliveries = events * u64::try_from(paths.len()).unwrap_or(0);
    let early = world.seen().await.served;
    // What an endpoint was too busy for was parked, and its event acknowledged all the same.
    let end = if early < deliveries {
        world.served(deliveries).await;
        world.drained().await
    } else {
        acknowledged
    };
    let used = world.cpu();

    let seen = world.seen().await;
    let seconds = seconds_between(seen.first, end);
    let per_second = float(deliveries) / seconds;
    world.stop_worker().await;
    let after = raw::requests_per_second(&url, length).await;
    let raw = f64::midpoint(before, after);
    report.remark(format!(
        "{scenario}: {deliveries} deliveries in {seconds:.2} s, {per_second:.0}/s ({} requests, {} after all events were acknowledged); raw loop {before:.0}/s before, {after:.0}/s after, mean {raw:.0}/s",
        seen.served,
        seen.served - early,
    ));
    let split = used.per_delivery(cpu, deliveries);
    report.remark(format!("{scenario}: {split}"));
    Compared { per_second, raw }
}

pub(crate) async fn latency(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    world.webhook("/latency").await;
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first ones open connections and fill caches.
    for _ in 0..50 {
        ticks.tick().await;
        world.publish_now().await;
    }
    world.settled().await;
    world.tell_sink("reset").await;
    let events = effort.choose(1_000, 100);
    for _ in 0..events {
        ticks.tick().await;
        world.publish_now().await;
    }
    world.served(events).await;

    let latencies = Latencies::told(&world).await;
    assert!(latencies.count() >= 100, "the sink tells them");
    let bars = [(50, Bar::LessThan(5.0)), (99, Bar::LessThan(20.0))];
    for (percent, bar) in bars {
        let what = format!("publish → received, idle, p{percent}");
        report.figure("latency", &what, latencies.percentile(percent), " ms", bar);
    }
    let (least, most) = (latencies.percentile(0), latencies.percentile(100));
    report.remark(format!(
        "latency: {} events, least {least:.2} ms, most {most:.2} ms",
        latencies.count(),
    ));
}

/// From the moment before each publish call until the sink had read the request.
pub(crate) struct Latencies(Vec<u64>);

impl Latencies {
    /// Of several measurements together.
    pub(crate) fn of_all(each: Vec<Self>) -> Self {
        let mut latencies: Vec<u64> = each.into_iter().flat_map(|one| one.0).collect();
        latencies.sort_unstable();
        Self(latencies)
    }

    /// Of the events that came to `/latency` since the sink was reset.
    pub(crate) async fn told(world: &World) -> Self {
        let answer = world.tell_sink("latencies").await;
        let each = answer.split(' ').filter_map(|one| one.parse().ok());
        let mut latencies: Vec<u64> = each.collect();
        latencies.sort_unstable();
        Self(latencies)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let position = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        float(self.0.get(position).copied().unwrap_or(0)) / 1e6
    }
}
