//! What a worker's lanes do with their leases, their probes and the floor; over SQLite.

mod changes;
#[cfg(test)]
#[expect(dead_code, reason = "these tests need a part of it")]
#[path = "../registry/support.rs"]
mod fixture;
mod ordered;
mod places;
mod probes;
mod world;
