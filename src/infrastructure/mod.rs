//! The outbound adapters.

pub mod nats;
