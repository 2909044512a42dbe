use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::domain::{
    entities::BodyFormat,
    events::{EventMeta, Payload},
    policies::RetryPolicy,
    values::{TenantId, TraceContext},
};

const DATA: &str = r#"{"totalNet":18450.00,"n":12345678901234567890.10}"#;
const DELIVERY: &str = "0f8fad5b-d9cb-569f-a165-70867728950e";

fn delivery() -> DeliveryId {
    DeliveryId(DELIVERY.parse().unwrap())
}

fn now() -> Timestamp {
    "2026-11-02T08:20:00.500Z".parse().unwrap()
}

fn settings(format: BodyFormat, headers: &[(&str, &str)]) -> WebhookSettings {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    WebhookSettings {
        url: "https://api.example.com/hook?key=canary".to_owned(),
        method: HttpMethod::Post,
        headers: headers.iter().map(own).collect(),
        timeout: Duration::from_secs(30),
        retry: RetryPolicy::default(),
        format,
        ordering: None,
        batch: None,
        response: None,
        filter: None,
        transform: None,
        rate_limit: None,
        max_in_flight: None,
    }
}

fn key(bytes: &[u8], expires_at: Option<Timestamp>) -> SigningKey {
    SigningKey {
        key: SignatureKey::from_plain(bytes),
        expires_at,
    }
}

fn endpoint(format: BodyFormat, headers: &[(&str, &str)]) -> Endpoint {
    Endpoint::compile(settings(format, headers), vec![key(b"key", None)]).unwrap()
}

fn event(payload: Payload, content_type: Option<&str>) -> BusinessEvent {
    let meta = EventMeta {
        made_by: None,
        id: "e 1".to_owned(),
        event_type: "sales.order.created".to_owned(),
        source: "/erp".to_owned(),
        subject: "sales.order.created".to_owned(),
        time: "2026-11-02T08:14:09.120Z".parse().unwrap(),
        tenant: TenantId::try_new("acme").unwrap(),
        correlation_id: None,
        trace: None,
        content_type: content_type.map(str::to_owned),
        source_sequence: Some(7),
    };
    let raw = match &payload {
        Payload::Json(data) => Bytes::from([b"{\"payload\":", &data[..], b"}"].concat()),
        Payload::Binary(data) => data.clone(),
    };
    BusinessEvent { meta, raw, payload }
}

fn json_event(content_type: Option<&str>) -> BusinessEvent {
    event(
        Payload::Json(Bytes::from_static(DATA.as_bytes())),
        content_type,
    )
}

fn binary_event(content_type: Option<&str>) -> BusinessEvent {
    event(
        Payload::Binary(Bytes::from_static(b"\x00\xff")),
        content_type,
    )
}

fn make(endpoint: &Endpoint, event: &BusinessEvent) -> OutboundRequest {
    endpoint.request(event, delivery(), 1, now()).unwrap()
}

fn header<'a>(request: &'a OutboundRequest, name: &str) -> Option<&'a str> {
    assert!(request.headers.get_all(name).iter().count() < 2, "{name}");
    request
        .headers
        .get(name)
        .map(|value| value.to_str().unwrap())
}

#[test]
fn a_standard_request_is_signed_and_keeps_numbers_as_they_are_written() {
    let request = make(&endpoint(BodyFormat::Standard, &[]), &json_event(None));
    let body = format!(
        r#"{{"type":"sales.order.created","timestamp":"2026-11-02T08:14:09.120Z","data":{DATA}}}"#
    );
    assert_eq!(request.body, body);
    assert_eq!(
        request.uri.to_string(),
        "https://api.example.com/hook?key=canary"
    );
    assert!(!format!("{request:?}").contains("canary"));
    assert_eq!(request.method, Method::POST);
    assert_eq!(request.timeout, Duration::from_secs(30));
    let signed = signature(
        [&key(b"key", None).key],
        DELIVERY,
        1_793_607_600,
        body.as_bytes(),
    );
    for (name, value) in [
        ("webhook-id", DELIVERY),
        ("webhook-timestamp", "1793607600"),
        ("webhook-signature", &signed),
        ("content-type", "application/json"),
        (
            "user-agent",
            concat!("integration-worker/", env!("CARGO_PKG_VERSION")),
        ),
    ] {
        assert_eq!(header(&request, name), Some(value), "{name}");
    }
}

