//! Decisions: pure functions of state, time and randomness.

mod admission;
mod breaker;
mod egress;
mod matching;
mod outcome;
mod rate_limit;
mod retry;
mod signature;

pub use admission::{EndpointLoad, PATIENCE, STALL, Verdict, Window, admit};
pub use breaker::{Breaker, BreakerRules, EndpointState, Sign, Signs, Switched};
pub use egress::{EgressPolicy, RefusedAddress, check_literal_host};
pub use matching::Matcher;
pub use outcome::{Answer, NextStep, next_step};
pub use rate_limit::{Bucket, RateLimit};
pub use retry::{RetryPolicy, next_wait};
pub use signature::{NewSecret, SignatureKey, signature};
