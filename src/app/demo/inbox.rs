//! What the receiver was sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::app::embedded::receiver::Received;

use super::missed::{Missed, in_time};

/// How many requests are kept; the demo makes far fewer.
const MOST: usize = 1_000;

/// All requests, in the order in which they came.
#[derive(Debug)]
pub(super) struct Inbox {
    requests: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Inbox {
    pub(super) fn add(&self, request: Received) {
        let mut requests = self.lock();
        if requests.len() < MOST {
            requests.push(request);
        }
        self.count.send_replace(requests.len());
    }

    /// Those to one endpoint.
    pub(super) fn of(&self, path: &str) -> Vec<Received> {
        let requests = self.lock();
        requests
            .iter()
            .filter(|one| one.path == path)
            .cloned()
            .collect()
    }

    /// Waits until so many have come to one endpoint, and gives back all to it.
    ///
    /// # Errors
    /// When they do not come.
    pub(super) async fn wait(&self, path: &str, count: usize) -> Result<Vec<Received>, Missed> {
        let mut changes = self.count.subscribe();
        in_time(&format!("{count} requests to {path}"), async {
            loop {
                changes.borrow_and_update();
                let requests = self.of(path);
                if requests.len() >= count {
                    return Ok(requests);
                }
                let gone = |_| Missed("the receiver is gone".to_owned());
                changes.changed().await.map_err(gone)?;
            }
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