#[test]
fn keys_that_have_not_expired_sign_newest_first() {
    let second = chrono::TimeDelta::seconds(1);
    let keys = vec![
        key(b"new", None),
        key(b"old", Some(now() + second)),
        key(b"gone", Some(now())),
    ];
    let sign = |keys: &[SigningKey], body: &[u8]| {
        signature(
            keys.iter().map(|k| &k.key),
            DELIVERY,
            now().timestamp(),
            body,
        )
    };
    let endpoint = Endpoint::compile(settings(BodyFormat::Raw, &[]), keys.clone()).unwrap();
    let request = make(&endpoint, &json_event(None));
    let expected = sign(keys.get(..2).unwrap(), &request.body);
    assert_eq!(header(&request, "webhook-signature"), Some(&*expected));

    let unsigned = Endpoint::compile(settings(BodyFormat::Raw, &[]), Vec::new()).unwrap();
    let request = make(&unsigned, &json_event(None));
    assert_eq!(header(&request, "webhook-signature"), None);
}

#[test]
fn a_structured_cloudevent_holds_all_attributes() {
    let endpoint = endpoint(BodyFormat::CloudEvents, &[("content-type", "text/plain")]);
    let mut event = json_event(Some("application/json"));
    event.meta.correlation_id = Some("c\"1".to_owned());
    let request = make(&endpoint, &event);
    assert_eq!(
        header(&request, "content-type"),
        Some("application/cloudevents+json")
    );
    let text = str::from_utf8(&request.body).unwrap();
    assert!(text.ends_with(&format!(",\"data\":{DATA}}}")), "{text}");
    let mut body: Value = serde_json::from_str(text).unwrap();
    body.as_object_mut().unwrap().remove("data");
    let attributes = json!({
        "specversion": "1.0", "id": "e 1", "source": "/erp", "type": "sales.order.created",
        "subject": "sales.order.created", "tenantid": "acme", "correlationid": "c\"1",
        "time": "2026-11-02T08:14:09.120Z", "datacontenttype": "application/json",
    });
    assert_eq!(body, attributes);
}

#[test]
fn data_that_is_no_json_is_base64_in_a_structured_cloudevent() {
    let endpoint = endpoint(BodyFormat::CloudEvents, &[]);
    for (own, told) in [
        (None, "application/octet-stream"),
        (Some("image/png"), "image/png"),
    ] {
        let request = make(&endpoint, &binary_event(own));
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["data_base64"], "AP8=");
        assert_eq!(body["datacontenttype"], told);
        assert_eq!(body.get("data"), None);
    }
}

#[test]
fn a_binary_cloudevent_has_its_attributes_in_encoded_headers() {
    let endpoint = endpoint(
        BodyFormat::CloudEventsBinary,
        &[("content-type", "text/plain")],
    );
    let mut event = json_event(None);
    event.meta.event_type = "größe\r\nx: y".to_owned();
    event.meta.subject = "50% \"off\"".to_owned();
    let request = make(&endpoint, &event);
    assert_eq!(request.body, DATA);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "e%201"),
        ("ce-source", "/erp"),
        ("ce-type", "gr%C3%B6%C3%9Fe%0D%0Ax:%20y"),
        ("ce-subject", "50%25%20%22off%22"),
        ("ce-tenantid", "acme"),
        ("ce-time", "2026-11-02T08:14:09.120Z"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(header(&request, name), Some(value), "{name}");
    }
    assert_eq!(header(&request, "x"), None);
    assert_eq!(header(&request, "ce-correlationid"), None);
}

#[test]
fn a_raw_request_is_the_message_as_published() {
    let event = json_event(None);
    let request = make(&endpoint(BodyFormat::Raw, &[]), &event);
    assert_eq!(request.body, event.raw);
}

