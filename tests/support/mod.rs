//! What the tests of several crates stand on: a PostgreSQL, processes that end with their test,
//! and waiting on a condition instead of sleeping.

pub(crate) mod postgres;
pub(crate) mod process;

use std::time::Duration;

use tokio::time::Instant;

/// How long anything on this machine may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is `Some`, and gives it back.
///
/// Panics after `timeout`: a condition that never holds is the test's failure.
pub(crate) async fn eventually<T>(
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match tokio::time::timeout_at(deadline, condition()).await {
            Ok(Some(value)) => return value,
            Ok(None) if Instant::now() < deadline => {}
            _ => panic!("the condition did not hold within {timeout:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A variable of the environment that the tests run in.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests are told by the environment where the servers are"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
