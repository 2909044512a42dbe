//! How far the workers are behind the ERP: asked now and then, shown in `/health`.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, jetstream};

use crate::{
    application::health::Health,
    infrastructure::nats::Topology,
    shared::{error_chain::Chain, lifecycle::Group},
};

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Asks until the group stops. No answer is none: what the bus is like is told elsewhere.
pub(crate) fn watch(group: &Group, client: Client, topology: Arc<Topology>, health: Arc<Health>) {
    let stopping = group.stopping();
    group.spawn_loop("lag", async move {
        let context = jetstream::new(client);
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            let asking = pending(&context, &topology);
            match stopping.run_until_cancelled(asking).await {
                Some(Ok(pending)) => health.set_events_pending(pending),
                Some(Err(error)) => {
                    tracing::debug!(error = %Chain(&*error), "the lag could not be asked");
                }
                None => return,
            }
        }
    });
}

/// The events in the source stream that no worker was given yet.
async fn pending(
    context: &jetstream::Context,
    topology: &Topology,
) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let spec = &topology.erp_consumer;
    let stream = context.get_stream_no_info(&spec.stream).await?;
    let name = spec.config.durable_name.as_deref().unwrap_or_default();
    Ok(stream.consumer_info(name).await?.num_pending)
}
