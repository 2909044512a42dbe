//! What the tests stand on: servers that can be killed and come back, a receiver that can
//! misbehave, the worker as a process, and waiting on a condition instead of sleeping.

pub(crate) mod erp;
pub(crate) mod nats;
pub(crate) mod output;
pub(crate) mod receiver;
#[path = "../../support/mod.rs"]
mod shared;
pub(crate) mod site;
pub(crate) mod tls;
pub(crate) mod worker;

pub(crate) use shared::{PATIENCE, eventually, postgres, process, variable};
