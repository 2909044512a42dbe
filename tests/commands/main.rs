//! Commands and queries as a whole: the real handler over a real SQLite file and a real key ring; only
//! the endpoints are played.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

mod deliveries;
mod durable;
mod idempotency;
mod integrations;
mod lists;
mod refusals;
mod secrets;
mod webhooks;
mod world;
