//! Commands and queries of users: one handler for the durable and the request–reply path.

mod body;
mod command;
pub(in crate::application) mod config_fields;
mod context;
mod dead_letter;
mod delivery;
mod dispatch;
mod explain;
pub(in crate::application) mod fields;
mod fit;
pub(in crate::application) mod idempotency;
mod integration;
mod integration_config;
mod labels;
mod list;
mod published;
mod replay;
mod reply;
pub(in crate::application) mod trigger;
mod views;
mod webhook;
mod webhook_secrets;
mod work;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::{Store, StoreError},
        policies::EgressPolicy,
        values::TenantId,
    },
    shared::error_chain::Chain,
};

use super::{
    dead_letter_box::DeadLetterBox,
    ports::{Cipher, CipherError, Clock, Expressions, HttpSender},
    wakers::Wakers,
};

use command::{Answer, Command, Kind};
use work::CommandError;

pub use explain::SourceHistory;
pub use reply::{ErrorCode, Refusal, Reply};

/// A command or query, as it came.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// `integration`, `webhook`, `delivery`, …
    pub entity: String,
    /// `create`, `get`, …
    pub action: String,
    /// All headers, names as written.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// The command's id when it has no idempotency key. For a durable command it is derived from the
    /// message, so that a redelivery is the same command.
    pub fallback_id: Uuid,
    /// Whether it came over the command stream: then its outcome is an event too.
    pub durable: bool,
}

/// A command or query that was handled.
#[derive(Debug, Clone)]
pub struct Handled {
    /// The command's id.
    pub command_id: String,
    /// Whose it was.
    pub tenant: TenantId,
    /// What came of it.
    pub reply: Reply,
}

/// What is fixed for all commands.
#[derive(Debug, Clone)]
pub struct CommandSettings {
    /// For commands that name no tenant.
    pub default_tenant: TenantId,
    /// Longest body, in bytes.
    pub max_body: usize,
    /// Where deliveries may go.
    pub egress: EgressPolicy,
    /// Compiles filters and transforms.
    pub expressions: Arc<dyn Expressions>,
}

/// How often a command is tried again at once, when another writer was quicker.
const MAX_RETRIES: u32 = 3;

/// What this version can do, as (entity, action).
const ACTIONS: &[(&str, &str)] = &[
    ("integration", "create"),
    ("integration", "get"),
    ("integration", "list"),
    ("integration", "update"),
    ("integration", "activate"),
    ("integration", "deactivate"),
    ("integration", "mark_error"),
    ("integration", "rotate_credentials"),
    ("integration", "delete"),
    ("webhook", "create"),
    ("webhook", "get"),
    ("webhook", "list"),
    ("webhook", "update"),
    ("webhook", "activate"),
    ("webhook", "deactivate"),
    ("webhook", "delete"),
    ("webhook", "trigger"),
    ("webhook", "test"),
    ("webhook", "rotate_secret"),
    ("webhook", "replay"),
    ("webhook", "backfill"),
    ("webhook", "replays"),
    ("webhook", "cancel_replay"),
    ("delivery", "get"),
    ("delivery", "list"),
    ("delivery", "retry"),
    ("delivery", "cancel"),
    ("delivery", "explain"),
    ("deadletter", "list"),
    ("deadletter", "get"),
    ("deadletter", "replay"),
    ("deadletter", "discard"),
    ("status", "get"),
];

/// What commands work with.
pub(in crate::application) struct Ports {
    store: Arc<dyn Store>,
    cipher: Arc<dyn Cipher>,
    clock: Arc<dyn Clock>,
    sender: Arc<dyn HttpSender>,
    wakers: Arc<Wakers>,
    settings: CommandSettings,
    dead_letters: Option<Arc<dyn DeadLetterBox>>,
    history: Option<SourceHistory>,
    /// One for each test that is under way.
    tests: Semaphore,
    /// One for each search of the source stream.
    searches: Semaphore,
}

/// Handles commands and queries.
pub struct CommandHandler {
    ports: Ports,
}

impl std::fmt::Debug for CommandHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandHandler").finish_non_exhaustive()
    }
}

impl CommandHandler {
    /// A handler over these ports.
    pub fn new(
        store: Arc<dyn Store>,
        cipher: Arc<dyn Cipher>,
        clock: Arc<dyn Clock>,
        sender: Arc<dyn HttpSender>,
        wakers: Arc<Wakers>,
        settings: CommandSettings,
    ) -> Self {
        let ports = Ports {
            store,
            cipher,
            clock,
            sender,
            wakers,
            settings,
            dead_letters: None,
            history: None,
            tests: Semaphore::new(trigger::MAX_TESTS),
            searches: Semaphore::new(explain::MAX_SEARCHES),
        };
        Self { ports }
    }

