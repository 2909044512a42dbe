//! `delivery.explain`: what became of an event at a webhook, and why.
//!
//! A delivery that is recorded tells it itself. Where there is none, the event is looked for, and the
//! webhook as it is today is asked whether it would take it.

mod paths;
mod recorded;
mod search;
mod verdict;

use std::{fmt, sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    application::{
        event_archive::EventArchive,
        normalise::Normaliser,
        ports::{Expressions, SourceFloor},
    },
    domain::{
        entities::{Integration, Webhook},
        values::{TenantId, WebhookId},
    },
};

use super::{
    Ports,
    body::Body,
    fields::{Fields, Text},
    reply::{ErrorCode, Refusal},
    work::{CommandError, Outcome, checked, not_found},
};

use search::Found;

/// Searches of the source stream that are under way at a time, on one worker.
pub(super) const MAX_SEARCHES: usize = 4;
/// The id of an event.
const EVENT: Text = Text::Line(256);

/// What is left of the events that came.
#[derive(Clone)]
pub struct SourceHistory {
    /// The source stream.
    pub archive: Arc<dyn EventArchive>,
    /// How far it is settled.
    pub floor: Arc<dyn SourceFloor>,
    /// Reads events as intake does.
    pub normaliser: Normaliser,
    /// How long finished deliveries are kept.
    pub kept: Duration,
}

impl fmt::Debug for SourceHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceHistory")
            .field("normaliser", &self.normaliser)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// What is asked, and the webhook that it is asked of.
struct Question<'a> {
    tenant: &'a TenantId,
    event_id: &'a str,
    webhook: &'a Webhook,
    integration: Option<&'a Integration>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    outcome: &'static str,
    reason: String,
}

impl Verdict {
    fn new(outcome: &'static str, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
        }
    }

    fn view(&self, delivery: Option<Value>) -> Value {
        let mut view = json!({ "outcome": self.outcome, "reason": self.reason });
        if let Some(delivery) = delivery {
            view["delivery"] = delivery;
        }
        view
    }
}

/// `explain {eventId, webhookId}`
pub(super) async fn explain(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["eventId", "webhookId"]);
    let event_id = fields.text("eventId", EVENT);
    let id = fields.uuid("webhookId");
    let (event_id, id) = checked(fields, event_id.zip(id))?;
    let webhook = ports.store.get_webhook(tenant, WebhookId(id)).await?;
    let webhook = webhook.ok_or_else(|| not_found("webhook", "webhookId", id))?;
    let integration = webhook.integration_id;
    let integration = ports.store.get_integration(tenant, integration).await?;
    let question = Question {
        tenant,
        event_id: &event_id,
        webhook: &webhook,
        integration: integration.as_ref(),
    };
    if let Some(answer) = recorded::answer(ports, &question).await? {
        return Ok(answer);
    }
    unrecorded(ports, &question).await
}

/// There is no delivery: why not?
async fn unrecorded(ports: &Ports, question: &Question<'_>) -> Outcome {
    let missing = || Refusal::new(ErrorCode::Internal, "this handler has no source stream");
    let history = ports.history.as_ref().ok_or_else(missing)?;
    let expressions: &dyn Expressions = ports.settings.expressions.as_ref();
    let now = ports.clock.now();
    let verdict = match search::find(ports, history, question).await? {
        Found::Event {
            event,
            published_at,
            sequence,
        } => {
            if let Some(verdict) = verdict::refused(question, &event, expressions) {
                verdict
            } else {
                // In this order: what is settled by now is recorded by now.
                let floor = floor(history).await?;
                if let Some(answer) = recorded::answer(ports, question).await? {
                    return Ok(answer);
                }
                if sequence > floor && verdict::is_to_come(question, published_at) {
                    verdict::not_taken_in(sequence)
                } else {
                    verdict::without_record(question, published_at, history.kept, now)
                }
            }
        }
        Found::Gone(sibling) => verdict::of_gone(question, &sibling, history.kept, now),
        Found::OtherTenant => Verdict::new(
            "other_tenant",
            "the event with this id belongs to another tenant",
        ),
        Found::Nowhere(looked) => verdict::nowhere(&looked, history),
    };
    Ok(verdict.view(None))
}

async fn floor(history: &SourceHistory) -> Result<u64, CommandError> {
    Ok(u64::try_from(history.floor.floor().await?).unwrap_or(0))
}
