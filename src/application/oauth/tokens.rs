//! Gets tokens: from memory, from the store, or from their endpoints.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use http::HeaderValue;
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    application::ports::{Cipher, Clock, HttpSender, SendError},
    domain::{
        interfaces::{Store, StoreError, StoredToken, TokenState},
        values::Timestamp,
    },
    shared::{error_chain::Chain, lifecycle::Group, metrics::TOKEN_REQUESTS},
};

use super::{
    credentials::{GotToken, read_answer},
    grant::{Grant, Token},
};

/// How long a token endpoint may take at most, whatever the webhook's timeout is.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one worker has the right to get a token: longer than it takes.
const LEASE: Duration = Duration::from_secs(15);
/// How often the store is asked while another worker gets a token.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long a failure stands for everybody who needs a token of the same webhook.
const FAILURE_STANDS: Duration = Duration::from_secs(1);
/// How long nothing is tried in the background after a failure.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(5);
/// How often a token is given up because of a `401`: an endpoint that takes none is not helped by more.
const GIVE_UP_EVERY: Duration = Duration::from_secs(10);
/// Tokens that are looked for in the background at a time; the others have their turn a little later.
const MAX_BACKGROUND: usize = 16;
/// What the store may take longer than the attempt's time.
const GRACE: Duration = Duration::from_secs(2);

/// What getting tokens takes.
#[derive(Clone)]
pub struct TokenParts {
    /// Where workers share them.
    pub store: Arc<dyn Store>,
    /// Seals them.
    pub cipher: Arc<dyn Cipher>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where they are replaced in the background.
    pub group: Group,
}

impl std::fmt::Debug for TokenParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenParts").finish_non_exhaustive()
    }
}

/// Gets tokens.
pub(super) struct Tokens {
    sender: Arc<dyn HttpSender>,
    parts: TokenParts,
    background: Arc<Semaphore>,
}

/// Which token will do.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// One that has not expired.
    Good,
    /// One that is in the first half of its life.
    Fresh,
    /// One that has not expired, and another than this.
    InsteadOf(&'a HeaderValue),
}

impl Wanted<'_> {
    fn will_do(self, token: &Token, now: Timestamp) -> bool {
        match self {
            Self::Good => now < token.expires_at,
            Self::Fresh => now < token.fresh_until,
            Self::InsteadOf(header) => now < token.expires_at && token.header != header,
        }
    }
}

/// What is sealed. The fingerprint is in it because it would help to guess the secret.
#[derive(Serialize, Deserialize)]
struct Sealed {
    token: String,
    fingerprint: String,
}

impl Tokens {
    pub(super) fn new(sender: Arc<dyn HttpSender>, parts: TokenParts) -> Self {
        Self {
            sender,
            parts,
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
        }
    }

    /// A token that has not expired. One past half of its life is replaced in the background.
    pub(super) async fn token(
        self: &Arc<Self>,
        grant: &Arc<Grant>,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let now = self.now();
        match grant.token() {
            Some(token) if now < token.fresh_until => Ok(token),
            Some(token) if now < token.expires_at => {
                self.replace_in_background(grant);
                Ok(token)
            }
            _ => self.obtain(grant, Wanted::Good, deadline).await,
        }
    }

    /// Another token than one that the endpoint did not take.
    pub(super) async fn instead_of(
        &self,
        grant: &Grant,
        token: &Token,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let wanted = Wanted::InsteadOf(&token.header);
        self.obtain(grant, wanted, deadline).await
    }

    fn replace_in_background(self: &Arc<Self>, grant: &Arc<Grant>) {
        if grant.failure_within(BACKGROUND_PAUSE).is_some() {
            return;
        }
        let Ok(turn) = Arc::clone(&grant.turn).try_lock_owned() else {
            return;
        };
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else {
            return;
        };
        let (this, grant) = (Arc::clone(self), Arc::clone(grant));
        let stopping = self.parts.group.stopping();
        self.parts.group.spawn("token", async move {
            let deadline = Instant::now() + FETCH_TIMEOUT;
            let replaced = this.in_time(&grant, Wanted::Fresh, deadline);
            tokio::select! {
                () = stopping.cancelled() => {}
                result = replaced => {
                    grant.learn(&result);
                    if let Err(error) = result {
                        tracing::warn!(webhook = %grant.webhook, %error, "a token was not replaced");
                    }
                }
            }
            drop((turn, permit));
        });
    }

    async fn obtain(
        &self,
        grant: &Grant,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let Ok(_turn) = timeout_at(deadline, grant.turn.lock()).await else {
            return Err(ours("it takes too long"));
        };
        // Whoever had the turn before may have got one.
        let known = grant.token();
        if let Some(token) = known.filter(|token| wanted.will_do(token, self.now())) {
            return Ok(token);
        }
        if let Some(error) = grant.failure_within(FAILURE_STANDS) {
            return Err(error);
        }
        let result = self.in_time(grant, wanted, deadline).await;
        grant.learn(&result);
        result
    }

    async fn in_time(
        &self,
        grant: &Grant,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let shared = self.shared(grant, wanted, deadline);
        let in_time = timeout_at(deadline + GRACE, shared).await;
        in_time.unwrap_or_else(|_| Err(ours("the database takes too long")))
    }

