//! Commands and queries of users: one handler for the durable and the request–reply path.

mod reply;

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::{interfaces::Store, policies::EgressPolicy, values::TenantId};

use super::{
    ports::{Cipher, Clock, HttpSender},
    wakers::Wakers,
};

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
}

/// Handles commands and queries.
pub struct CommandHandler {
    store: Arc<dyn Store>,
    cipher: Arc<dyn Cipher>,
    clock: Arc<dyn Clock>,
    sender: Arc<dyn HttpSender>,
    wakers: Arc<Wakers>,
    settings: CommandSettings,
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
        Self {
            store,
            cipher,
            clock,
            sender,
            wakers,
            settings,
        }
    }

    /// All actions, as (entity, action); every other one is unknown.
    pub const ACTIONS: &'static [(&'static str, &'static str)] = &[("status", "get")];

    /// Handles one command or query. Never fails: every outcome is a [`Reply`]. For a durable command the
    /// outcome's event is committed when this returns, unless the error is retryable.
    pub async fn handle(&self, incoming: Incoming) -> Handled {
        let _ = (
            &self.store,
            &self.cipher,
            &self.clock,
            &self.sender,
            &self.wakers,
        );
        Handled {
            command_id: incoming.fallback_id.to_string(),
            tenant: self.settings.default_tenant.clone(),
            reply: Reply::Failure(Refusal::new(ErrorCode::Internal, "not there yet")),
        }
    }
}
