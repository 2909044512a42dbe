//! The inbound adapters: through which the world reaches the worker.

pub mod nats;
pub mod ops;
