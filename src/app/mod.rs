//! The composition root: the one place that sees all layers.

mod error;
mod keys;
mod nats;
mod signals;
mod store;
mod worker;
