//! Tables of real and of odd messages, and properties of arbitrary ones.

mod envelopes;
mod messages;
mod properties;

use chrono::DateTime;

use super::*;

const PUBLISHED: &str = "2026-11-02T10:00:00.500Z";
const NORD: &str = "genossenschaft-nord";

fn normaliser() -> Normaliser {
    Normaliser {
        stream: "ERP_EVENTS".to_owned(),
        default_tenant: TenantId::try_new("default").unwrap(),
        max_bytes: 1 << 20,
    }
}

fn message(headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> SourceMessage {
    SourceMessage {
        subject: "erp.some.thing".to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        body: Bytes::from(body.into()),
        sequence: 42,
        published_at: DateTime::parse_from_rfc3339(PUBLISHED).unwrap().to_utc(),
        deliveries: 1,
    }
}

fn event(headers: &[(&str, &str)], body: &str) -> BusinessEvent {
    normaliser().event(&message(headers, body)).unwrap()
}

fn meta(body: &str) -> EventMeta {
    event(&[], body).meta
}

fn data(event: &BusinessEvent) -> &str {
    std::str::from_utf8(event.payload.bytes()).unwrap()
}

fn is_json(event: &BusinessEvent) -> bool {
    matches!(event.payload, Payload::Json(_))
}

fn derived() -> String {
    normaliser().derived_id(&message(&[], "x"))
}
