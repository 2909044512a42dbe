//! Follows NATS and the database for `/ready` and `/health`.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    application::health::{DATABASE, Health, NATS},
    domain::interfaces::Store,
    shared::error_chain::Chain,
};

/// How often the database is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Until `stopping`.
pub(crate) async fn watch(
    store: Arc<dyn Store>,
    mut connected: tokio::sync::watch::Receiver<bool>,
    health: Arc<Health>,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => match store.ping().await {
                Ok(()) => health.up(DATABASE),
                Err(error) => health.down(DATABASE, Chain(&error).to_string()),
            },
            changed = connected.changed() => if changed.is_err() {
                health.down(NATS, "the client is gone");
                return stopping.cancelled().await;
            },
        }
        if *connected.borrow_and_update() {
            health.up(NATS);
        } else {
            health.down(NATS, "not connected");
        }
    }
}
