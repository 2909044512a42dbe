//! The outbound adapters.
pub mod telemetry;
