//! The inbound adapters: through which the world reaches the worker.

pub mod cli;
pub mod nats;
pub mod ops;
