//! What one webhook gets tokens with, and the one that this worker knows.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::Mutex as Turns, time::Instant};

use crate::{
    application::ports::SendError,
    domain::{
        interfaces::StoredToken,
        values::{Timestamp, WebhookId},
    },
};

use super::credentials::ClientCredentials;

/// The credentials of a webhook with its token. It goes with the webhook's compiled settings, so there are
/// never more of them than webhooks, and a change of the settings begins anew.
pub struct Grant {
    pub(super) webhook: WebhookId,
    pub(super) credentials: ClientCredentials,
    /// Whoever of this worker looks for a new token holds it; the others wait and take it over.
    pub(super) turn: Arc<Turns<()>>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    token: Option<Token>,
    /// When there was no new one, and why.
    failed: Option<(Instant, SendError)>,
    /// When a token was given up because its endpoint did not take it.
    given_up: Option<Instant>,
}

/// A token, ready to be shown. A clone shares its text.
#[derive(Clone)]
pub(super) struct Token {
    /// `Bearer …`
    pub(super) header: HeaderValue,
    /// Until when it is used without looking for a new one: half of its life.
    pub(super) fresh_until: Timestamp,
    /// Until when it is used.
    pub(super) expires_at: Timestamp,
}

impl Token {
    /// `text` must be one that a header takes.
    pub(super) fn new(text: &str, stored: &StoredToken) -> Option<Self> {
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        Some(Self {
            header,
            fresh_until: stored.got_at + (stored.expires_at - stored.got_at) / 2,
            expires_at: stored.expires_at,
        })
    }
}

impl Grant {
    /// Knows no token yet.
    pub fn new(webhook: WebhookId, credentials: ClientCredentials) -> Self {
        Self {
            webhook,
            credentials,
            turn: Arc::default(),
            held: Mutex::default(),
        }
    }

    /// The token that this worker knows, however old.
    pub(super) fn token(&self) -> Option<Token> {
        self.held().token.clone()
    }

    /// Takes a token over, or keeps in mind why there is none.
    pub(super) fn learn(&self, result: &Result<Token, SendError>) {
        let mut held = self.held();
        match result {
            Ok(token) => {
                held.token = Some(token.clone());
                held.failed = None;
            }
            Err(error) => held.failed = Some((Instant::now(), error.clone())),
        }
    }

    /// Why there was no new token within this time.
    pub(super) fn failure_within(&self, time: Duration) -> Option<SendError> {
        let held = self.held();
        let (at, error) = held.failed.as_ref()?;
        (at.elapsed() < time).then(|| error.clone())
    }

    /// Whether a token may be given up now: not if one was within this time.
    pub(super) fn may_give_up(&self, time: Duration) -> bool {
        let mut held = self.held();
        let may = held.given_up.is_none_or(|at| at.elapsed() >= time);
        if may {
            held.given_up = Some(Instant::now());
        }
        may
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("webhook", &self.webhook)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}
