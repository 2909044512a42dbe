use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;
use crate::domain::values::format_time;

/// A message as the ERP really sends it.
#[derive(Deserialize)]
struct Fixture {
    subject: String,
    headers: BTreeMap<String, String>,
    body: Box<RawValue>,
}

fn fixture(text: &str) -> BusinessEvent {
    let fixture: Fixture = serde_json::from_str(text).unwrap();
    let message = SourceMessage {
        subject: fixture.subject,
        headers: fixture.headers.into_iter().collect(),
        ..message(&[], fixture.body.get())
    };
    let event = normaliser().event(&message).unwrap();
    assert_eq!(event.raw, message.body);
    assert_eq!(event.meta.subject, message.subject);
    event
}

#[test]
fn of_which_webhooks_answer_a_cloudevent_was_made_is_kept() {
    let webhook = "0193a5b0-7d5a-7000-8000-000000000001";
    let chain = format!("0193a5b0-7d5a-7000-8000-000000000002,{webhook}");
    let structured = format!(
        r#"{{"specversion":"1.0","id":"1","type":"a","source":"/integration",
            "integrationwebhookid":"{webhook}","integrationchain":"{chain}","data":{{}}}}"#
    );
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-integrationwebhookid", webhook),
        ("ce-integrationchain", &chain),
    ];
    for meta in [meta(&structured), event(&binary, "{}").meta] {
        let made_by = meta.made_by.unwrap();
        assert_eq!(made_by.webhook.to_string(), webhook);
        assert_eq!((made_by.chain(), made_by.is_last), (chain.clone(), false));
    }
    // The ERP's own envelopes know of no such thing.
    let own = format!(r#"{{"eventType":"a","payload":{{}},"integrationwebhookid":"{webhook}"}}"#);
    assert_eq!(meta(&own).made_by, None);
}

macro_rules! text {
    ($name:literal) => {
        include_str!(concat!("../../../../tests/fixtures/erp-events/", $name))
    };
}

/// The message, and what is to be found in it: id (derived where there is none), type, time, and a part
/// of the data.
type Row = (
    &'static str,
    Option<&'static str>,
    &'static str,
    &'static str,
    &'static str,
);

const ENVELOPES: [Row; 9] = [
    (
        text!("sales.order.created.json"),
        Some("4b7f0f0e-6a0e-4a5f-9b0a-6c6d1f6f2a11"),
        "sales.order.created",
        "2026-11-02T08:14:09.120Z",
        r#""totalNet": 18450.00,"#,
    ),
    (
        text!("purchase.order.delivered.json"),
        Some("evt_1793609649120_k3x9"),
        "purchase.order.delivered",
        "2026-11-02T09:00:00.000Z",
        r#""receivedQuantity": 12.5,"#,
    ),
    (
        text!("document.created.json"),
        None,
        "document.created",
        "2026-11-02T09:05:11.000Z",
        r#""documentId": "doc-77","#,
    ),
    (
        text!("integration-domain.json"),
        Some("1c9d6a3e-52b7-4b40-8e8a-0a5a76c0b0aa"),
        "customer.updated",
        "2026-11-02T09:20:00.000Z",
        r#""iban""#,
    ),
    (
        text!("inventory.goods.received.json"),
        Some("0f8a0c4e-1c1d-4f2e-8a55-0b2f2f3f9d01"),
        "inventory.goods.received",
        "2026-11-02T09:10:00.000Z",
        r#""quantity": "24.380","#,
    ),
    (
        text!("fibu.booking.created.json"),
        Some("9d6b1d1a-42a2-4a43-9c39-3a1f0c7e5b10"),
        "fibu.booking.created",
        "2026-11-02T09:15:30.000Z",
        r#""amount": "18450.00","#,
    ),
    (
        text!("cloudevent.structured.json"),
        Some("ce-1001"),
        "quality.batch.rejected",
        "2026-11-02T09:30:00.000Z",
        r#""batchId": "b-12","#,
    ),
    (
        text!("cloudevent.binary.json"),
        Some("ce-1002"),
        "contract.created",
        "2026-11-02T09:31:00.000Z",
        r#""quantity": 500,"#,
    ),
    (
        text!("logistics.weight.measured.json"),
        None,
        "logistics.weight.measured",
        PUBLISHED,
        r#""weighing": {"#,
    ),
];

#[test]
fn every_envelope_of_the_erp_is_understood() {
    for (text, id, event_type, time, data_part) in ENVELOPES {
        let event = fixture(text);
        assert_eq!(
            event.meta.id,
            id.map_or_else(derived, str::to_owned),
            "{event_type}"
        );
        assert_eq!(event.meta.event_type, event_type);
        assert_eq!(format_time(event.meta.time), time, "{event_type}");
        assert_eq!(event.meta.tenant.as_str(), NORD, "{event_type}");
        let text = data(&event);
        assert!(is_json(&event) && text.contains(data_part), "{text}");
        assert!(text.starts_with('{') && text.ends_with('}'), "{text}");
        assert!(
            !text.contains("eventType") && !text.contains("event_type"),
            "{text}"
        );
    }
}

