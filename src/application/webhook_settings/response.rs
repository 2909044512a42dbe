//! `response {event, data}`: what becomes of an endpoint's answer.

use crate::{
    application::{
        commands::fields::{Fields, Text},
        ports::Scope,
    },
    domain::{entities::ResponseSettings, values::EventPattern},
};

use super::{SavingRules, expression};

pub(super) fn read(
    fields: &mut Fields,
    rules: Option<&SavingRules<'_>>,
) -> Option<ResponseSettings> {
    fields.object("response", |response| {
        response.need(&["event"]);
        let event = response.text("event", Text::Line(ResponseSettings::MAX_TYPE));
        if let Some(problem) = event.as_deref().and_then(event_problem) {
            response.fault("event", problem);
        }
        let data = expression(response, "data", (Scope::Answer, None), rules);
        Some(ResponseSettings {
            event: event?,
            data,
        })
    })
}

/// It is the end of a NATS subject.
fn event_problem(event: &str) -> Option<String> {
    let max = ResponseSettings::MAX_TYPE;
    if event.len() > max {
        return Some(format!("must have at most {max} bytes"));
    }
    EventPattern::type_problem(event)
}
