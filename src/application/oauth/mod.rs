//! OAuth 2 for webhooks: tokens by client credentials (RFC 6749, 4.4), shown to the endpoint with each
//! request.
//!
//! A [`Grant`] goes with the compiled webhook and keeps the token in memory. [`TokenSender`] stands before
//! the HTTP client: a request without a grant passes it as it is; for one with a grant it sees to the
//! token. `Tokens` gets it: from the store, where all workers share it, or from its
//! endpoint, under a lease, so that over all workers one asks at a time. All attempts of a
//! worker that need it wait for the same search, which goes on when they end; if its request fails, one of
//! them counts it and the others only wait. From half of its life on, a token is replaced in the
//! background while it is still used. One that the endpoint does not take (`401`) is
//! replaced once, and the request of the same attempt sent again.

mod credentials;
mod grant;
mod tokens;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::header;
use tokio::time::Instant;

use super::ports::{HttpAnswer, HttpSender, OutboundRequest, SendError};

pub use credentials::{ClientCredentials, Given};
pub use grant::Grant;
use grant::Token;
pub use tokens::TokenParts;
use tokens::{Tokens, waits};

/// The status of an endpoint that does not take a token.
const UNAUTHORIZED: u16 = 401;

/// Sends requests, with a token where one is asked for.
pub struct TokenSender {
    sender: Arc<dyn HttpSender>,
    tokens: Arc<Tokens>,
}

impl TokenSender {
    /// Sends with `sender`, token requests too.
    pub fn new(sender: Arc<dyn HttpSender>, parts: TokenParts) -> Self {
        let tokens = Arc::new(Tokens::new(Arc::clone(&sender), parts));
        Self { sender, tokens }
    }

    /// The request's timeout is that of all that is done for it.
    async fn send_with(
        &self,
        grant: Arc<Grant>,
        request: OutboundRequest,
    ) -> Result<HttpAnswer, SendError> {
        let timeout = request.timeout;
        let deadline = Instant::now() + timeout;
        let token = self.tokens.token(&grant, deadline).await?;
        // It comes to those who have waited for it to the last, too.
        if Instant::now() >= deadline {
            return Err(waits("it came too late"));
        }
        let answer = self.send_showing(&token, request.clone(), deadline).await?;
        if answer.status != UNAUTHORIZED {
            return Ok(answer);
        }
        match self.tokens.instead_of(&grant, &token, deadline).await {
            Ok(Some(other)) if other.header != token.header && Instant::now() < deadline => {
                self.send_showing(&other, request, deadline).await
            }
            // The endpoint has answered, and this is what it said.
            Ok(_) => Ok(answer),
            Err(error) => {
                tracing::debug!(webhook = %grant.webhook, %error, "no other token after HTTP 401");
                Ok(answer)
            }
        }
    }

    async fn send_showing(
        &self,
        token: &Token,
        mut request: OutboundRequest,
        deadline: Instant,
    ) -> Result<HttpAnswer, SendError> {
        let timeout = request.timeout;
        request.timeout = deadline.saturating_duration_since(Instant::now());
        let value = token.header.clone();
        request.headers.insert(header::AUTHORIZATION, value);
        match self.sender.send(request).await {
            Err(SendError::Timeout(_)) => Err(SendError::Timeout(timeout)),
            other => other,
        }
    }
}

/// Written out, so that a request without a grant costs no more than the look at it.
impl HttpSender for TokenSender {
    fn send<'sender, 'sending>(
        &'sender self,
        mut request: OutboundRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpAnswer, SendError>> + Send + 'sending>>
    where
        'sender: 'sending,
        Self: 'sending,
    {
        match request.grant.take() {
            None => self.sender.send(request),
            Some(grant) => Box::pin(self.send_with(grant, request)),
        }
    }
}

impl fmt::Debug for TokenSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSender").finish_non_exhaustive()
    }
}
