//! The outbound adapters.

pub mod sqlite;
