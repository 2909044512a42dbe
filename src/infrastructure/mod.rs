//! The outbound adapters.
