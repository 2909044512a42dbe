//! How large the worker becomes.

use crate::{
    Effort,
    processes::worker_memory,
    report::{Bar, Report},
    world::World,
};

/// MiB.
const MOST: f64 = 120.0;
/// How much larger it may be after twice the deliveries, and still be called flat.
const FLAT: f64 = 1.10;

pub(crate) async fn memory(effort: Effort, report: &mut Report) {
    let mut world = World::on_postgres().await;
    world.webhook("/0").await;
    let (at_start, _) = worker_memory();
    let mut sizes = Vec::new();
    let mut published = 0;
    for after in effort.choose([50_000, 100_000, 200_000], [5_000, 10_000, 20_000]) {
        world.publish(after - published).await;
        published = after;
        world.settled().await;
        let (now, most) = worker_memory();
        report.remark(format!(
            "memory: {now:.1} MiB after {after} deliveries (at most {most:.1} so far; {at_start:.1} at the start)"
        ));
        sizes.push(now);
    }
    let (half, whole) = (sizes.get(1).copied(), sizes.last().copied());
    let whole = whole.unwrap_or(f64::NAN);
    let what = format!("worker memory after {published} deliveries");
    report.figure("memory", &what, whole, " MiB", Bar::LessThan(MOST));
    let growth = whole / half.unwrap_or(f64::NAN);
    let what = "the same, against half as many deliveries";
    report.figure("memory", what, growth, "", Bar::LessThan(FLAT));
}
