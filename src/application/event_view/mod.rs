//! An event as expressions see it: its data is read when the first of them asks, and only once.

mod json;

use std::cell::OnceCell;

use crate::domain::events::{BusinessEvent, Payload};

pub use json::Json;

/// An event, and what expressions have asked of it so far. Nothing of it is copied.
#[derive(Debug)]
pub struct EventView<'a> {
    /// The event.
    pub event: &'a BusinessEvent,
    response: Option<&'a str>,
    data: OnceCell<Result<Json<'a>, String>>,
    answer: OnceCell<Result<Json<'a>, String>>,
}

impl<'a> EventView<'a> {
    /// A view of the event alone.
    pub fn new(event: &'a BusinessEvent) -> Self {
        Self {
            event,
            response: None,
            data: OnceCell::new(),
            answer: OnceCell::new(),
        }
    }

    /// A view of the event and of the answer of an endpoint, which is JSON text.
    pub fn with_response(event: &'a BusinessEvent, response: &'a str) -> Self {
        Self {
            response: Some(response),
            ..Self::new(event)
        }
    }

    /// The event's data; `None` when it is no JSON.
    ///
    /// # Errors
    /// Says why it cannot be read: it nests too deep, or holds texts that are no Unicode.
    pub fn data(&self) -> Option<Result<&Json<'a>, &str>> {
        let Payload::Json(bytes) = &self.event.payload else {
            return None;
        };
        let read = || {
            let text = std::str::from_utf8(bytes).map_err(|_| "it is no UTF-8".to_owned())?;
            Json::read(text)
        };
        Some(as_refs(self.data.get_or_init(read)))
    }

    /// The endpoint's answer; `None` when there is none.
    ///
    /// # Errors
    /// Says why it cannot be read.
    pub fn response(&self) -> Option<Result<&Json<'a>, &str>> {
        let text = self.response?;
        Some(as_refs(self.answer.get_or_init(|| Json::read(text))))
    }
}

fn as_refs<'r, 'a>(read: &'r Result<Json<'a>, String>) -> Result<&'r Json<'a>, &'r str> {
    read.as_ref().map_err(String::as_str)
}
