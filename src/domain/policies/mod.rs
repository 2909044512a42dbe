//! Decisions: pure functions of state, time and randomness.

mod admission;
mod egress;
mod retry;

pub use admission::{Admission, EndpointLoad, Verdict};
pub use egress::{EgressPolicy, RefusedAddress, check_literal_host};
pub use retry::{RetryPolicy, next_wait};
