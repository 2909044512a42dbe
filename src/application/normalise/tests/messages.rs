use super::*;

#[test]
fn a_derived_id_is_the_same_for_a_redelivery_and_for_nothing_else() {
    let first = message(&[], "x");
    let id = |message: &SourceMessage| normaliser().event(message).unwrap().meta.id;
    let mut again = first.clone();
    again.deliveries = 2;
    assert_eq!(id(&first), id(&again));
    let mut next = first.clone();
    next.sequence += 1;
    assert_ne!(id(&first), id(&next));
    let mut after_the_stream_was_made_anew = first.clone();
    after_the_stream_was_made_anew.published_at += chrono::TimeDelta::days(1);
    assert_ne!(id(&first), id(&after_the_stream_was_made_anew));
}

#[test]
fn a_bare_message_takes_its_message_id_and_its_tenant_header() {
    let headers = [
        ("nats-msg-id", "m-1"),
        ("Nats-Msg-Id", "m-2"),
        ("x-tenant-id", "nord"),
        ("X-Tenant-Id", "sued"),
    ];
    let bare = event(&headers, "[1]");
    assert_eq!(bare.meta.id, "m-1", "the first of repeated headers counts");
    assert_eq!(bare.meta.tenant.as_str(), "nord");
    let text = event(&[("X-Tenant-Id", "nord"), ("Nats-Msg-Id", "m")], "no json");
    assert_eq!(
        (text.meta.tenant.as_str(), text.meta.id.as_str()),
        ("nord", "m")
    );
    let envelope = event(&[("Nats-Msg-Id", "m")], r#"{"eventType":"t","payload":1}"#);
    assert_eq!(
        envelope.meta.id,
        derived(),
        "an envelope without an id has a derived one"
    );
}

#[test]
fn a_tenant_that_cannot_be_one_is_never_given_to_the_default_tenant() {
    for body in [
        r#"{"eventType":"t","payload":1,"tenantId":"a b"}"#,
        r#"{"eventType":"t","payload":{"tenantId":7}}"#,
        r#"{"eventType":"t","data":1,"metadata":{"tenantId":"ä"}}"#,
        r#"{"event_type":"t","data":1,"tenant":{}}"#,
        r#"{"metadata":{"event_type":"t","tenant_id":[]},"payload":1}"#,
        r#"{"specversion":"1.0","tenantid":false}"#,
    ] {
        let error = normaliser().event(&message(&[], body)).unwrap_err();
        assert_eq!(error.code, "invalid_tenant", "{body}");
    }
    for tenant in ["a b", "a%20b", "%ff", "ä"] {
        let headers = [("ce-specversion", "1.0"), ("ce-tenantid", tenant)];
        let error = normaliser().event(&message(&headers, "1")).unwrap_err();
        assert_eq!(error.code, "invalid_tenant", "{tenant}");
    }
    let unnamed = r#"{"eventType":"t","payload":1}"#;
    for tenant in ["a b", "süd", " ", &"x".repeat(65)] {
        for body in ["[1]", "no json", unnamed] {
            let bad = message(&[("x-tenant-id", tenant)], body);
            let error = normaliser().event(&bad).unwrap_err();
            assert_eq!(error.code, "invalid_tenant", "{tenant:?} {body}");
        }
        // Where the envelope says it, the header is not asked.
        let named = r#"{"eventType":"t","payload":1,"tenantId":"nord"}"#;
        let event = event(&[("X-Tenant-Id", tenant)], named);
        assert_eq!(event.meta.tenant.as_str(), "nord");
    }
    let empty = event(&[("X-Tenant-Id", "")], "[1]");
    assert_eq!(empty.meta.tenant.as_str(), "default");
    for body in [
        r#"{"eventType":"t","payload":1,"tenantId":null}"#,
        r#"{"eventType":"t","payload":{"tenantId":""},"tenantId":""}"#,
    ] {
        assert_eq!(
            event(&[("X-Tenant-Id", "nord")], body).meta.tenant.as_str(),
            "nord",
            "{body}"
        );
        assert_eq!(meta(body).tenant.as_str(), "default", "{body}");
    }
}

#[test]
fn empty_and_oversized_bodies_are_unreadable_and_the_largest_is_not() {
    let mut normaliser = normaliser();
    normaliser.max_bytes = 4;
    let code = |body: &str| normaliser.event(&message(&[], body)).map_err(|e| e.code);
    assert_eq!(code("").unwrap_err(), "empty");
    assert_eq!(code("12345").unwrap_err(), "too_large");
    assert!(code("1234").is_ok());
    assert!(code(" ").is_ok(), "white space is a body");
}

#[test]
fn json_is_told_from_other_bytes() {
    for (body, json) in [
        (&b"{}"[..], Some("{}")),
        (b"\xef\xbb\xbf \r\n{\"a\":1.0}\t", Some(r#"{"a":1.0}"#)),
        (b" [1] ", Some("[1]")),
        (b"1e400", Some("1e400")),
        (b"\"text\"", Some("\"text\"")),
        (b"null", Some("null")),
        (br#"{"\ud800":"\udfff"}"#, Some(r#"{"\ud800":"\udfff"}"#)),
        (b"{} x", None),
        (b"{\"a\":}", None),
        (b"{\"a\":01}", None),
        (b"{\"eventType\":\"t\",\"payload\":1", None),
        (b"\"\xff\"", None),
        (b"\xff\xfe", None),
        (b" ", None),
        (b"a;b\n1;2\n", None),
    ] {
        let event = normaliser().event(&message(&[], body)).unwrap();
        assert_eq!(event.raw, body);
        let expected = json.map_or(body, str::as_bytes);
        assert_eq!(is_json(&event), json.is_some(), "{body:?}");
        assert_eq!(event.payload.bytes(), expected);
        assert_eq!(event.meta.event_type, "erp.some.thing");
    }
}

#[test]
fn of_a_repeated_key_the_last_counts() {
    let event = event(
        &[],
        r#"{"eventType":"a","payload":1,"eventType":"b","payload":2}"#,
    );
    assert_eq!((event.meta.event_type.as_str(), data(&event)), ("b", "2"));
    assert_eq!(
        meta(r#"{"event\u0054ype":"c","payload":1}"#).event_type,
        "c"
    );
}

#[test]
fn depth_neither_crashes_nor_is_refused() {
    let deep =
        |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let (arrays, objects) = (deep("[", "]"), deep("{\"data\":", "}"));
    for deep in [&arrays, &objects] {
        let bare = event(&[], deep);
        assert!(is_json(&bare) && data(&bare) == deep);
        for (before, after) in [
            (r#"{"eventType":"t","payload":"#, "}"),
            (r#"{"eventType":"t","metadata":{"x":[]},"data":"#, "}"),
            (r#"{"event_type":"t","data":"#, "}"),
            (r#"{"specversion":"1.0","type":"t","data":"#, "}"),
        ] {
            let event = event(&[], &format!("{before}{deep}{after}"));
            assert_eq!(event.meta.event_type, "t");
            assert!(is_json(&event) && data(&event) == deep);
        }
    }
    let unclosed = "[".repeat(100_000);
    assert!(!is_json(&event(&[], &unclosed)));
}

#[test]
fn cloudevents_hold_json_bytes_or_nothing() {
    let structured =
        |rest: &str| event(&[], &format!(r#"{{"specversion":"1.0","type":"t"{rest}}}"#));
    let image = structured(r#","datacontenttype":"image/png","data_base64":"iVBORw==""#);
    assert_eq!(
        image.payload,
        Payload::Binary(Bytes::from_static(b"\x89PNG"))
    );
    assert_eq!(image.meta.content_type.as_deref(), Some("image/png"));
    let broken = structured(r#","data_base64":"!""#);
    assert_eq!(broken.payload, Payload::Json(Bytes::from_static(b"\"!\"")));
    let text = structured(r#","datacontenttype":"text/plain","data":"hello""#);
    assert_eq!(
        text.payload,
        Payload::Json(Bytes::from_static(b"\"hello\""))
    );
    let nothing = structured("");
    assert_eq!(nothing.payload, Payload::Json(Bytes::from_static(b"null")));
    assert_eq!(
        (nothing.meta.id, nothing.meta.source),
        (derived(), "/erp".to_owned())
    );
    for event in [image, broken, text] {
        let stored = event.stored_meta();
        assert_eq!(
            BusinessEvent::from_stored(&stored, event.raw.clone()),
            Ok(event)
        );
    }
}

#[test]
fn binary_cloudevents_decode_their_headers_and_carry_any_body() {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b%C3%A4%20%25"),
        ("ce-type", ""),
        ("ce-correlationid", "c"),
        ("Content-Type", "image/png"),
    ];
    let event = normaliser().event(&message(&headers, b"\x89PNG")).unwrap();
    assert_eq!(event.meta.id, "bä %");
    assert_eq!(event.meta.event_type, "erp.some.thing");
    assert_eq!(event.meta.correlation_id.as_deref(), Some("c"));
    assert_eq!(event.meta.content_type.as_deref(), Some("image/png"));
    assert_eq!(
        event.payload,
        Payload::Binary(Bytes::from_static(b"\x89PNG"))
    );
}

#[test]
fn the_trace_of_the_message_comes_before_that_of_the_event() {
    let one = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let two = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01";
    let body = format!(r#"{{"specversion":"1.0","traceparent":"{two}","tracestate":"a=b"}}"#);
    let found = event(&[("Traceparent", one)], &body).meta;
    assert!(found.trace.is_some());
    assert_eq!(found.trace, TraceContext::read(Some(one), None));
    let found = event(&[("traceparent", "nonsense")], &body).meta;
    assert!(found.trace.is_some());
    assert_eq!(found.trace, TraceContext::read(Some(two), Some("a=b")));
}

#[test]
fn a_subject_with_control_characters_is_made_printable() {
    let mut odd = message(&[], "1");
    odd.subject = "erp.\u{0}x".to_owned();
    let meta = normaliser().event(&odd).unwrap().meta;
    assert_eq!(
        (meta.subject.as_str(), meta.event_type.as_str()),
        ("erp.\u{fffd}x", "erp.\u{fffd}x")
    );
}
