//! Decisions: pure functions of state, time and randomness.

mod admission;
mod egress;
mod matching;
mod retry;

pub use admission::{Admission, EndpointLoad, Verdict};
pub use egress::{EgressPolicy, RefusedAddress, check_literal_host};
pub use matching::Matcher;
pub use retry::{RetryPolicy, next_wait};
