//! The encryption keys of this process.

use std::sync::Arc;

use secrecy::ExposeSecret as _;

use crate::{
    application::ports::Cipher,
    domain::interfaces::Queries,
    infrastructure::crypto::RingCipher,
    shared::{
        config::{ConfigFaults, KeySource},
        error_chain::Chain,
    },
};

use super::error::RunError;

/// The cipher, and which variable its keys came from.
#[derive(Clone)]
pub(crate) struct Keys {
    cipher: Arc<RingCipher>,
    variable: &'static str,
}

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// Every fault, under the variable's name.
    pub(crate) fn read(source: &KeySource) -> Result<Self, RunError> {
        let (read, variable) = match source {
            KeySource::File(path) => (RingCipher::from_file(path), "ENCRYPTION_KEYS_FILE"),
            KeySource::Inline(text) => (
                RingCipher::from_text(text.expose_secret()),
                "ENCRYPTION_KEYS",
            ),
        };
        let cipher = read.map_err(|problems| faults(variable, problems))?;
        Ok(Self {
            cipher: Arc::new(cipher),
            variable,
        })
    }

    /// The cipher as a port.
    pub(crate) fn cipher(&self) -> Arc<dyn Cipher> {
        Arc::<RingCipher>::clone(&self.cipher)
    }

    /// The id of the key that encrypts.
    pub(crate) fn first_id(&self) -> String {
        let keys = self.cipher.keys();
        keys.ids().next().unwrap_or_default().to_owned()
    }

    /// Checks that every key which sealed something in the store is in the ring.
    ///
    /// # Errors
    /// A fault of the configuration names the keys that are missing.
    pub(crate) async fn check(&self, store: &(dyn Queries + 'static)) -> Result<(), RunError> {
        let needed = store.key_ids().await.map_err(RunError::Store)?;
        let ring = self.cipher.keys();
        let missing: Vec<String> = needed
            .into_iter()
            .filter(|id| ring.ids().all(|known| known != id))
            .map(|id| format!("the database needs the key {id:?}, which is not in the ring"))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(faults(self.variable, missing))
        }
    }

    /// Reads the file again, where the keys came from one. A faulty file, and one without a key that the
    /// database needs, change nothing.
    pub(crate) async fn reload(&self, store: &(dyn Queries + 'static)) {
        let reloaded = match store.key_ids().await {
            Ok(needed) => self
                .cipher
                .reload(&needed)
                .map_err(|problems| faults(self.variable, problems)),
            Err(error) => Err(RunError::Store(error)),
        };
        match reloaded {
            Ok(keys) => {
                let ids: Vec<&str> = keys.ids().collect();
                tracing::info!(keys = ids.join(","), "the encryption keys were read again");
            }
            Err(error) => tracing::error!(
                error = %Chain(&error),
                "the encryption keys could not be read again, the former ones go on"
            ),
        }
    }
}

fn faults(variable: &'static str, problems: Vec<String>) -> RunError {
    let mut faults = ConfigFaults(Vec::new());
    for problem in problems {
        faults.add(variable, problem);
    }
    RunError::Configuration(faults)
}
