//! The request that carries several events: a CloudEvents batch, or NDJSON for messages as they were
//! published.

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};

use crate::{
    application::{event_view::EventView, ports::OutboundRequest},
    domain::{
        entities::BodyFormat,
        events::{BusinessEvent, Payload},
        values::{BatchId, DeliveryId, Timestamp},
    },
};

use super::{Endpoint, body::structured, ndjson::one_line, trace};

const CLOUDEVENTS: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");
const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Why a message is in no batch.
const NO_LINE: &str = "batch: the message is no JSON, which alone can be a line of NDJSON";

/// The events of one request, one after the other.
#[derive(Debug)]
pub(in crate::application) struct BatchBody {
    bytes: Vec<u8>,
    events: usize,
    max_bytes: usize,
    as_lines: bool,
}

impl BatchBody {
    /// Takes one more event and answers true, unless the body would be larger than it may be. The first
    /// one always fits.
    pub(in crate::application) fn push(&mut self, part: &[u8]) -> bool {
        // With what stands between it and the others, and the bracket at the end.
        if self.events > 0 && self.bytes.len() + part.len() + 2 > self.max_bytes {
            return false;
        }
        if !self.as_lines {
            self.bytes.push(if self.events == 0 { b'[' } else { b',' });
        }
        self.bytes.extend_from_slice(part);
        if self.as_lines {
            self.bytes.push(b'\n');
        }
        self.events += 1;
        true
    }

    fn finish(mut self) -> (Bytes, HeaderValue) {
        if self.as_lines {
            return (self.bytes.into(), LINES);
        }
        self.bytes.push(b']');
        (self.bytes.into(), CLOUDEVENTS)
    }
}

impl Endpoint {
    /// The signed request of one event alone, in the form that the receiver expects; for a test.
    ///
    /// # Errors
    /// Why none can be made of the event.
    pub(in crate::application) fn request_of_one(
        &self,
        event: &BusinessEvent,
        delivery: DeliveryId,
        now: Timestamp,
    ) -> Result<OutboundRequest, String> {
        if self.settings.batch.is_none() {
            return self.request(event, delivery, 1, now);
        }
        let mut body = self.batch_body();
        body.push(&self.batch_part(event)?);
        Ok(self.batch_request(body, BatchId(delivery.0), 1, now))
    }

    /// Whether events are made into something else.
    pub(in crate::application) fn has_transform(&self) -> bool {
        self.transform.is_some()
    }

    /// An empty body. What was to go out together still does when the webhook no longer asks for that.
    pub(in crate::application) fn batch_body(&self) -> BatchBody {
        let rule = self.settings.batch.unwrap_or_default();
        BatchBody {
            bytes: Vec::new(),
            events: 0,
            max_bytes: rule.max_bytes as usize,
            as_lines: self.settings.format == BodyFormat::Raw,
        }
    }

    /// One event of a batch.
    ///
    /// # Errors
    /// Why it can be in none, now or later.
    pub(in crate::application) fn batch_part(
        &self,
        event: &BusinessEvent,
    ) -> Result<Bytes, String> {
        if self.settings.format == BodyFormat::Raw {
            return one_line(&event.raw).ok_or_else(|| NO_LINE.to_owned());
        }
        let made = self.transformed(&EventView::new(event))?;
        let made = made.map(Payload::Json);
        Ok(structured(
            &event.meta,
            made.as_ref().unwrap_or(&event.payload),
        ))
    }

    /// The signed request of attempt `attempt` (from 1) at `now`.
    pub(in crate::application) fn batch_request(
        &self,
        body: BatchBody,
        batch: BatchId,
        attempt: i32,
        now: Timestamp,
    ) -> OutboundRequest {
        let mut headers = self.headers.clone();
        let (body, content_type) = body.finish();
        headers.insert(CONTENT_TYPE, content_type);
        let trace = (trace::of_its_own(batch.0, attempt), None);
        OutboundRequest {
            // One answer to several events is no answer to any of them.
            whole_up_to: None,
            ..self.signed(batch.0, body, headers, trace, now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(as_lines: bool, max_bytes: usize, parts: &[&str]) -> (String, usize) {
        let mut body = BatchBody {
            bytes: Vec::new(),
            events: 0,
            max_bytes,
            as_lines,
        };
        let taken = parts.iter().take_while(|part| body.push(part.as_bytes()));
        let taken = taken.count();
        let (bytes, _) = body.finish();
        (String::from_utf8(bytes.to_vec()).unwrap(), taken)
    }

    #[test]
    fn a_body_takes_what_fits_and_always_its_first_event() {
        let parts = ["{1}", "{2}", "{3}"];
        for (as_lines, max_bytes, expected, taken) in [
            (false, 100, "[{1},{2},{3}]", 3),
            (false, 13, "[{1},{2},{3}]", 3),
            (false, 12, "[{1},{2}]", 2),
            (false, 1, "[{1}]", 1),
            (true, 100, "{1}\n{2}\n{3}\n", 3),
            (true, 13, "{1}\n{2}\n{3}\n", 3),
            (true, 9, "{1}\n{2}\n", 2),
            (true, 1, "{1}\n", 1),
        ] {
            let made = filled(as_lines, max_bytes, &parts);
            assert_eq!(made, (expected.to_owned(), taken), "{max_bytes}");
            assert!(made.0.len() <= max_bytes || taken == 1, "{max_bytes}");
        }
    }
}