#[test]
fn the_content_type_is_that_of_the_format_the_data_or_the_user() {
    use BodyFormat::{CloudEventsBinary, Raw, Standard};
    let user: &[_] = &[("content-type", "application/x+json")];
    let (json, cloud) = ("application/json", "application/cloudevents+json");
    let (utf8, octets) = (
        "application/json; charset=utf-8",
        "application/octet-stream",
    );
    for (format, user, own, expected) in [
        (Standard, &[][..], None, json),
        (Standard, user, Some("text/csv"), "application/x+json"),
        (Raw, &[], None, json),
        (Raw, user, None, "application/x+json"),
        (Raw, user, Some(cloud), cloud),
        (Raw, &[], Some("text/csv\r\nx: y"), json),
        (CloudEventsBinary, user, Some(utf8), utf8),
        (CloudEventsBinary, user, Some(cloud), json),
        (CloudEventsBinary, &[], Some("text/plain"), json),
    ] {
        let request = make(&endpoint(format, user), &json_event(own));
        let told = header(&request, "content-type");
        assert_eq!(told, Some(expected), "{format:?} {own:?}");
        assert_eq!(header(&request, "x"), None);
    }
    for format in [Standard, Raw, CloudEventsBinary] {
        for (own, expected) in [
            (None, octets),
            (Some("image/png"), "image/png"),
            (Some(cloud), octets),
            (Some("x\ny"), octets),
        ] {
            let request = make(&endpoint(format, user), &binary_event(own));
            assert_eq!(
                header(&request, "content-type"),
                Some(expected),
                "{format:?} {own:?}"
            );
            assert_eq!(request.body, &b"\x00\xff"[..]);
        }
    }
}

#[test]
fn the_users_headers_are_sent_marked_and_replace_none_of_the_workers() {
    let own = [
        ("authorization", "Bearer canary"),
        ("x-many", "1"),
        ("x-many", "2"),
        ("user-agent", "forged"),
        ("webhook-id", "forged"),
        ("webhook-signature", "forged"),
        ("host", "forged"),
        ("content-length", "1"),
        ("traceparent", "forged"),
        ("ce-id", "forged"),
    ];
    let endpoint = endpoint(BodyFormat::CloudEventsBinary, &own);
    let request = make(&endpoint, &json_event(None));
    let agent = header(&request, "user-agent").unwrap();
    assert!(agent.starts_with("integration-worker/"), "{agent}");
    assert_eq!(header(&request, "authorization"), Some("Bearer canary"));
    assert!(request.headers["authorization"].is_sensitive());
    assert_eq!(request.headers.get_all("x-many").iter().count(), 2);
    assert!(!request.headers.values().any(|value| value == "forged"));
    assert_eq!(header(&request, "content-length"), None);
    let shown = format!("{endpoint:?} {:?}", request.headers);
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn a_trace_goes_on_under_a_parent_of_each_attempt() {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let endpoint = endpoint(BodyFormat::Standard, &[]);
    let mut event = json_event(None);
    let parts = |event: &BusinessEvent, attempt| {
        let request = endpoint.request(event, delivery(), attempt, now()).unwrap();
        let parent = header(&request, "traceparent").unwrap();
        let parts: Vec<_> = parent.split('-').map(str::to_owned).collect();
        let state = header(&request, "tracestate").map(str::to_owned);
        (<[String; 4]>::try_from(parts).unwrap(), state)
    };

    let (made, state) = parts(&event, 1);
    assert_eq!(made[1], DELIVERY.replace('-', ""));
    assert_eq!((made[0].as_str(), made[3].as_str()), ("00", "01"));
    assert_eq!(state, None);
    assert_eq!(parts(&event, 1).0, made);
    assert_ne!(parts(&event, 2).0[2], made[2]);

    let parent = format!("00-{trace}-b7ad6b7169203331-00");
    event.meta.trace = TraceContext::read(Some(&parent), Some("vendor=1,other=2"));
    let (continued, state) = parts(&event, 1);
    assert_eq!(
        (continued[1].as_str(), continued[3].as_str()),
        (trace, "00")
    );
    assert_eq!(continued[2], made[2]);
    assert_eq!(state.as_deref(), Some("vendor=1,other=2"));
}

#[test]
fn settings_that_cannot_be_used_are_refused_without_showing_them() {
    for url in [
        "nonsense canary",
        "ftp://example.com/canary",
        "https://user:canary@example.com/",
    ] {
        let mut settings = settings(BodyFormat::Raw, &[]);
        url.clone_into(&mut settings.url);
        let fault = Endpoint::compile(settings, Vec::new()).unwrap_err();
        assert!(!fault.contains("canary"), "{fault}");
    }
    for header in [("a b", "canary"), ("x-a", "canary\r\nx: y"), ("", "canary")] {
        let settings = settings(BodyFormat::Raw, &[header]);
        let fault = Endpoint::compile(settings, Vec::new()).unwrap_err();
        assert!(fault.contains(&format!("{:?}", header.0)), "{fault}");
        assert!(!fault.contains("canary"), "{fault}");
    }
}
