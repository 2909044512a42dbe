//! The way back: the answer to a delivery becomes an event for the ERP, if the webhook asks for that.
//!
//! The event is recorded with the success that it belongs to, in the outbox, so it goes out exactly when
//! that is recorded. An answer of which none can be made changes nothing about the success: the delivery
//! is delivered, and its `error` says why there is no event. An event never goes to a webhook whose answer
//! it was made of or follows from, and events that are made of answers to such events end after
//! [`MadeBy::MAX_HOPS`].

use std::sync::Arc;

use bytes::Bytes;
use metrics::counter;

use crate::{
    domain::{
        entities::Delivery,
        events::{BusinessEvent, DomainEvent, MadeBy, Response},
        values::Timestamp,
    },
    shared::metrics::RESPONSES,
};

use super::{
    delivery_events,
    event_view::EventView,
    ports::{CutAnswer, Expression},
};

/// The longest answer that becomes an event, and the longest data of one, in bytes: 64 KiB.
pub const MAX_ANSWER: usize = 64 * 1024;
/// What JSON may have around it.
const WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The answer to a request, where it was wanted as a whole.
pub(super) type WholeAnswer = Option<Result<Bytes, CutAnswer>>;

/// What makes an event of an answer.
#[derive(Debug, Clone)]
pub struct ResponseRule {
    event_type: String,
    data: Option<Arc<dyn Expression>>,
}

/// Why there is no event.
enum Problem {
    Fault(String),
    Loop,
}

impl ResponseRule {
    /// Events of this type; without `data` the answer is their data.
    pub fn new(event_type: String, data: Option<Arc<dyn Expression>>) -> Self {
        Self { event_type, data }
    }

    /// The event of a delivery that was delivered at `now`, of at most `max` bytes; where there is none, the
    /// delivery tells why.
    pub(super) fn apply(
        &self,
        delivery: &mut Delivery,
        event: &BusinessEvent,
        answer: WholeAnswer,
        now: Timestamp,
        max: usize,
    ) -> Option<DomainEvent> {
        let made = self.response(delivery, event, answer).and_then(|response| {
            let (kind, trace) = (&self.event_type, event.meta.trace.as_ref());
            fitting(
                delivery_events::response(delivery, kind, response, now, trace),
                max,
            )
        });
        let (problem, result) = match made {
            Ok(made) => {
                counter!(RESPONSES, "result" => "event").increment(1);
                return Some(made);
            }
            Err(Problem::Fault(problem)) => (problem, "fault"),
            Err(Problem::Loop) => {
                let max = MadeBy::MAX_HOPS;
                let problem = format!(
                    "the event is the {max}th made of an answer to the one before, or says so"
                );
                (problem, "loop")
            }
        };
        counter!(RESPONSES, "result" => result).increment(1);
        tracing::warn!(
            delivery = %delivery.id, webhook = %delivery.webhook_id, event = delivery.event_id,
            error = problem, "an answer became no event"
        );
        delivery.error = Some(format!("response: {problem}"));
        None
    }

    fn response(
        &self,
        delivery: &Delivery,
        event: &BusinessEvent,
        answer: WholeAnswer,
    ) -> Result<Response, Problem> {
        let made_by = MadeBy::after(event.meta.made_by.as_ref(), delivery.webhook_id);
        let made_by = made_by.ok_or(Problem::Loop)?;
        let data = self.data(event, answer).map_err(Problem::Fault)?;
        Ok(Response { made_by, data })
    }

    /// JSON text.
    fn data(&self, event: &BusinessEvent, answer: WholeAnswer) -> Result<String, String> {
        let answer = answer.unwrap_or(Err(CutAnswer::BrokenOff));
        let answer = answer.map_err(|cut| cut.to_string())?;
        let text = str::from_utf8(&answer).map_err(|_| "the answer is no UTF-8".to_owned())?;
        let text = text.trim_matches(WHITE_SPACE);
        if text.is_empty() {
            return Err("the answer is empty".to_owned());
        }
        let view = EventView::with_response(event, text);
        if let Some(Err(problem)) = view.response() {
            return Err(format!("the answer cannot be read: {problem}"));
        }
        let Some(expression) = &self.data else {
            return Ok(text.to_owned());
        };
        let data = expression.json(&view)?;
        if data.len() > MAX_ANSWER {
            return Err(format!("the data has more than {MAX_ANSWER} bytes"));
        }
        String::from_utf8(data.into()).map_err(|_| "the data is no UTF-8".to_owned())
    }
}

/// The event, if it is no larger than that. It is never cut: that would make another statement of it.
fn fitting(event: DomainEvent, max: usize) -> Result<DomainEvent, Problem> {
    let size = event.to_json().len();
    if size <= max {
        return Ok(event);
    }
    Err(Problem::Fault(format!(
        "the event would have {size} bytes, and {max} are taken (MAX_EVENT_BYTES, max_payload of NATS)"
    )))
}
