//! The inbound adapters.
