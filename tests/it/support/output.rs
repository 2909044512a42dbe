//! Waiting for what a process prints.

use std::time::Duration;

use super::{
    eventually,
    process::{Output, Process},
};

impl Process {
    pub(crate) fn output(&self) -> &Output {
        &self.output
    }
}

impl Output {
    /// Waits for the first line, new or old, of which `read` makes something.
    pub(crate) async fn wait_for<T>(
        &self,
        timeout: Duration,
        read: impl Fn(&str) -> Option<T>,
    ) -> T {
        let mut count = self.count.subscribe();
        let mut seen = 0;
        let found = async {
            loop {
                count.borrow_and_update();
                let lines = self.lines();
                if let Some(value) = lines.iter().skip(seen).find_map(|line| read(line)) {
                    return value;
                }
                seen = lines.len();
                count.changed().await.expect("this holds a sender");
            }
        };
        tokio::time::timeout(timeout, found)
            .await
            .unwrap_or_else(|_| {
                let printed = self.text();
                panic!(
                    "no such line within {timeout:?}; it printed
{printed}"
                )
            })
    }
}

/// Waits until `ready` answers; panics at once with what it printed where the process ends.
pub(crate) async fn until_ready<T>(
    process: &mut Process,
    timeout: Duration,
    mut ready: impl AsyncFnMut() -> Option<T>,
) -> T {
    eventually(timeout, async || {
        let output = process.output().clone();
        assert!(
            process.is_running(),
            "it ended; it printed\n{}",
            output.text()
        );
        ready().await
    })
    .await
}