    /// From the store; or from the token endpoint, by whichever worker gets the right to ask it.
    async fn shared(
        &self,
        grant: &Grant,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let store = &self.parts.store;
        let mut missed = None;
        loop {
            let state = store.token_state(grant.webhook).await.map_err(outage)?;
            let now = self.now();
            let stored = self.open(grant, &state);
            if let Some(token) = stored.filter(|token| wanted.will_do(token, now)) {
                return Ok(token);
            }
            let epoch = state.epoch;
            if state.fetch_until.is_none_or(|until| until <= now) {
                let gives_up = matches!(wanted, Wanted::InsteadOf(_));
                if gives_up && !grant.may_give_up(GIVE_UP_EVERY) {
                    return Err(partners("one was given up just now".to_owned()));
                }
                let until = now + LEASE;
                let claimed = store.claim_token(grant.webhook, epoch, now, until).await;
                if let Some(claim) = claimed.map_err(outage)? {
                    return self.fetch(grant, claim, deadline).await;
                }
                // Nobody else was faster.
                if missed == Some(epoch) {
                    return Err(ours("the webhook is gone"));
                }
                missed = Some(epoch);
            }
            if Instant::now() + POLL_EVERY > deadline {
                return Err(ours("another worker is still getting one"));
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Asks the token endpoint, under this claim, and shares what it answers.
    async fn fetch(
        &self,
        grant: &Grant,
        claim: i64,
        deadline: Instant,
    ) -> Result<Token, SendError> {
        let got_at = self.now();
        let left = deadline.saturating_duration_since(Instant::now());
        let request = grant.credentials.request(left.min(FETCH_TIMEOUT));
        let answer = self.sender.send(request).await;
        let got = match answer {
            Ok(answer) => read_answer(&answer).map_err(partners),
            Err(error) => {
                let ours = matches!(error, SendError::Lookup(_));
                let reason = format!("no answer from the token endpoint: {error}");
                Err(SendError::Token { reason, ours })
            }
        };
        let outcome = if got.is_ok() { "got" } else { "failed" };
        counter!(TOKEN_REQUESTS, "outcome" => outcome).increment(1);
        let result = match got {
            Ok(got) => self.keep(grant, claim, &got, got_at).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let released = self.parts.store.release_token(grant.webhook, claim).await;
            // Else who waits for it does so until the lease has run out.
            log_unkept(grant, released.map(|()| true));
        }
        result
    }

    async fn keep(
        &self,
        grant: &Grant,
        claim: i64,
        got: &GotToken,
        got_at: Timestamp,
    ) -> Result<Token, SendError> {
        let sealed = Sealed {
            token: got.token.clone(),
            fingerprint: STANDARD.encode(grant.credentials.fingerprint()),
        };
        let plain = serde_json::to_vec(&sealed).map_err(|_| ours("it cannot be kept"))?;
        let context = grant.webhook.to_string();
        let sealed = self.parts.cipher.seal(&plain, &context);
        let life = TimeDelta::from_std(got.life).map_err(|_| ours("it cannot be kept"))?;
        let stored = StoredToken {
            sealed: sealed.map_err(|error| ours(&error.to_string()))?,
            got_at,
            expires_at: got_at + life,
        };
        let store = &self.parts.store;
        let kept = store.put_token(grant.webhook, claim, &stored).await;
        // It is good, whether the others have it or not.
        log_unkept(grant, kept);
        let token = Token::new(&got.token, &stored);
        token.ok_or_else(|| ours("it cannot be sent"))
    }

    /// The kept token, if it opens and was got with the same credentials.
    fn open(&self, grant: &Grant, state: &TokenState) -> Option<Token> {
        let stored = state.token.as_ref()?;
        let context = grant.webhook.to_string();
        let plain = match self.parts.cipher.open(&stored.sealed, &context) {
            Ok(plain) => plain,
            Err(error) => {
                tracing::warn!(webhook = %grant.webhook, %error, "a kept token is not used");
                return None;
            }
        };
        let Sealed { token, fingerprint } = serde_json::from_slice(&plain).ok()?;
        let expected = STANDARD.encode(grant.credentials.fingerprint());
        (fingerprint == expected).then(|| Token::new(&token, stored))?
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.store_now()
    }
}

fn log_unkept(grant: &Grant, kept: Result<bool, StoreError>) {
    match kept {
        Ok(true) => {}
        Ok(false) => tracing::debug!(webhook = %grant.webhook, "a token came too late to be kept"),
        Err(error) => tracing::warn!(
            webhook = %grant.webhook, error = %Chain(&error), "a token was not shared with other workers"
        ),
    }
}

/// Says nothing about the partner.
fn ours(reason: &str) -> SendError {
    SendError::Token {
        reason: reason.to_owned(),
        ours: true,
    }
}

/// The partner's doing.
fn partners(reason: String) -> SendError {
    SendError::Token {
        reason,
        ours: false,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn outage(error: StoreError) -> SendError {
    tracing::debug!(error = %Chain(&error), "the token of a webhook cannot be read");
    ours("the database is not available")
}
