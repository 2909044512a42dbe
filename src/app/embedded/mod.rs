//! What `dev` and `demo` bring themselves, so that they need nothing around them: a folder, a
//! nats-server, an encryption key, a SQLite database, and the configuration of a worker on them.

mod folder;
mod nats_server;
pub(crate) mod ops_client;
pub(crate) mod receiver;
pub(crate) mod transcript;
mod version;
pub(crate) mod worker;

use std::path::Path;

use crate::{
    app::error::RunError,
    infrastructure::clock::SystemClock,
    shared::config::{Config, Embedded, environment},
};

pub(crate) use folder::Folder;
use nats_server::NatsServer;

/// Variables that lead elsewhere, or sign in elsewhere: `dev` and `demo` stand on their own.
const ELSEWHERE: [&str; 12] = [
    "NATS_URL",
    "NATS_CREDS_FILE",
    "NATS_NKEY_FILE",
    "NATS_USER",
    "NATS_PASSWORD",
    "NATS_TOKEN",
    "NATS_TLS_CA",
    "NATS_TLS_CERT",
    "NATS_TLS_KEY",
    "DATABASE_URL",
    "ENCRYPTION_KEYS",
    "ENCRYPTION_KEYS_FILE",
];

/// Which of the environment's variables count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// All but those that lead to another NATS, database or key ring.
    Settings,
    /// Those of the log alone: every run is the same.
    LogOnly,
}

impl Environment {
    fn counts(self, name: &str) -> bool {
        match self {
            Self::Settings => !ELSEWHERE.contains(&name),
            Self::LogOnly => matches!(name, "RUST_LOG" | "LOG_FORMAT"),
        }
    }

    /// The variables that are set and do not count although they would for `run`.
    pub(crate) fn passed_over(self) -> Vec<&'static str> {
        let set = |name: &&str| environment(name).is_some_and(|value| !value.trim().is_empty());
        let passed = ELSEWHERE.into_iter().filter(|name| !self.counts(name));
        passed.filter(set).collect()
    }
}

/// A worker's surroundings, up and running.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Where everything lies. It is dropped after the server that writes into it.
    pub(crate) folder: Folder,
    /// The configuration of a worker on them.
    pub(crate) config: Config,
    nats: NatsServer,
}

impl Surroundings {
    /// Makes what is missing in the folder, and starts the nats-server on a free port.
    /// Where `OPS_ADDR` does not count or is not set, the ops server is to listen on `ops_addr`.
    ///
    /// # Errors
    /// Why they cannot be had, or every fault of the configuration.
    pub(crate) async fn set_up(
        folder: Folder,
        variables: Environment,
        ops_addr: &str,
    ) -> Result<Self, RunError> {
        let keys = folder.keys_file(&SystemClock::new())?;
        let nats = NatsServer::start(folder.path()).await?;
        let made = Embedded {
            nats_url: nats.url(),
            database_url: format!("sqlite://{}", text_of(&folder.path().join("worker.db"))?),
            keys_file: text_of(&keys)?,
            ops_addr: ops_addr.to_owned(),
        };
        let lookup = |name: &str| variables.counts(name).then(|| environment(name)).flatten();
        let config = Config::embedded(&lookup, &made)?;
        Ok(Self {
            folder,
            config,
            nats,
        })
    }

    /// Where the nats-server listens.
    pub(crate) fn nats_url(&self) -> String {
        self.nats.url()
    }

    /// The nats-server's version, as `2.10.29`.
    pub(crate) fn nats_version(&self) -> &str {
        self.nats.version()
    }

    /// Ends the nats-server and removes the folder, where it is a temporary one.
    pub(crate) async fn tear_down(self) {
        self.nats.stop().await;
        drop(self.folder);
    }
}

/// The path as text, for a variable.
fn text_of(path: &Path) -> Result<String, RunError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| RunError::Embedded(format!("the path {} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_leads_elsewhere_counts_and_settings_do_for_dev_alone() {
        for (name, for_dev, for_demo) in [
            ("NATS_URL", false, false),
            ("NATS_TOKEN", false, false),
            ("DATABASE_URL", false, false),
            ("ENCRYPTION_KEYS", false, false),
            ("RUST_LOG", true, true),
            ("LOG_FORMAT", true, true),
            ("OPS_ADDR", true, false),
            ("NATS_SUBJECT_PREFIX", true, false),
            ("EGRESS_ALLOW_CIDRS", true, false),
        ] {
            assert_eq!(Environment::Settings.counts(name), for_dev, "{name}");
            assert_eq!(Environment::LogOnly.counts(name), for_demo, "{name}");
        }
    }
}
