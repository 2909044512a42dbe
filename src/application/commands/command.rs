//! A command as it is understood before anything is done.

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::{
    events::DomainEvent,
    interfaces::{AuditRow, CommandKey},
    values::{TenantId, Timestamp},
};

use super::{
    ACTIONS, Incoming,
    body::Body,
    context::{self, CommandContext},
    reply::{ErrorCode, Refusal, Reply},
};

/// How an action is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads; its reply is never kept.
    Query,
    /// Acts outside of any transaction: sends a request, or a dead letter again.
    Outside,
    /// Changes something in one unit of work.
    Change,
}

/// A command, understood.
pub(super) struct Command {
    /// `integration`, …; empty when the action is unknown.
    pub(super) entity: &'static str,
    /// `create`, …; empty when the action is unknown.
    pub(super) action: &'static str,
    /// `<entity>.<action>` as it was sent.
    pub(super) name: String,
    /// How it is handled.
    pub(super) kind: Kind,
    /// Who asks, and how the command is known.
    pub(super) context: CommandContext,
    /// Its body, or why it is refused before anything is done.
    pub(super) body: Result<Body, Refusal>,
    /// SHA-256 of the body, in hex. A body may hold weak credentials, so it goes nowhere unsealed.
    pub(super) body_hash: String,
    /// Tells this command from another one under the same key, as the body's hash may not be shown;
    /// the same for a redelivery.
    pub(super) message_id: Uuid,
    /// Under which the reply is kept.
    pub(super) key: Option<CommandKey>,
    /// Whether its outcome is an event.
    pub(super) durable: bool,
}

/// What came of a command.
#[derive(Debug)]
pub(super) struct Answer {
    /// The reply.
    pub(super) reply: Reply,
    /// Whether the idempotency key stands for another body: not the same command then.
    pub(super) key_misused: bool,
}

impl Answer {
    /// A success.
    pub(super) fn success(data: Value) -> Self {
        Self::from(Reply::Success(data))
    }

    /// A refusal.
    pub(super) fn failure(refusal: Refusal) -> Self {
        Self::from(Reply::Failure(refusal))
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            key_misused: false,
        }
    }
}

impl Command {
    /// Reads headers and body.
    pub(super) fn read(incoming: &Incoming, default_tenant: &TenantId, max_body: usize) -> Self {
        let (context, faults) = context::read(incoming, default_tenant);
        let name = format!("{}.{}", incoming.entity, incoming.action);
        let known = ACTIONS
            .iter()
            .find(|(entity, action)| *entity == incoming.entity && *action == incoming.action);
        let (entity, action) = known.copied().unwrap_or_default();
        let kind = kind(entity, action);
        let body = if known.is_none() {
            Err(unknown_action(&name))
        } else if faults.is_empty() {
            Body::read(&incoming.body, max_body, kind == Kind::Query)
        } else {
            Err(Refusal::from(faults))
        };
        // What is refused for its headers is not understood well enough to be kept under a key.
        let understood = body
            .as_ref()
            .err()
            .is_none_or(|refusal| refusal.code == ErrorCode::Malformed);
        let key = context
            .key
            .clone()
            .filter(|_| understood && kind != Kind::Query);
        let key = key.map(|key| CommandKey {
            tenant: context.tenant.clone(),
            action: name.clone(),
            key,
        });
        Self {
            entity,
            action,
            name,
            kind,
            context,
            body,
            body_hash: hash(&incoming.body),
            message_id: incoming.fallback_id,
            key,
            durable: incoming.durable,
        }
    }

    /// The entity that the command is about: the one that the body names, else the one that was made.
    pub(super) fn entity_id(&self, reply: &Reply) -> Option<String> {
        let body = self.body.as_ref().ok()?;
        let named = body.map.get("id").and_then(Value::as_str);
        if let Some(id) = named.and_then(|id| Uuid::try_parse(id).ok()) {
            return Some(id.to_string());
        }
        match reply {
            Reply::Success(data) => data.get("id")?.as_str().map(str::to_owned),
            Reply::Failure(_) => None,
        }
    }

    /// A line about this command for the audit log.
    pub(super) fn audit_row(&self, entity_id: String, at: Timestamp) -> AuditRow {
        AuditRow {
            tenant: self.context.tenant.clone(),
            at,
            actor: self.context.actor.clone(),
            action: self.name.clone(),
            entity_id,
            command_id: self.context.command_id.clone(),
            correlation_id: self.context.correlation_id.clone(),
        }
    }

    /// The event that tells the outcome of a durable command. Its id is derived, so that telling it
    /// again is harmless; another command under the same key is told apart by its message.
    pub(super) fn outcome(&self, answer: &Answer, now: Timestamp) -> DomainEvent {
        let context = &self.context;
        let mut data = json!({ "commandId": context.command_id, "action": self.name });
        if let Some(id) = self.entity_id(&answer.reply) {
            data["entityId"] = Value::String(id);
        }
        let event_type = match &answer.reply {
            Reply::Success(_) => "command.completed",
            Reply::Failure(refusal) => {
                data["error"] = refusal.to_json();
                "command.rejected"
            }
        };
        let mut id = format!(
            "command:{}\0{}\0{}",
            context.tenant, self.name, context.command_id
        );
        if answer.key_misused {
            id.push('\0');
            id.push_str(&self.message_id.to_string());
        }
        DomainEvent {
            response: None,
            id: Uuid::new_v5(&Uuid::NAMESPACE_URL, id.as_bytes()),
            event_type: event_type.to_owned(),
            subject: context.command_id.clone(),
            time: now,
            aggregate_version: 1,
            context: context.for_events(),
            data,
        }
    }
}

fn kind(entity: &str, action: &str) -> Kind {
    match (entity, action) {
        (_, "get" | "list") | ("delivery", "explain") | ("webhook", "replays") => Kind::Query,
        ("webhook", "test") | ("deadletter", _) => Kind::Outside,
        _ => Kind::Change,
    }
}

fn unknown_action(name: &str) -> Refusal {
    let shown: String = name.chars().take(100).collect();
    Refusal::new(ErrorCode::NotFound, format!("there is no action {shown:?}"))
}

fn hash(body: &Bytes) -> String {
    use std::fmt::Write as _;
    let digest = digest(&SHA256, body);
    let mut hex = String::with_capacity(64);
    for byte in digest.as_ref() {
        // Writing to a string cannot fail.
        write!(hex, "{byte:02x}").unwrap_or_default();
    }
    hex
}
