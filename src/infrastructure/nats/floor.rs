//! How far the source stream is settled, as its consumer tells.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{self, Context, consumer::Info};
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
        let stream = self.context.get_stream_no_info(&spec.stream).await?;
        Ok(settled(&stream.consumer_info(name).await?))
    }
}

/// All of it by one answer of one server: the leaders of the stream and of the consumer may be two, and
/// neither knows at once what the other does. Nothing is recorded that was not delivered, so where nothing
/// is left to be settled, all is settled up to what was delivered last. A consumer that was made again is
/// no exception: it begins behind what was settled before, and delivers the rest again.
fn settled(consumer: &Info) -> u64 {
    let acknowledged = consumer.ack_floor.stream_sequence;
    if consumer.num_pending == 0 && consumer.num_ack_pending == 0 {
        acknowledged.max(consumer.delivered.stream_sequence)
    } else {
        acknowledged
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

    async fn last(&self) -> Result<i64, BusError> {
        let name = &self.topology.erp_consumer.stream;
        let stream = self.context.get_stream(name).await;
        let stream = stream.map_err(|source| BusError {
            what: "the question how far the source stream is".to_owned(),
            source: source.into(),
        })?;
        let last = stream.cached_info().state.last_sequence;
        Ok(i64::try_from(last).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_floor_is_what_was_delivered_only_where_all_of_it_is_settled() {
        // Delivered, acknowledged, pending, waiting for an acknowledgement.
        for ((delivered, acknowledged, pending, waiting), expected) in [
            ((0, 0, 0, 0), 0),
            ((9, 4, 0, 0), 9),
            ((9, 4, 0, 1), 4),
            ((9, 4, 1, 0), 4),
            ((9, 9, 5, 0), 9),
            // Made again, to begin behind what was settled: nothing is delivered yet.
            ((0, 6, 0, 0), 6),
            ((6, 6, 3, 0), 6),
        ] {
            let info = json!({
                "stream_name": "S", "name": "c", "created": "2026-01-01T00:00:00Z",
                "config": {
                    "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant",
                },
                "delivered": { "consumer_seq": 1, "stream_seq": delivered },
                "ack_floor": { "consumer_seq": 1, "stream_seq": acknowledged },
                "num_ack_pending": waiting, "num_redelivered": 0, "num_waiting": 0,
                "num_pending": pending,
            });
            let info = serde_json::from_value(info).expect("an answer");
            assert_eq!(settled(&info), expected, "{info:?}");
        }
    }
}
