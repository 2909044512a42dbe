//! Gets tokens: from memory, from the store, or from their endpoints.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use http::HeaderValue;
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    application::ports::{Cipher, Clock, HttpSender, SendError, TokenFault},
    domain::{
        interfaces::{Store, StoreError, StoredToken, TokenState},
        values::Timestamp,
    },
    shared::{error_chain::Chain, lifecycle::Group, metrics::TOKEN_REQUESTS},
};

use super::{
    credentials::{GotToken, read_answer},
    grant::{Found, Grant, Search, Token},
};

/// How long a token endpoint may take, whatever the webhook's timeout is: the token outlives the attempt
/// that it was wanted for.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one worker has the right to get a token: longer than it takes.
const LEASE: Duration = Duration::from_secs(15);
/// How often the store is asked while another worker gets a token: at first, and later.
const FIRST_POLL: Duration = Duration::from_millis(100);
const LAST_POLL: Duration = Duration::from_secs(1);
/// How long another worker is waited for.
const POLL_FOR: Duration = Duration::from_secs(10);
/// How long nothing is tried in the background after a failure.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(5);
/// How often a token is given up because of a `401`: an endpoint that takes none is not helped by more.
const GIVE_UP_EVERY: Duration = Duration::from_secs(10);
/// Tokens that are looked for in the background at a time; the others have their turn a little later.
const MAX_BACKGROUND: usize = 16;
/// Tokens that attempts wait for at a time; the others wait for their next attempt.
const MAX_WANTED: usize = 256;
/// How long a search may take in all, with two seconds for the store.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(22);
/// How often a search that others have begun is waited for before it is given up.
const SEARCHES: u32 = 3;

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
    wanted: Arc<Semaphore>,
}

/// Which token will do.
#[derive(Clone)]
enum Wanted {
    /// One that has not expired.
    Good,
    /// One that is in the first half of its life.
    Fresh,
    /// One that has not expired, and another than this.
    InsteadOf(HeaderValue),
}

impl Wanted {
    fn will_do(&self, token: &Token, now: Timestamp) -> bool {
        match self {
            Self::Good => now < token.expires_at,
            Self::Fresh => now < token.fresh_until,
            Self::InsteadOf(header) => now < token.expires_at && token.header != *header,
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
            wanted: Arc::new(Semaphore::new(MAX_WANTED)),
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
            _ => {
                let found = self.obtain(grant, Wanted::Good, deadline).await?;
                found.ok_or_else(|| waits("one was given up a moment ago"))
            }
        }
    }

    /// Another token than one that the endpoint did not take; `None` when this worker has given one up a
    /// moment ago.
    pub(super) async fn instead_of(
        self: &Arc<Self>,
        grant: &Arc<Grant>,
        token: &Token,
        deadline: Instant,
    ) -> Found {
        let wanted = Wanted::InsteadOf(token.header.clone());
        self.obtain(grant, wanted, deadline).await
    }

