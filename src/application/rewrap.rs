//! `keys rewrap`: everything that is stored sealed is sealed anew under the key that encrypts, so that
//! the others can be dropped.
//!
//! It goes in small batches, beside workers that go on: what one of them changes meanwhile is left as it
//! is and looked at once more. Whoever stops it loses nothing and begins again: what is done is not found
//! any more.

use std::collections::BTreeMap;

use crate::domain::{
    interfaces::{Resealed, SealedKind, SealedPlace, Store, StoreError, StoredSealed},
    values::SealedSecrets,
};

use super::{
    commands::idempotency,
    ports::{Cipher, CipherError},
};

/// Rows in a batch: few enough to hold nobody up.
const BATCH: u32 = 100;
/// How often a kind is gone through, as long as workers change what is being sealed anew.
const PASSES: u32 = 5;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Credentials of integrations.
    pub integrations: u64,
    /// Credentials of webhooks.
    pub webhooks: u64,
    /// Signing secrets.
    pub signing_secrets: u64,
    /// Kept replies.
    pub replies: u64,
    /// What workers changed each time, and so is left.
    pub left: u64,
    /// What does not open, by the reason.
    pub unopened: BTreeMap<String, u64>,
}

impl Rewrapped {
    /// How many rows were sealed anew.
    pub fn rows(&self) -> u64 {
        self.integrations + self.webhooks + self.signing_secrets + self.replies
    }

    fn count(&mut self, kind: SealedKind, rows: u64) {
        *match kind {
            SealedKind::Integrations => &mut self.integrations,
            SealedKind::Webhooks => &mut self.webhooks,
            SealedKind::SigningSecrets => &mut self.signing_secrets,
            SealedKind::Replies => &mut self.replies,
        } += rows;
    }
}

/// Seals everything anew that another key than `key_id` sealed; this is the key that encrypts.
///
/// # Errors
/// What the store says; what was done until then stays done.
pub async fn rewrap(
    store: &(dyn Store + 'static),
    cipher: &(dyn Cipher + 'static),
    key_id: &str,
) -> Result<Rewrapped, StoreError> {
    let mut done = Rewrapped::default();
    for kind in SealedKind::ALL {
        for pass in 1..=PASSES {
            let mut unopened = BTreeMap::new();
            let one = one_pass(store, cipher, key_id, kind, &mut unopened).await?;
            done.count(kind, one.changed);
            if one.missed == 0 || pass == PASSES {
                done.left += one.missed;
                for (reason, rows) in unopened {
                    *done.unopened.entry(reason).or_default() += rows;
                }
                break;
            }
        }
    }
    Ok(done)
}

#[derive(Default)]
struct Pass {
    changed: u64,
    missed: u64,
}

async fn one_pass(
    store: &(dyn Store + 'static),
    cipher: &(dyn Cipher + 'static),
    key_id: &str,
    kind: SealedKind,
    unopened: &mut BTreeMap<String, u64>,
) -> Result<Pass, StoreError> {
    let mut pass = Pass::default();
    let mut after: Option<SealedPlace> = None;
    loop {
        let found = store
            .sealed_otherwise(kind, key_id, after.as_ref(), BATCH)
            .await?;
        let Some(last) = found.last() else {
            return Ok(pass);
        };
        after = Some(last.place.clone());
        let mut changes = Vec::with_capacity(found.len());
        for before in found {
            match seal_anew(cipher, &before) {
                Ok(after) => changes.push(Resealed { before, after }),
                Err(error) => *unopened.entry(error.to_string()).or_default() += 1,
            }
        }
        let changed = store.reseal(kind, &changes).await?;
        pass.changed += changed;
        pass.missed += (changes.len() as u64).saturating_sub(changed);
    }
}

fn seal_anew(cipher: &dyn Cipher, stored: &StoredSealed) -> Result<SealedSecrets, CipherError> {
    let context = match &stored.place {
        SealedPlace::Credentials(id) | SealedPlace::SigningSecret(id, _) => id.to_string(),
        SealedPlace::Reply(key) => {
            let (key_id, bytes) = idempotency::reseal(cipher, key, &stored.sealed.bytes)?;
            return Ok(SealedSecrets { key_id, bytes });
        }
    };
    let plain = cipher.open(&stored.sealed, &context)?;
    cipher.seal(&plain, &context)
}
