//! Which function handles which action.

use serde_json::Value;
use uuid::Uuid;

use super::{
    Ports,
    body::Body,
    command::Command,
    dead_letter, delivery, explain, integration, list, replay,
    reply::{ErrorCode, Refusal, Reply},
    trigger, webhook, webhook_secrets,
    work::{CommandError, Known, Outcome, Work},
};

/// What a change must know before its unit of work begins. Rows are locked in one order, integration
/// before webhook before delivery, and a command that names the lower one learns here what is above it.
pub(super) async fn beforehand(
    ports: &Ports,
    command: &Command,
    body: &Body,
) -> Result<Known, CommandError> {
    let tenant = &command.context.tenant;
    let mut known = Known::default();
    let named = body.map.get("id").and_then(Value::as_str);
    // A faulty body is refused by the command itself.
    let Some(id) = named.and_then(|id| Uuid::try_parse(id).ok()) else {
        return Ok(known);
    };
    match (command.entity, command.action) {
        ("webhook", "trigger") => {
            known.integration = trigger::integration_of(ports, tenant, id).await?;
        }
        ("webhook", "replay" | "backfill") => {
            known.integration = trigger::integration_of(ports, tenant, id).await?;
            known.counted = replay::count(ports, command, body).await?;
        }
        ("delivery", "retry") => known.webhook = delivery::webhook_of(ports, tenant, id).await?,
        _ => {}
    }
    Ok(known)
}

/// Whether what is learnt beforehand takes long, so that it is looked first whether it was done before.
pub(super) fn is_dear(command: &Command) -> bool {
    command.entity == "webhook" && matches!(command.action, "replay" | "backfill")
}

/// What changes something, in the unit of work.
pub(super) async fn change(work: &mut Work<'_>, body: Body) -> Outcome {
    match (work.command.entity, work.command.action) {
        ("integration", "create") => integration::create(work, body).await,
        ("integration", "update") => integration::update(work, body).await,
        ("integration", "activate") => integration::activate(work, body).await,
        ("integration", "deactivate") => integration::deactivate(work, body).await,
        ("integration", "mark_error") => integration::mark_error(work, body).await,
        ("integration", "rotate_credentials") => integration::rotate_credentials(work, body).await,
        ("integration", "delete") => integration::delete(work, body).await,
        ("webhook", "create") => webhook::create(work, body).await,
        ("webhook", "update") => webhook::update(work, body).await,
        ("webhook", "activate") => webhook::activate(work, body).await,
        ("webhook", "deactivate") => webhook::deactivate(work, body).await,
        ("webhook", "delete") => webhook::delete(work, body).await,
        ("webhook", "rotate_secret") => webhook_secrets::rotate(work, body).await,
        ("webhook", "trigger") => trigger::trigger(work, body).await,
        ("webhook", "replay" | "backfill") => replay::begin(work, body).await,
        ("webhook", "cancel_replay") => replay::cancel(work, body).await,
        ("delivery", "retry") => delivery::retry(work, body).await,
        ("delivery", "cancel") => delivery::cancel(work, body).await,
        _ => unknown(work.command),
    }
}

/// What only reads.
pub(super) async fn query(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let tenant = &command.context.tenant;
    match (command.entity, command.action) {
        ("integration", "get") => integration::get(ports, tenant, body).await,
        ("integration", "list") => list::integrations(ports, tenant, body).await,
        ("webhook", "get") => webhook::get(ports, tenant, body).await,
        ("webhook", "list") => list::webhooks(ports, tenant, body).await,
        ("webhook", "replays") => replay::list(ports, tenant, body).await,
        ("delivery", "get") => delivery::get(ports, tenant, body).await,
        ("delivery", "explain") => explain::explain(ports, tenant, body).await,
        ("delivery", "list") => list::deliveries(ports, tenant, body).await,
        ("deadletter", "get") => dead_letter::get(ports, command, body).await,
        ("deadletter", "list") => dead_letter::list(ports, command, body).await,
        ("status", "get") => list::status(ports, body).await,
        _ => unknown(command),
    }
}

/// What acts outside of any transaction.
pub(super) async fn outside(ports: &Ports, command: &Command, body: Body) -> Outcome {
    match (command.entity, command.action) {
        ("webhook", "test") => trigger::test(ports, command, body).await,
        ("deadletter", "replay") => dead_letter::replay(ports, command, body).await,
        ("deadletter", "discard") => dead_letter::discard(ports, command, body).await,
        _ => unknown(command),
    }
}

/// What is left to do outside once the reply is committed; doing it twice is doing it once.
pub(super) async fn afterwards(
    ports: &Ports,
    command: &Command,
    reply: &Reply,
) -> Result<(), CommandError> {
    match command.entity {
        "deadletter" => dead_letter::afterwards(ports, reply).await,
        _ => Ok(()),
    }
}

fn unknown(command: &Command) -> Outcome {
    let message = format!("{} is listed but not handled", command.name);
    Err(Refusal::new(ErrorCode::Internal, message).into())
}
