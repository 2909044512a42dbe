//! The inbound adapters.

pub mod nats;
