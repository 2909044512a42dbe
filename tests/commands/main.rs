//! Commands and queries as a whole: the real handler over a real SQLite file and a real key ring; only
//! the endpoints are played.

mod deliveries;
mod durable;
mod idempotency;
mod integrations;
mod lists;
mod refusals;
mod secrets;
mod webhooks;
mod world;
