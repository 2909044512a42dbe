//! Commands and queries as a whole: the real handler over a real database and a real key ring; only the
//! endpoints are played. Mostly on SQLite; what hangs on locks, on PostgreSQL too.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with tests that stop servers too")]
mod support;

mod dead_letters;
mod deliveries;
mod durable;
mod idempotency;
mod integrations;
mod lists;
mod postgres;
mod refusals;
mod replays;
mod rewrap;
mod secrets;
mod tokens;
mod webhooks;
mod world;
