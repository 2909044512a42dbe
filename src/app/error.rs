//! Why the worker does not run, and with which code the process ends.

use std::{error::Error, path::PathBuf};

use crate::{
    domain::interfaces::StoreError,
    presentation::{
        cli::{Exit, Trouble},
        ops::OpsError,
    },
    shared::{config::ConfigFaults, error_chain::Chain},
};

/// Why the worker ended otherwise than it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Faults of the configuration, all at once.
    #[error(transparent)]
    Configuration(#[from] ConfigFaults),
    /// The ops server could not listen.
    #[error("the worker cannot be watched")]
    Ops(#[from] OpsError),
    /// The log or the metrics could not be set up.
    #[error("the telemetry cannot be set up")]
    Telemetry(#[source] Box<dyn Error + Send + Sync>),
    /// The store refused something that waiting does not mend.
    #[error("the database cannot be used")]
    Store(#[source] StoreError),
    /// Another process has the database's file, by its path.
    #[error(
        "the database file {} is in use by another process: end that one first; one file is for one \
         worker, PostgreSQL is for several",
        .0.display()
    )]
    FileInUse(PathBuf),
    /// The topology on the bus cannot be used, and waiting does not mend it.
    #[error("the streams on NATS cannot be used")]
    Topology(#[source] Box<dyn Error + Send + Sync>),
    /// The request–reply service could not be registered.
    #[error("requests cannot be answered")]
    Service(#[source] Box<dyn Error + Send + Sync>),
    /// A part of `dev` or `demo` could not be set up.
    #[error("{0}")]
    Embedded(String),
    /// A command was not done.
    #[error(transparent)]
    Command(#[from] Trouble),
    /// A second signal.
    #[error("ended at once by a second signal")]
    Interrupted,
    /// A task has crashed.
    #[error("a task of the worker has crashed; its log line is above")]
    Crashed,
}

impl RunError {
    /// A fault that was found when a variable's value was put to use.
    pub(crate) fn configuration(variable: &'static str, problem: &(dyn Error + 'static)) -> Self {
        let mut faults = ConfigFaults(Vec::new());
        faults.add(variable, Chain(problem).to_string());
        Self::Configuration(faults)
    }

    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) => Exit::Configuration,
            Self::Command(trouble) => trouble.exit,
            _ => Exit::Failed,
        }
    }
}
