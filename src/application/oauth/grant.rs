//! What one webhook gets tokens with, and the one that this worker knows.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use tokio::{sync::watch, time::Instant};

use crate::{
    application::ports::{SendError, TokenFault},
    domain::{
        interfaces::StoredToken,
        values::{Timestamp, WebhookId},
    },
};

use super::credentials::ClientCredentials;

/// How long a failure stands for everybody who needs a token of the same webhook.
const FAILURE_STANDS: Duration = Duration::from_secs(1);
/// How long one stands that nobody has been told of: who asked for the token had no time to wait for it.
const UNTOLD_STANDS: Duration = Duration::from_secs(30);

/// What was found: a token, none because the former one was given up a moment ago, or what is wrong.
pub(super) type Found = Result<Option<Token>, SendError>;

/// The credentials of a webhook with its token. It goes with the webhook's compiled settings, so there are
/// never more of them than webhooks, and a change of the settings begins anew.
pub struct Grant {
    pub(super) webhook: WebhookId,
    pub(super) credentials: ClientCredentials,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    token: Option<Token>,
    /// When there was no new one, and why.
    failed: Option<Failure>,
    /// When this worker gave a token up because its endpoint did not take it.
    given_up: Option<Instant>,
    /// The search for one that goes on.
    search: Option<watch::Receiver<Option<Found>>>,
}

struct Failure {
    at: Instant,
    error: SendError,
    /// Whether an attempt has counted it: one failed request is one failed attempt, however many wait.
    is_told: bool,
}

impl Failure {
    fn tell(&mut self) -> SendError {
        if std::mem::replace(&mut self.is_told, true) {
            told(self.error.clone())
        } else {
            self.error.clone()
        }
    }
}

/// The same for those who are not to count it.
fn told(error: SendError) -> SendError {
    match error {
        SendError::Token { reason, .. } => SendError::Token {
            reason,
            fault: TokenFault::None,
        },
        other => other,
    }
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
            held: Mutex::default(),
        }
    }

    /// The token that this worker knows, however old.
    pub(super) fn token(&self) -> Option<Token> {
        self.held().token.clone()
    }

    /// The search for a token that goes on; or one that the caller is to make, and hears of like the others.
    pub(super) fn search(self: &Arc<Self>) -> (watch::Receiver<Option<Found>>, Option<Search>) {
        let mut held = self.held();
        if let Some(search) = &held.search {
            return (search.clone(), None);
        }
        let (tell, search) = watch::channel(None);
        held.search = Some(search.clone());
        let grant = Arc::clone(self);
        (search, Some(Search { grant, tell }))
    }

    /// Why there is no new token, if one was looked for a moment ago. The first who asks is to count it.
    pub(super) fn failure(&self) -> Option<SendError> {
        let mut held = self.held();
        let failed = held.failed.as_mut()?;
        let stands = if failed.is_told {
            FAILURE_STANDS
        } else {
            UNTOLD_STANDS
        };
        (failed.at.elapsed() < stands).then(|| failed.tell())
    }

    /// Why a search that was waited for has failed: `error`, unless somebody else counts it.
    pub(super) fn failure_of_search(&self, error: SendError) -> SendError {
        self.failure().unwrap_or_else(|| told(error))
    }

    /// Whether there was no new token within this time.
    pub(super) fn failed_within(&self, time: Duration) -> bool {
        let held = self.held();
        let failed = held.failed.as_ref();
        failed.is_some_and(|failed| failed.at.elapsed() < time)
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

/// A search for a token, to be ended with what was found. One that is dropped is over, too.
pub(super) struct Search {
    pub(super) grant: Arc<Grant>,
    tell: watch::Sender<Option<Found>>,
}

impl Search {
    /// Keeps what was found and tells it to all who wait. `is_told` says that no attempt is to count a
    /// failure.
    pub(super) fn end(self, found: Found, is_told: bool) {
        let mut held = self.grant.held();
        match &found {
            Ok(Some(token)) => {
                held.token = Some(token.clone());
                held.failed = None;
            }
            Ok(None) => {}
            Err(error) => {
                held.failed = Some(Failure {
                    at: Instant::now(),
                    error: error.clone(),
                    is_told,
                });
            }
        }
        held.search = None;
        self.tell.send_replace(Some(found));
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        let mut held = self.grant.held();
        // Once it has ended, the search that goes on may be another one.
        if self.tell.borrow().is_none() {
            held.search = None;
        }
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
