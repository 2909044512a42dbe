//! The tokens that webhooks show to their endpoints (OAuth 2), kept for all workers, so that one of them
//! gets a new one and the others take it over.

use async_trait::async_trait;

use crate::domain::values::{SealedSecrets, Timestamp, WebhookId};

use super::StoreError;

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// The token and what it was got with, sealed by the caller.
    pub sealed: SealedSecrets,
    /// When it was asked for.
    pub got_at: Timestamp,
    /// Until when it is good for.
    pub expires_at: Timestamp,
}

/// What is kept for a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenState {
    /// The latest token, however old.
    pub token: Option<StoredToken>,
    /// Until when a worker has the right to get a new one; that time may be over.
    pub fetch_until: Option<Timestamp>,
    /// Grows with every change; 0 when nothing is kept.
    pub epoch: i64,
}

/// Keeps tokens. All times are of the store's clock.
#[async_trait]
pub trait TokenStore: Send + Sync {
    /// What is kept for a webhook.
    async fn token_state(&self, webhook: WebhookId) -> Result<TokenState, StoreError>;

    /// Takes the right to get a new token, up to `until`, and answers the epoch to give it back under.
    /// `None` when something has changed since `epoch`, when another worker has the right at `now`, and
    /// when there is no such webhook.
    async fn claim_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<i64>, StoreError>;

    /// Keeps a token that was got under the right of this epoch, and gives the right back; `false` when
    /// it was lost meanwhile, and nothing is kept.
    async fn put_token(
        &self,
        webhook: WebhookId,
        epoch: i64,
        token: &StoredToken,
    ) -> Result<bool, StoreError>;

    /// Gives the right of this epoch back without a token, unless it was lost meanwhile.
    async fn release_token(&self, webhook: WebhookId, epoch: i64) -> Result<(), StoreError>;

    /// Deletes up to `limit` tokens that have expired at `now`, or whose webhooks use none any more, unless a
    /// worker has the right to get a new one; answers how many.
    async fn prune_tokens(&self, now: Timestamp, limit: u32) -> Result<u64, StoreError>;
}
