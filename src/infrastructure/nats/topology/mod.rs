//! The streams and consumers as data (CONTRACT 1), and how they come to be.
//!
//! Nothing here may need a server newer than 2.10: an old server takes settings that it does not
//! know without a word. So what was created is read back and compared too.

mod differences;
mod ensure;
mod inspect;

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use serde::Serialize;

use super::subjects::SubjectPrefix;

pub use differences::Difference;
pub(super) use ensure::ResumePoint;
pub use ensure::TopologyError;
pub use inspect::Inspection;

const DAY: Duration = Duration::from_hours(24);
/// Within it a `Nats-Msg-Id` is taken once.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(10);
/// No limit, as the server writes it.
const UNLIMITED: i64 = -1;
/// A message is delivered until it is settled.
const FOR_EVER: i64 = -1;

/// What of the topology is configuration.
#[derive(Debug, Clone)]
pub struct TopologySettings {
    /// `NATS_SUBJECT_PREFIX`.
    pub prefix: SubjectPrefix,
    /// `ERP_STREAM`.
    pub erp_stream: String,
    /// `ERP_SUBJECTS`.
    pub erp_subjects: Vec<String>,
    /// How long a business event may stay unsettled, without a sign of progress, before another
    /// worker gets it. Progress is signalled every third of it, however long an attempt takes.
    pub erp_ack_wait: Duration,
    /// How many business events may be unsettled at a time, over all workers.
    pub erp_max_ack_pending: u32,
}

impl TopologySettings {
    /// The default of `erp_ack_wait`.
    pub const ERP_ACK_WAIT: Duration = Duration::from_secs(30);
    /// The default of `erp_max_ack_pending`.
    pub const ERP_MAX_ACK_PENDING: u32 = 20_000;
    /// The same for commands; whoever handles one signals progress every third of it.
    pub const COMMANDS_ACK_WAIT: Duration = Duration::from_mins(1);
    /// Commands that may be unsettled at a time; those that wait for another try count.
    pub const COMMANDS_MAX_ACK_PENDING: u32 = 5_000;
}

/// A durable consumer on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsumerSpec {
    /// The stream that it reads.
    pub stream: String,
    /// Its settings.
    pub config: pull::Config,
}

/// Everything that has to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// What the worker's own users publish to.
    pub commands: stream::Config,
    /// What the worker publishes.
    pub events: stream::Config,
    /// What could not be understood.
    pub dead_letters: stream::Config,
    /// What the ERP publishes.
    pub erp: stream::Config,
    /// Shared by all workers of this prefix.
    pub commands_consumer: ConsumerSpec,
    /// Shared by all workers of this prefix.
    pub erp_consumer: ConsumerSpec,
}

impl Topology {
    /// The topology of an installation.
    pub fn new(settings: &TopologySettings) -> Self {
        let prefix = &settings.prefix;
        let commands = stream::Config {
            retention: RetentionPolicy::WorkQueue,
            // A full stream refuses, so that nobody believes in a command that is lost.
            discard: DiscardPolicy::New,
            ..stream_of(
                prefix.commands_stream(),
                // Also what has too many tokens, so that it becomes a dead letter.
                vec![format!("{}.>", prefix.commands())],
                7 * DAY,
            )
        };
        let events = stream_of(
            prefix.events_stream(),
            vec![format!("{}.>", prefix.events())],
            30 * DAY,
        );
        let dead_letters = stream_of(
            prefix.dead_letters_stream(),
            vec![prefix.dead_letter("commands"), prefix.dead_letter("events")],
            90 * DAY,
        );
        let erp = stream_of(
            settings.erp_stream.clone(),
            settings.erp_subjects.clone(),
            7 * DAY,
        );
        let commands_consumer = ConsumerSpec {
            stream: commands.name.clone(),
            config: consumer_of(
                prefix.commands_consumer(),
                TopologySettings::COMMANDS_ACK_WAIT,
                TopologySettings::COMMANDS_MAX_ACK_PENDING,
            ),
        };
        let erp_consumer = ConsumerSpec {
            stream: erp.name.clone(),
            config: consumer_of(
                prefix.erp_consumer(),
                settings.erp_ack_wait,
                settings.erp_max_ack_pending,
            ),
        };
        Self {
            commands,
            events,
            dead_letters,
            erp,
            commands_consumer,
            erp_consumer,
        }
    }

    fn streams(&self) -> [&stream::Config; 4] {
        [&self.commands, &self.events, &self.dead_letters, &self.erp]
    }

    fn consumers(&self) -> [&ConsumerSpec; 2] {
        [&self.commands_consumer, &self.erp_consumer]
    }
}

fn stream_of(name: String, subjects: Vec<String>, max_age: Duration) -> stream::Config {
    stream::Config {
        name,
        subjects,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age,
        duplicate_window: DUPLICATE_WINDOW,
        max_messages: UNLIMITED,
        max_messages_per_subject: UNLIMITED,
        max_bytes: UNLIMITED,
        max_message_size: -1,
        max_consumers: -1,
        num_replicas: 1,
        ..Default::default()
    }
}

/// It starts with the oldest message that is kept: whatever the ERP published before the worker
/// came is nothing that a webhook has asked for, and what it published since must not be missed.
fn consumer_of(name: String, ack_wait: Duration, max_ack_pending: u32) -> pull::Config {
    pull::Config {
        durable_name: Some(name),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        replay_policy: ReplayPolicy::Instant,
        ack_wait,
        max_deliver: FOR_EVER,
        max_ack_pending: i64::from(max_ack_pending),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
