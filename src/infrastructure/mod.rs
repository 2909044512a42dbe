//! The outbound adapters.

pub mod postgres;
