//! A small HTTP server that webhooks can be sent to. Its endpoints answer as they are told.

mod script;
mod signature;

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
};
use tokio::{net::TcpListener, time::sleep};

use crate::{app::error::RunError, shared::lifecycle::Group};

pub(crate) use script::{Answer, Script};
pub(crate) use signature::Secret;

/// Longest body that it takes.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Its method.
    pub(crate) method: Method,
    /// The path, without a query.
    pub(crate) path: String,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
    /// The status that it is answered with.
    pub(crate) status: u16,
}

impl Received {
    /// A header as text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Is told of every request, before it is answered.
pub(crate) type Witness = Arc<dyn Fn(Received) + Send + Sync>;

/// A receiver that listens.
#[derive(Clone)]
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    witness: Witness,
}

impl Shared {
    fn scripts(&self) -> MutexGuard<'_, HashMap<String, Script>> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What no script names is answered by its path: `/status/503` is 503, anything else 200.
    fn next_answer(&self, path: &str) -> Answer {
        let scripted = self.scripts().get_mut(path).map(Script::next);
        scripted.unwrap_or_else(|| Answer::at_once(status_in(path).unwrap_or(200)))
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// Listens on a free port of this machine until the group stops.
    ///
    /// # Errors
    /// When there is no port.
    pub(crate) async fn start(group: &Group, witness: Witness) -> Result<Self, RunError> {
        let failed = |error: std::io::Error| {
            RunError::Embedded(format!("the receiver of webhooks cannot listen: {error}"))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(failed)?;
        let receiver = Self {
            address: listener.local_addr().map_err(failed)?,
            shared: Arc::new(Shared {
                scripts: Mutex::default(),
                witness,
            }),
        };
        let router = Router::new()
            .fallback(receive)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Arc::clone(&receiver.shared));
        let stopping = group.stopping();
        let server = axum::serve(listener, router)
            .with_graceful_shutdown(async move { stopping.cancelled().await });
        group.spawn_loop("receiver", async move {
            // It answers an error never: accepting is tried again for ever.
            drop(server.await);
        });
        Ok(receiver)
    }

    /// The URL of one of its endpoints.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on, the endpoint answers so.
    pub(crate) fn script(&self, path: &str, script: Script) {
        self.shared.scripts().insert(path.to_owned(), script);
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let answer = shared.next_answer(uri.path());
    (shared.witness)(Received {
        method,
        path: uri.path().to_owned(),
        headers,
        body,
        status: answer.status,
    });
    if !answer.delay.is_zero() {
        sleep(answer.delay).await;
    }
    StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK)
}

/// The final status that `/status/<status>` names.
fn status_in(path: &str) -> Option<u16> {
    let status = path.strip_prefix("/status/")?.parse().ok()?;
    (200..=599).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_can_name_the_status_that_it_is_answered_with() {
        for (path, status) in [
            ("/status/503", Some(503)),
            ("/status/204", Some(204)),
            ("/status/101", None),
            ("/status/600", None),
            ("/status/", None),
            ("/status/503/", None),
            ("/orders", None),
        ] {
            assert_eq!(status_in(path), status, "{path}");
        }
    }
}
