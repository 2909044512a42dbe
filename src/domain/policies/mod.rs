//! Decisions: pure functions of state, time and randomness.

mod admission;
mod egress;
mod retry;
mod signature;

pub use admission::{Admission, EndpointLoad, Verdict};
pub use egress::{EgressPolicy, RefusedAddress, check_literal_host};
pub use retry::{RetryPolicy, next_wait};
pub use signature::signature_v1;