    /// With the box that commands about dead letters work on; without it they fail.
    #[must_use]
    pub fn with_dead_letters(mut self, letters: Arc<dyn DeadLetterBox>) -> Self {
        self.ports.dead_letters = Some(letters);
        self
    }

    /// With what is left of the events that came; without it what looks for one fails.
    #[must_use]
    pub fn with_history(mut self, history: SourceHistory) -> Self {
        self.ports.history = Some(history);
        self
    }

    /// All actions, as (entity, action); every other one is unknown.
    pub const ACTIONS: &'static [(&'static str, &'static str)] = ACTIONS;

    /// Handles one command or query. Never fails: every outcome is a [`Reply`]. For a durable command the
    /// outcome's event is committed when this returns, unless the error is retryable.
    pub async fn handle(&self, incoming: Incoming) -> Handled {
        let started = Instant::now();
        let settings = &self.ports.settings;
        let command = Command::read(&incoming, &settings.default_tenant, settings.max_body);
        let answer = self.answer(&command).await;
        report(&command, &answer.reply, started.elapsed());
        Handled {
            command_id: command.context.command_id,
            tenant: command.context.tenant,
            reply: answer.reply,
        }
    }

    async fn answer(&self, command: &Command) -> Answer {
        let mut retries = 0;
        loop {
            match Box::pin(self.attempt(command)).await {
                Ok(answer) => return answer,
                Err(CommandError::Store(StoreError::Conflict)) if retries < MAX_RETRIES => {
                    retries += 1;
                }
                Err(error) => return self.failed(command, error).await,
            }
        }
    }

    /// Turns a fault into an answer and logs it, here alone. A durable command that will not be tried
    /// again has its outcome told; where that fails too, it has to be tried again.
    async fn failed(&self, command: &Command, error: CommandError) -> Answer {
        let answer = Answer::failure(refusal_of(command, &error));
        let retryable = matches!(&answer.reply, Reply::Failure(r) if r.code.is_retryable());
        if !command.durable || retryable {
            return answer;
        }
        match self.tell(command, &answer).await {
            Ok(()) => answer,
            Err(error) => Answer::failure(Refusal::new(
                ErrorCode::Unavailable,
                refusal_of(command, &error).message,
            )),
        }
    }
}

/// The answer to a fault: what a stranger may know of it. The log has the rest.
fn refusal_of(command: &Command, error: &CommandError) -> Refusal {
    let (code, message) = match error {
        CommandError::Refused(refusal) => return refusal.clone(),
        CommandError::Store(store) if store.is_retryable() => (
            ErrorCode::Unavailable,
            "the database is not available; try again".to_owned(),
        ),
        CommandError::Bus(_) => (
            ErrorCode::Unavailable,
            "NATS does not answer or refuses; try again".to_owned(),
        ),
        // The operator can bring the key back: the same command may succeed later.
        CommandError::Cipher(unknown @ CipherError::UnknownKey(_)) => {
            (ErrorCode::Unavailable, unknown.to_string())
        }
        CommandError::Store(_) | CommandError::Cipher(_) => (
            ErrorCode::Internal,
            "a fault of the worker; its log says more under this command's id".to_owned(),
        ),
    };
    let command_id = &command.context.command_id;
    let action = &command.name;
    if code.is_retryable() {
        tracing::warn!(action, command_id, error = %Chain(error), "a command has to wait");
    } else {
        tracing::error!(action, command_id, error = %Chain(error), "a command failed");
    }
    Refusal::new(code, message)
}

/// One line a command; the inbound adapters count it, since they see also what never gets here.
fn report(command: &Command, reply: &Reply, took: Duration) {
    let known = !command.entity.is_empty();
    let action = if known { &command.name } else { "unknown" };
    let path = if command.durable {
        "durable"
    } else {
        "request"
    };
    let result = reply.result();
    let context = &command.context;
    let entity_id = command.entity_id(reply);
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    macro_rules! line {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                action,
                entity_id,
                command_id = context.command_id,
                correlation_id = context.correlation_id,
                tenant = context.tenant.as_str(),
                path,
                result,
                duration_ms,
                $text
            )
        };
    }
    if command.kind == Kind::Query {
        line!(debug, "a query was answered");
    } else {
        line!(info, "a command was handled");
    }
}
