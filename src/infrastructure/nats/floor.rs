//! How far the source stream is settled, as its consumer tells.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{self, Context};
use async_trait::async_trait;

use crate::application::ports::{BusError, SourceFloor};

use super::{connect::Connection, topology::Topology};

/// How long the server may take to answer.
const API_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the consumer of the business events.
pub struct ConsumerFloor {
    context: Context,
    topology: Arc<Topology>,
}

impl std::fmt::Debug for ConsumerFloor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerFloor").finish_non_exhaustive()
    }
}

impl ConsumerFloor {
    /// Asks over this connection.
    pub fn new(connection: &Connection, topology: &Arc<Topology>) -> Self {
        Self {
            context: jetstream::context::ContextBuilder::new()
                .timeout(API_TIMEOUT)
                .build(connection.client.clone()),
            topology: Arc::clone(topology),
        }
    }

    async fn ask(&self) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        let spec = &self.topology.erp_consumer;
        let name = spec.config.durable_name.as_deref().unwrap_or_default();
        // In this order: what came later is at most not counted yet.
        let stream = self.context.get_stream(&spec.stream).await?;
        let last = stream.cached_info().state.last_sequence;
        let consumer = stream.consumer_info(name).await?;
        let all_settled = consumer.num_pending == 0 && consumer.num_ack_pending == 0;
        // A consumer that was made again knows no acknowledgements of its own at first.
        let settled = consumer.ack_floor.stream_sequence;
        Ok(if all_settled {
            settled.max(last)
        } else {
            settled
        })
    }
}

#[async_trait]
impl SourceFloor for ConsumerFloor {
    async fn floor(&self) -> Result<i64, BusError> {
        let floor = self.ask().await.map_err(|source| BusError {
            what: "the question how far the source stream is settled".to_owned(),
            source,
        })?;
        Ok(i64::try_from(floor).unwrap_or(i64::MAX))
    }
}
