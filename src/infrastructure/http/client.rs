//! The client for endpoints.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use reqwest::{Client, Request, Response, header::RETRY_AFTER, redirect};
use tokio::time::{Instant, timeout_at};

use crate::{
    application::ports::{Clock, HttpAnswer, HttpSender, OutboundRequest, SendError},
    domain::policies::{EgressPolicy, check_literal_host},
};

use super::{
    failure::send_error, resolver::EgressResolver, retry_after::parse_retry_after,
    tls::client_config,
};

/// Idle connections that are kept to one host; those above are closed.
const MAX_IDLE_PER_HOST: usize = 256;
/// How long an idle connection is kept: less than servers commonly do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long all addresses of a host together may take to connect, so that a host whose first address
/// is dead is still reached on its second one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum EndpointClientError {
    /// `EGRESS_CA_FILE` cannot be used.
    #[error("{}: {fault}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The client could not be built.
    #[error("the HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// Sends requests to endpoints over HTTP/1.1, with connections kept alive; no redirects, no proxies.
/// Every address is checked before it is connected to.
pub struct EndpointClient {
    client: Client,
    policy: EgressPolicy,
    clock: Arc<dyn Clock>,
}

impl EndpointClient {
    /// A client that trusts the system's root certificates and, besides, those in `ca_file` (PEM).
    ///
    /// # Errors
    /// [`EndpointClientError`] when a certificate or the client cannot be set up.
    pub fn new(
        policy: EgressPolicy,
        ca_file: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EndpointClientError> {
        #[expect(clippy::disallowed_methods, reason = "this is infrastructure/http")]
        let builder = Client::builder();
        let client = builder
            .tls_backend_preconfigured(client_config(ca_file)?)
            .dns_resolver(EgressResolver::new(policy.clone()))
            .no_proxy()
            .redirect(redirect::Policy::none())
            // When to try again is decided by the webhook's policy alone.
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            // The status decides; a stranger's odd header does not take it away.
            .http1_ignore_invalid_headers_in_responses(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .map_err(EndpointClientError::Client)?;
        Ok(Self {
            client,
            policy,
            clock,
        })
    }

    fn prepare(&self, request: OutboundRequest) -> Result<Request, SendError> {
        let url = request.url;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SendError::Refused(format!(
                "only http and https are sent to, not {}",
                url.scheme()
            )));
        }
        // The client asks no resolver for a literal address: this is where it is checked.
        if let Some(host) = url.host() {
            check_literal_host(&self.policy, &host)
                .map_err(|refused| SendError::Refused(refused.to_string()))?;
        }
        let mut prepared = Request::new(request.method, url);
        *prepared.headers_mut() = request.headers;
        *prepared.body_mut() = Some(request.body.into());
        Ok(prepared)
    }

    async fn answer(&self, mut response: Response, deadline: Instant) -> HttpAnswer {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| parse_retry_after(value.as_bytes(), self.clock.now()));
        let mut body = Vec::new();
        // The status has decided: a body that breaks or takes too long is kept as far as it came.
        while body.len() < HttpAnswer::MAX_BODY {
            let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await else {
                break;
            };
            let room = HttpAnswer::MAX_BODY - body.len();
            body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        }
        HttpAnswer {
            status: response.status().as_u16(),
            retry_after,
            body: text(&body),
        }
    }
}

#[async_trait]
impl HttpSender for EndpointClient {
    async fn send(&self, request: OutboundRequest) -> Result<HttpAnswer, SendError> {
        let timeout = request.timeout;
        let deadline = Instant::now() + timeout;
        let prepared = self.prepare(request)?;
        match timeout_at(deadline, self.client.execute(prepared)).await {
            Err(_) => Err(SendError::Timeout(timeout)),
            Ok(Err(error)) => Err(send_error(&error)),
            Ok(Ok(response)) => Ok(self.answer(response, deadline).await),
        }
    }
}

/// A stranger's bytes as text that any database takes: no invalid UTF-8, no NUL, not longer than the cap.
fn text(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).replace('\0', "\u{fffd}");
    text.truncate(text.floor_char_boundary(HttpAnswer::MAX_BODY));
    text
}

impl fmt::Debug for EndpointClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointClient")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;
