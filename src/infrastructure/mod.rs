//! The outbound adapters: what the ports of the domain and the application stand on.

mod buckets;
mod by_batch;
mod by_lane;
pub mod clock;
pub mod crypto;
pub mod expression;
pub mod http;
pub mod nats;
pub mod postgres;
mod replay_row;
pub mod sqlite;
pub mod telemetry;
