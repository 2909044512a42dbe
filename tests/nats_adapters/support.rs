//! What the tests stand on; the servers are those of the tests of the whole worker.

#[expect(dead_code, reason = "these tests need a part of it")]
#[path = "../it/support/nats.rs"]
pub(crate) mod nats;
#[expect(dead_code, reason = "these tests need a part of it")]
#[path = "../it/support/output.rs"]
pub(crate) mod output;
#[expect(dead_code, reason = "these tests need a part of it")]
#[path = "../support/mod.rs"]
mod shared;

pub(crate) use shared::{PATIENCE, eventually, process, variable};