#[test]
fn sources_and_correlations_are_carried_on() {
    assert_eq!(
        fixture(text!("cloudevent.structured.json")).meta.source,
        "/quality"
    );
    assert_eq!(
        fixture(text!("cloudevent.binary.json")).meta.source,
        "/contracts"
    );
    let order = fixture(text!("sales.order.created.json")).meta;
    assert_eq!(
        (order.source.as_str(), order.correlation_id.as_deref()),
        ("/erp", Some("c-88121"))
    );
    let booking = fixture(text!("fibu.booking.created.json")).meta;
    assert_eq!(booking.correlation_id.as_deref(), Some("c-88121"));
    let body = r#"{"correlationId":"b","metadata":{"correlation_id":"c","correlationId":"d"}}"#;
    let correlation = |headers: &[(&str, &str)], body| event(headers, body).meta.correlation_id;
    let header = ("x-CORRELATION-id", "a");
    assert_eq!(correlation(&[header], body).as_deref(), Some("a"));
    assert_eq!(correlation(&[], body).as_deref(), Some("b"));
    for (body, found) in [
        (
            r#"{"correlationId":7,"metadata":{"correlation_id":"c","correlationId":"d"}}"#,
            "c",
        ),
        (
            r#"{"metadata":{"correlation_id":"","correlationId":"d"}}"#,
            "d",
        ),
        (
            r#"{"specversion":"1.0","correlationid":"e","correlationId":"b"}"#,
            "e",
        ),
    ] {
        assert_eq!(correlation(&[], body).as_deref(), Some(found), "{body}");
    }
}

#[test]
fn the_first_row_of_the_contract_that_fits_decides() {
    let both = r#"{"specversion":"1.0","type":"ce","data":1,"eventType":"erp","payload":2,"event_type":"py"}"#;
    for (headers, body, event_type, payload) in [
        (
            &[("CE-SpecVersion", "1.0"), ("ce-type", "binary")][..],
            both,
            "binary",
            both,
        ),
        (&[], both, "ce", "1"),
        (
            &[(
                "content-type",
                "Application/CloudEvents+JSON; charset=utf-8",
            )],
            r#"{"type":"ce","data":1,"eventType":"erp","payload":2}"#,
            "ce",
            "1",
        ),
        (
            &[],
            r#"{"eventType":"erp","payload":2,"data":1}"#,
            "erp",
            "2",
        ),
        (
            &[],
            r#"{"eventType":"dom","data":1,"event_type":"py"}"#,
            "dom",
            "1",
        ),
        (
            &[],
            r#"{"event_type":"py","data":1,"payload":2,"metadata":{"event_type":"m"}}"#,
            "py",
            "1",
        ),
        (
            &[],
            r#"{"metadata":{"event_type":"m"},"payload":2}"#,
            "m",
            "2",
        ),
        (
            &[],
            r#"{"eventType":"x"}"#,
            "erp.some.thing",
            r#"{"eventType":"x"}"#,
        ),
        (
            &[],
            r#"{"metadata":"m","payload":2}"#,
            "erp.some.thing",
            r#"{"metadata":"m","payload":2}"#,
        ),
    ] {
        let event = event(headers, body);
        assert_eq!(
            (event.meta.event_type.as_str(), data(&event)),
            (event_type, payload),
            "{body}"
        );
    }
}

#[test]
fn a_python_envelope_is_opened_only_when_its_data_is_an_envelope() {
    for (body, id, tenant, payload) in [
        (
            r#"{"event_type":"t","tenant":"o","data":{"eventId":"e","eventType":"i","data":{},"tenantId":"i"}}"#,
            Some("e"),
            "i",
            "{}",
        ),
        (
            r#"{"event_type":"t","tenant":"o","data":{"eventId":"e","eventType":"i","data":[]}}"#,
            Some("e"),
            "o",
            "[]",
        ),
        (
            r#"{"event_type":"t","tenant":"o","data":{"eventType":"i","data":[]}}"#,
            None,
            "o",
            r#"{"eventType":"i","data":[]}"#,
        ),
        (
            r#"{"event_type":"t","tenant":"o","data":7.10}"#,
            None,
            "o",
            "7.10",
        ),
    ] {
        let event = event(&[], body);
        assert_eq!(
            event.meta.id,
            id.map_or_else(derived, str::to_owned),
            "{body}"
        );
        assert_eq!(event.meta.event_type, "t");
        assert_eq!(
            (event.meta.tenant.as_str(), data(&event)),
            (tenant, payload),
            "{body}"
        );
    }
}

#[test]
fn what_cannot_be_used_is_taken_from_the_message() {
    let long = "x".repeat(257);
    for bad in [
        "null",
        "7",
        "{}",
        r#""""#,
        r#""a\u0000""#,
        r#""a\nb""#,
        &format!("\"{long}\""),
    ] {
        let body =
            format!(r#"{{"eventId":{bad},"eventType":{bad},"occurredAt":{bad},"payload":1}}"#);
        let meta = meta(&body);
        assert_eq!(meta.id, derived(), "{body}");
        assert_eq!(meta.event_type, "erp.some.thing", "{body}");
        assert_eq!(format_time(meta.time), PUBLISHED, "{body}");
    }
    let second = meta(
        r#"{"eventType":"t","payload":1,"occurredAt":"?","timestamp":"2026-01-01T00:00:00+01:00"}"#,
    );
    assert_eq!(format_time(second.time), "2025-12-31T23:00:00.000Z");
}
