//! The outbound adapters.

pub mod clock;
pub mod crypto;
pub mod http;
pub mod sqlite;
