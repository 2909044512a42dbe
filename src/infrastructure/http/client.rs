//! The client for endpoints.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, header::RETRY_AFTER, uri::Scheme};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::RootCertStore;
use tokio::time::{Instant, timeout_at};

use crate::{
    application::{
        client_identity::ClientIdentity,
        ports::{Clock, CutAnswer, HttpAnswer, HttpSender, OutboundRequest, SendError},
    },
    domain::policies::EgressPolicy,
};

use super::{
    connector::Connector,
    failure::send_error,
    retry_after::parse_retry_after,
    tls::{client_config, roots},
};

/// Idle connections that are kept to one host; those above are closed.
const MAX_IDLE_PER_HOST: usize = 256;
/// How long an idle connection is kept: less than servers commonly do.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

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
}

/// Sends requests to endpoints over HTTP/1.1, with connections kept alive; no redirects, no proxies.
/// Every address is checked before it is connected to.
pub struct EndpointClient {
    client: Client<Connector, Full<Bytes>>,
    clock: Arc<dyn Clock>,
    policy: EgressPolicy,
    roots: Arc<RootCertStore>,
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
        Self::build(policy, Arc::new(roots(ca_file)?), None, clock)
    }

    fn build(
        policy: EgressPolicy,
        roots: Arc<RootCertStore>,
        identity: Option<&ClientIdentity>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EndpointClientError> {
        let trusted = identity.and_then(ClientIdentity::roots).unwrap_or(&roots);
        let certified = identity.map(ClientIdentity::certified);
        let tls = client_config(Arc::clone(trusted), certified)?;
        let connector = Connector::new(policy.clone(), tls);
        #[expect(clippy::disallowed_methods, reason = "this is infrastructure/http")]
        let mut builder = Client::builder(TokioExecutor::new());
        let client = builder
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .pool_idle_timeout(IDLE_TIMEOUT)
            // The status decides; a stranger's odd header does not take it away.
            .http1_ignore_invalid_headers_in_responses(true)
            .build(connector);
        Ok(Self {
            client,
            clock,
            policy,
            roots,
        })
    }

    /// The client that connects as `identity`, under the same rules.
    fn of(&self, identity: &ClientIdentity) -> Result<Arc<dyn HttpSender>, SendError> {
        identity.client(|| {
            let (policy, clock) = (self.policy.clone(), Arc::clone(&self.clock));
            match Self::build(policy, Arc::clone(&self.roots), Some(identity), clock) {
                Ok(client) => Ok(Arc::new(client)),
                Err(error) => Err(SendError::Connect(error.to_string())),
            }
        })
    }

    async fn answer(
        &self,
        response: Response<Incoming>,
        deadline: Instant,
        whole_up_to: Option<usize>,
    ) -> HttpAnswer {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| parse_retry_after(value.as_bytes(), self.clock.now()));
        let status = response.status().as_u16();
        let mut incoming = response.into_body();
        // One byte more shows that it is too long.
        let limit = whole_up_to.map_or(HttpAnswer::MAX_BODY, |max| max + 1);
        let mut body = Vec::new();
        let mut is_broken = false;
        // The status has decided: a body that breaks or takes too long is kept as far as it came.
        while body.len() < limit && !incoming.is_end_stream() {
            let frame = match timeout_at(deadline, incoming.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(_))) | Err(_) => {
                    is_broken = true;
                    break;
                }
            };
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            let room = limit - body.len();
            body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        }
        let text = text(body.get(..HttpAnswer::MAX_BODY).unwrap_or(&body));
        let whole = whole_up_to.map(|max| match body {
            body if body.len() > max => Err(CutAnswer::TooLong(max)),
            _ if is_broken => Err(CutAnswer::BrokenOff),
            body => Ok(Bytes::from(body)),
        });
        HttpAnswer {
            status,
            retry_after,
            body: text,
            whole,
        }
    }
}

#[async_trait]
impl HttpSender for EndpointClient {
    async fn send(&self, mut request: OutboundRequest) -> Result<HttpAnswer, SendError> {
        if let Some(identity) = request.identity.take() {
            return self.of(&identity)?.send(request).await;
        }
        let (timeout, whole_up_to) = (request.timeout, request.whole_up_to);
        let deadline = Instant::now() + timeout;
        let prepared = prepare(request)?;
        match timeout_at(deadline, self.client.request(prepared)).await {
            Err(_) => Err(SendError::Timeout(timeout)),
            Ok(Err(error)) => Err(send_error(&error)),
            Ok(Ok(response)) => Ok(self.answer(response, deadline, whole_up_to).await),
        }
    }
}

fn prepare(request: OutboundRequest) -> Result<Request<Full<Bytes>>, SendError> {
    let scheme = request.uri.scheme();
    if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&scheme) {
        return Err(SendError::Refused(format!(
            "only http and https are sent to, not {}",
            scheme.map_or("nothing", Scheme::as_str)
        )));
    }
    let mut prepared = Request::new(Full::new(request.body));
    *prepared.method_mut() = request.method;
    *prepared.uri_mut() = request.uri;
    *prepared.headers_mut() = request.headers;
    Ok(prepared)
}

/// A stranger's bytes as text that any database takes: no invalid UTF-8, no NUL, not longer than the cap.
fn text(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).replace('\0', "\u{fffd}");
    text.truncate(text.floor_char_boundary(HttpAnswer::MAX_BODY));
    text
}

impl fmt::Debug for EndpointClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointClient").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;
