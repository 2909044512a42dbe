//! What is stored sealed, to be sealed anew under another encryption key. Tokens are not: one whose key is
//! gone is got anew.

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::values::SealedSecrets;

use super::{CommandKey, StoreError};

/// The kinds of what is stored sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealedKind {
    /// The credentials of integrations.
    Integrations,
    /// The credentials of webhooks.
    Webhooks,
    /// The signing secrets of webhooks, former ones included.
    SigningSecrets,
    /// The kept replies of commands.
    Replies,
}

impl SealedKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Integrations,
        Self::Webhooks,
        Self::SigningSecrets,
        Self::Replies,
    ];
}

/// Where something sealed stands. Ordered within a kind: by id and position, or by command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedPlace {
    /// The credentials of this integration or webhook.
    Credentials(Uuid),
    /// The signing secret of this webhook, at this position when it was read: a rotation moves it.
    SigningSecret(Uuid, i32),
    /// The reply of this command.
    Reply(CommandKey),
}

/// Something sealed, as it is stored. For a reply the bytes are those of
/// [`StoredReply`](super::StoredReply).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSealed {
    /// Where it stands.
    pub place: SealedPlace,
    /// The key that sealed it, and the bytes.
    pub sealed: SealedSecrets,
}

/// The same secret, sealed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resealed {
    /// What was read.
    pub before: StoredSealed,
    /// What is to stand in its place.
    pub after: SealedSecrets,
}

/// Seals what is stored anew, beside workers that go on.
#[async_trait]
pub trait SealedStore: Send + Sync {
    /// What is sealed under another key than `key_id`, in the order of the places: at most `limit`
    /// after `after`.
    async fn sealed_otherwise(
        &self,
        kind: SealedKind,
        key_id: &str,
        after: Option<&SealedPlace>,
        limit: u32,
    ) -> Result<Vec<StoredSealed>, StoreError>;

    /// Puts the new bytes where the old ones still stand, in one transaction, and answers how many that
    /// were. What was changed meanwhile stays as it is. Nothing else changes: no version, no time, and
    /// not the change counter, as what is sealed stays the same. Every change is of this kind.
    async fn reseal(&self, kind: SealedKind, changes: &[Resealed]) -> Result<u64, StoreError>;
}
