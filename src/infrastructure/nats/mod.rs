//! NATS JetStream, outbound: the connection, the streams, the source of messages and the publisher.

pub mod connect;
pub mod publisher;
pub mod settings;
pub mod source;
pub mod subjects;
pub mod topology;

pub use connect::{Connection, connect};
pub use publisher::JetStreamPublisher;
pub use settings::{NatsAuth, NatsSettings, NatsSettingsError, NatsTls};
pub use source::PullSource;
pub use subjects::{SubjectPrefix, SubjectPrefixError};
pub use topology::{Difference, Topology, TopologyError, TopologySettings};