    fn replace_in_background(self: &Arc<Self>, grant: &Arc<Grant>) {
        if grant.failed_within(BACKGROUND_PAUSE) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.background).try_acquire_owned() else {
            return;
        };
        if let (_, Some(search)) = grant.search() {
            self.start(search, Wanted::Fresh, permit);
        }
    }

    /// What all who need a token of the webhook look for together, each within its own time.
    async fn obtain(
        self: &Arc<Self>,
        grant: &Arc<Grant>,
        wanted: Wanted,
        deadline: Instant,
    ) -> Found {
        for _ in 0..SEARCHES {
            let known = grant.token();
            if let Some(token) = known.filter(|token| wanted.will_do(token, self.now())) {
                return Ok(Some(token));
            }
            if let Some(error) = grant.failure() {
                return Err(error);
            }
            let (mut search, own) = grant.search();
            let is_own = own.is_some();
            if let Some(own) = own {
                let permit = Arc::clone(&self.wanted).try_acquire_owned();
                let permit = permit.map_err(|_| waits("too many are being got"))?;
                self.start(own, wanted.clone(), permit);
            }
            let found = match timeout_at(deadline, search.wait_for(Option::is_some)).await {
                Err(_) => return Err(waits("it takes too long")),
                Ok(Err(_)) => return Err(waits("the search for one was given up")),
                Ok(Ok(found)) => found.clone().unwrap_or(Ok(None)),
            };
            match found {
                Ok(Some(token)) if is_own || wanted.will_do(&token, self.now()) => {
                    return Ok(Some(token));
                }
                // Others looked for another one.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(grant.failure_of_search(error)),
            }
        }
        Err(waits("it takes too long"))
    }

    /// Looks for a token beside the attempts that want it, which may end before.
    fn start(self: &Arc<Self>, search: Search, wanted: Wanted, permit: OwnedSemaphorePermit) {
        let this = Arc::clone(self);
        let stopping = self.parts.group.stopping();
        self.parts.group.spawn("token", async move {
            let in_time = timeout(SEARCH_TIMEOUT, this.shared(&search.grant, &wanted));
            let found = tokio::select! {
                () = stopping.cancelled() => return,
                found = in_time => found.unwrap_or_else(|_| Err(waits("the database takes too long"))),
            };
            // While the former one is good, no attempt has failed.
            let is_told = matches!(wanted, Wanted::Fresh);
            if let Err(error) = &found
                && is_told
            {
                tracing::warn!(webhook = %search.grant.webhook, %error, "a token was not replaced");
            }
            search.end(found, is_told);
            drop(permit);
        });
    }

    /// From the store; or from the token endpoint, by whichever worker gets the right to ask it.
    async fn shared(&self, grant: &Grant, wanted: &Wanted) -> Found {
        let store = &self.parts.store;
        let end = Instant::now() + POLL_FOR;
        let mut pause = FIRST_POLL;
        let mut missed = None;
        loop {
            let state = store.token_state(grant.webhook).await.map_err(outage)?;
            let now = self.now();
            let stored = self.open(grant, &state);
            if let Some(token) = stored.filter(|token| wanted.will_do(token, now)) {
                return Ok(Some(token));
            }
            let epoch = state.epoch;
            if state.fetch_until.is_none_or(|until| until <= now) {
                let gives_up = matches!(wanted, Wanted::InsteadOf(_));
                if gives_up && !grant.may_give_up(GIVE_UP_EVERY) {
                    return Ok(None);
                }
                let until = now + LEASE;
                let claimed = store.claim_token(grant.webhook, epoch, now, until).await;
                if let Some(claim) = claimed.map_err(outage)? {
                    return self.fetch(grant, claim).await.map(Some);
                }
                // Nobody else was faster.
                if missed == Some(epoch) {
                    return Err(waits("the webhook is gone"));
                }
                missed = Some(epoch);
            }
            let jittered = pause.mul_f64(0.75 + self.parts.clock.random() / 2.0);
            if Instant::now() + jittered > end {
                return Err(waits("another worker is still getting one"));
            }
            sleep(jittered).await;
            pause = (pause * 2).min(LAST_POLL);
        }
    }

    /// Asks the token endpoint, under this claim, and shares what it answers.
    async fn fetch(&self, grant: &Grant, claim: i64) -> Result<Token, SendError> {
        let got_at = self.now();
        let request = grant.credentials.request(FETCH_TIMEOUT);
        let answer = self.sender.send(request).await;
        let got = match answer {
            Ok(answer) => read_answer(&answer).map_err(partners),
            Err(error) => Err(SendError::Token {
                reason: format!("no answer from the token endpoint: {error}"),
                fault: match error {
                    SendError::Lookup(_) => TokenFault::None,
                    SendError::Refused(_) => TokenFault::Address,
                    _ => TokenFault::Partner,
                },
            }),
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
        let plain = serde_json::to_vec(&sealed).map_err(|_| waits("it cannot be kept"))?;
        let context = grant.webhook.to_string();
        let sealed = self.parts.cipher.seal(&plain, &context);
        let life = TimeDelta::from_std(got.life).map_err(|_| waits("it cannot be kept"))?;
        let stored = StoredToken {
            sealed: sealed.map_err(|error| waits(&error.to_string()))?,
            got_at,
            expires_at: got_at + life,
        };
        let store = &self.parts.store;
        let kept = store.put_token(grant.webhook, claim, &stored).await;
        // It is good, whether the others have it or not.
        log_unkept(grant, kept);
        let token = Token::new(&got.token, &stored);
        token.ok_or_else(|| waits("it cannot be sent"))
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

/// Says nothing about the partner: what is to be sent waits.
pub(super) fn waits(reason: &str) -> SendError {
    SendError::Token {
        reason: reason.to_owned(),
        fault: TokenFault::None,
    }
}

/// The partner's doing.
fn partners(reason: String) -> SendError {
    SendError::Token {
        reason,
        fault: TokenFault::Partner,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn outage(error: StoreError) -> SendError {
    tracing::debug!(error = %Chain(&error), "the token of a webhook cannot be read");
    waits("the database is not available")
}
