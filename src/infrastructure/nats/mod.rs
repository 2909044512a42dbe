//! NATS JetStream, outbound: the connection, the streams, the source of messages and the publisher.

mod archive;
pub mod connect;
mod connect_once;
mod dead_letters;
pub mod floor;
pub mod publisher;
pub mod settings;
pub mod source;
pub mod subjects;
pub mod topology;

pub use archive::JetStreamArchive;
pub use connect::{Connection, connect};
pub use connect_once::{ConnectOnceError, connect_once};
pub use dead_letters::JetStreamDeadLetters;
pub use floor::ConsumerFloor;
pub use publisher::JetStreamPublisher;
pub use settings::{NatsAuth, NatsSettings, NatsSettingsError, NatsTls};
pub use source::{Burial, PullSource};
pub use subjects::{SubjectPrefix, SubjectPrefixError};
pub use topology::{Difference, Inspection, Topology, TopologyError, TopologySettings};
