//! `demo`: the main job from end to end, on servers of its own, as a user and the ERP would see it.

mod domain_events;
mod erp;
mod expectations;
mod inbox;
mod missed;
mod ops;
mod steps;
mod table;
mod user;
mod walk;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    embedded::{
        Environment, Folder, Surroundings, receiver::Receiver, transcript::Transcript,
        worker::Worker,
    },
    error::RunError,
};

use expectations::{Expectation, Seen};
use inbox::Inbox;
use walk::{Ground, Walk};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the ops server listens: any port of this machine.
const OPS_ADDR: &str = "127.0.0.1:0";

/// Runs the demo; `true` when everything was seen that is to be seen. `shutdown` breaks it off.
///
/// # Errors
/// [`RunError`] when its servers cannot be had, or the worker does not run.
pub(crate) async fn run(shutdown: CancellationToken) -> Result<bool, RunError> {
    let begun = Instant::now();
    let out = Transcript::stdout();
    let folder = Folder::temporary("demo")?;
    let mut surroundings = Surroundings::set_up(folder, Environment::LogOnly, OPS_ADDR).await?;
    let mut seen = Seen::default();
    let result = in_surroundings(&surroundings, &mut seen, &out, shutdown).await;
    let is_done = matches!(result, Ok(Some(()))) && seen.is_everything();
    match &result {
        Ok(Some(())) => summary(&out, &seen, begun.elapsed()),
        Ok(None) => out.heading("Broken off."),
        Err(_) => out.heading("The worker does not run."),
    }
    if !is_done && !matches!(result, Ok(None)) {
        surroundings.folder.keep();
        let folder = surroundings.folder.path().display();
        out.line(&format!("The logs are kept in {folder}"));
    }
    surroundings.tear_down().await;
    out.finish()?;
    result.map(|_| is_done)
}

/// `None` when it was broken off.
async fn in_surroundings(
    surroundings: &Surroundings,
    seen: &mut Seen,
    out: &Transcript,
    shutdown: CancellationToken,
) -> Result<Option<()>, RunError> {
    let log = surroundings.folder.path().join("worker.log");
    let worker = Worker::start(surroundings.config.clone(), Some(&log)).await?;
    introduce(surroundings, &log, out);
    let inbox = Arc::<Inbox>::default();
    let witness = Arc::clone(&inbox);
    let receiver = Receiver::start(worker.group(), Arc::new(move |one| witness.add(one))).await?;
    let ground = Ground {
        nats_url: surroundings.nats_url(),
        ops: worker.ops(),
        receiver,
        inbox,
        out: out.clone(),
    };
    worker
        .run_beside(shutdown, Box::pin(walk(ground, seen)))
        .await
}

async fn walk(ground: Ground, seen: &mut Seen) {
    let out = ground.out.clone();
    let walk = async {
        match Walk::begin(ground, seen).await {
            Ok(walk) => walk.make().await,
            Err(missed) => out.missed(&missed.to_string()),
        }
    };
    if tokio::time::timeout(PATIENCE, walk).await.is_err() {
        out.missed(&format!("not done within {} s", PATIENCE.as_secs()));
    }
}

fn introduce(surroundings: &Surroundings, log: &Path, out: &Transcript) {
    out.line("The main job of the integration worker, from end to end.");
    out.line(&format!(
        "On this machine, for these seconds: nats-server {}, a SQLite database, one worker, and a",
        surroundings.nats_version()
    ));
    out.line(
        "receiver of webhooks. Everything below happens over NATS, as users and the ERP do it.",
    );
    out.line(&format!(
        "The worker's log, until all is done: {}",
        log.display()
    ));
}

fn summary(out: &Transcript, seen: &Seen, took: Duration) {
    out.heading("What was to be seen");
    for expectation in Expectation::ALL {
        if seen.contains(expectation) {
            out.seen(expectation.text());
        } else {
            out.missed(&format!("{} (not seen)", expectation.text()));
        }
    }
    let (count, all) = (seen.count(), Expectation::ALL.len());
    out.line("");
    out.line(&format!(
        "{count} of {all} seen, in {:.1} s.",
        took.as_secs_f64()
    ));
    if seen.is_everything() {
        out.line("`make dev` starts the same and stays up for you to try.");
    }
}
