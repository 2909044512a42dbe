//! The command line: what can be asked of the program, and the client that asks a running worker.

mod client;
mod events;
mod exit;
mod keys;
mod output;
mod show;
mod status;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::shared::{config::variables::help_text, duration::parse_duration};

pub use client::{check_action, request};
pub use events::tail;
pub use exit::{Exit, Trouble};
pub use keys::{list_keys, rotate_keys, tell_rewrapped};
pub use output::Output;
pub use status::{StatusNames, status};

/// The integration worker of VALEO NeuroERP: business events from NATS JetStream go out as signed
/// webhooks.
#[derive(Debug, Parser)]
#[command(name = "integration-worker", version, after_long_help = help_text())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the worker until SIGTERM or SIGINT
    #[command(after_long_help = help_text())]
    Run,
    /// Runs a worker with its own nats-server and SQLite, until Ctrl-C
    Dev(DevOptions),
    /// Walks through the main job on embedded servers, and ends
    Demo,
    /// Brings the database's tables up to this program's
    Migrate,
    /// Checks the configuration and everything that it points to
    Doctor(DoctorOptions),
    /// Looks after the encryption keys
    #[command(subcommand)]
    Keys(KeysCommand),
    #[command(
        about = "Integrations: create get list update activate deactivate mark_error rotate_credentials delete"
    )]
    Integration(EntityRequest),
    #[command(
        about = "Webhooks: create get list update activate deactivate delete trigger test rotate_secret replay backfill replays cancel_replay"
    )]
    Webhook(EntityRequest),
    /// Deliveries: get list retry cancel explain
    Delivery(DeliveryRequest),
    /// Messages that could not be understood: list get replay discard
    Deadletter(EntityRequest),
    /// Shows the workers that answer, and what waits in their streams
    Status(StatusOptions),
    /// The domain events that the workers publish
    #[command(subcommand)]
    Events(EventsCommand),
}

/// Options of `dev`.
#[derive(Debug, Args)]
pub struct DevOptions {
    #[arg(
        long,
        value_name = "DIR",
        help = "Keeps database, streams and keys there [default: a temporary folder, removed in the end]"
    )]
    pub data: Option<PathBuf>,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorOptions {
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// What is done with encryption keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    #[command(
        about = "Lists the ids, and with DATABASE_URL which ones the database needs; the first key encrypts"
    )]
    List(KeysListOptions),
    /// Puts a new key first, and makes the file where there is none
    Rotate(KeysRotateOptions),
    /// Seals all stored secrets anew with the first key, beside running workers
    Rewrap,
}

/// Options of `keys list`.
#[derive(Debug, Args)]
pub struct KeysListOptions {
    #[arg(
        long,
        help = "The key file [default: ENCRYPTION_KEYS_FILE, else the keys in ENCRYPTION_KEYS]"
    )]
    pub file: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `keys rotate`.
#[derive(Debug, Args)]
pub struct KeysRotateOptions {
    #[arg(long, help = "The key file [default: ENCRYPTION_KEYS_FILE]")]
    pub file: Option<PathBuf>,
    /// The new key's id [default: k1, k2, …]
    #[arg(long)]
    pub id: Option<String>,
}

/// A request to a worker: any action of the entity.
#[derive(Debug, Clone, Args)]
pub struct EntityRequest {
    /// The action
    pub action: String,
    /// The body: a JSON object, @FILE, or - for standard input [default: {}]
    #[arg(long, short, value_name = "JSON|@FILE|-")]
    pub data: Option<String>,
    /// The entity's id, put into the body as "id"
    #[arg(long)]
    pub id: Option<String>,
    #[arg(long, help = "The tenant [default: the worker's DEFAULT_TENANT]")]
    pub tenant: Option<String>,
    /// Who asks [default: system]
    #[arg(long)]
    pub user: Option<String>,
    /// The idempotency key: the same key again does nothing twice
    #[arg(long)]
    pub key: Option<String>,
    /// How long to wait for the answer
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    pub timeout: Duration,
    /// Prints the reply as it came
    #[arg(long)]
    pub json: bool,
    /// Further fields of the body, each with the option that gave it.
    #[arg(skip)]
    pub fields: Vec<(&'static str, &'static str, String)>,
}

/// A request about deliveries.
#[derive(Debug, Args)]
pub struct DeliveryRequest {
    #[command(flatten)]
    request: EntityRequest,
    /// The event's id, put into the body as "eventId"
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// The webhook's id, put into the body as "webhookId"
    #[arg(long, value_name = "ID")]
    webhook: Option<String>,
}

impl DeliveryRequest {
    /// The request, with the options that it has besides.
    #[must_use]
    pub fn whole(&self) -> EntityRequest {
        let mut request = self.request.clone();
        for (option, field, value) in [
            ("--event", "eventId", &self.event),
            ("--webhook", "webhookId", &self.webhook),
        ] {
            let given = value.iter().cloned();
            request
                .fields
                .extend(given.map(|value| (option, field, value)));
        }
        request
    }
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// How long to wait for workers to answer
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    pub wait: Duration,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// What is done with domain events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Shows events as they are published, until Ctrl-C
    Tail(TailOptions),
}

/// Options of `events tail`.
#[derive(Debug, Args)]
pub struct TailOptions {
    /// Types: exact, or with the wildcards of NATS, such as webhook.*
    #[arg(long = "type", value_name = "PATTERN", default_value = ">")]
    pub pattern: String,
    /// Ends after so many events
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<u64>,
    /// Prints the events as they came, one a line
    #[arg(long)]
    pub json: bool,
}
