//! The inbound adapters.

pub mod ops;
