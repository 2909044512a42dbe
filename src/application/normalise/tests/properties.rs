use proptest::prelude::*;

use super::*;

/// Bodies that are nearly envelopes: keys that are known, values of every kind.
fn near_envelope() -> impl Strategy<Value = Vec<u8>> {
    let keys = "specversion|eventType|event_type|eventId|payload|data|metadata|tenantId|tenant|data_base64|occurredAt";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("\"AAH/\"".to_owned()),
        Just("\"2026-11-02T08:14:09.120Z\"".to_owned()),
        Just("1.50".to_owned()),
        "\"[a-z\\\\\"]{0,4}\"",
    ];
    let value = leaf.prop_recursive(3, 24, 6, move |inner| {
        prop::collection::vec((keys, inner), 0..6).prop_map(|fields| {
            let fields: Vec<_> = fields
                .iter()
                .map(|(k, v)| format!("\"{k}\": {v}"))
                .collect();
            format!("{{{}}}", fields.join(" , "))
        })
    });
    value.prop_map(String::into_bytes)
}

fn check_any_body(headers: &[(&str, &str)], body: &[u8]) {
    match normaliser().event(&message(headers, body)) {
        Err(error) => assert!(body.is_empty() || error.code == "invalid_tenant"),
        Ok(event) => {
            assert_eq!(event.raw, body);
            assert!((1..=256).contains(&event.meta.id.len()) && !event.meta.event_type.is_empty());
            if is_json(&event) {
                assert!(json::is_json(data(&event)));
            }
            let (part, whole) = (
                event.payload.bytes().as_ptr_range(),
                event.raw.as_ptr_range(),
            );
            let inside = part.start >= whole.start && part.end <= whole.end;
            let decoded = !is_json(&event) || data(&event) == "null";
            assert!(inside || decoded);
            let stored = event.stored_meta();
            assert_eq!(
                BusinessEvent::from_stored(&stored, event.raw.clone()),
                Ok(event)
            );
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_event_that_keeps_them(body in prop::collection::vec(any::<u8>(), 0..64)) {
        check_any_body(&[], &body);
        check_any_body(&[("ce-specversion", "1.0")], &body);
    }

    #[test]
    fn anything_near_an_envelope_is_an_event_that_keeps_it(body in near_envelope()) {
        check_any_body(&[], &body);
        check_any_body(&[("Content-Type", "application/cloudevents+json")], &body);
    }
}
