//! The ops server: `/live`, `/ready`, `/health` and `/metrics`. It is bound before anything else
//! begins and stops last, so that whoever looks after the worker is always answered.

mod connections;
#[cfg(test)]
mod tests;

use std::{fmt, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    application::{health::Health, ports::Clock},
    shared::lifecycle::Group,
};

use connections::{Bounds, Connections};

/// The ops server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("the ops server cannot listen on {address} (OPS_ADDR)")]
pub struct OpsError {
    address: SocketAddr,
    source: io::Error,
}

/// What the ops server tells.
#[derive(Clone)]
pub struct Ops {
    /// How the worker is.
    pub health: Arc<Health>,
    /// For the age of what waits.
    pub clock: Arc<dyn Clock>,
    /// Renders the metrics.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ops")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

/// A server that is bound and does not answer yet.
#[derive(Debug)]
pub struct OpsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl OpsServer {
    /// Binds the address and logs it; port 0 picks a free one.
    ///
    /// # Errors
    /// [`OpsError`] when the address is taken or not this machine's.
    pub async fn bind(address: SocketAddr) -> Result<Self, OpsError> {
        let failed = |source| OpsError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(ops_addr = %address, "the ops server listens");
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the group stops.
    pub fn spawn(self, group: &Group, ops: Ops) {
        self.spawn_within(Bounds::default(), group, ops);
    }

    fn spawn_within(self, bounds: Bounds, group: &Group, ops: Ops) {
        let stopping = group.stopping();
        let connections = Connections::new(self.listener, self.address, bounds);
        let server = axum::serve(connections, router(ops))
            .with_graceful_shutdown(async move { stopping.cancelled().await });
        group.spawn_loop("ops server", async move {
            // It answers an error never: accepting is tried again for ever.
            drop(server.await);
        });
    }
}

/// `GET` also answers `HEAD`; any other method is 405, any other path 404. No handler reads a body.
fn router(ops: Ops) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

async fn ready(State(ops): State<Ops>) -> Response {
    match ops.health.ready() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(reasons) => {
            let text = format!("{}\n", reasons.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn health(State(ops): State<Ops>) -> Response {
    match serde_json::to_string_pretty(&ops.health.report(ops.clock.now())) {
        Ok(text) => answer("application/json", text + "\n"),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn metrics(State(ops): State<Ops>) -> Response {
    answer("text/plain; version=0.0.4; charset=utf-8", (ops.metrics)())
}

fn answer(content_type: &'static str, text: String) -> Response {
    let content_type = HeaderValue::from_static(content_type);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
