//! Expressions over an order.

mod bounds;
mod meaning;

use bytes::Bytes;

use crate::{
    application::{
        event_view::EventView,
        ports::{Expressions as _, Scope},
    },
    domain::{
        events::{BusinessEvent, EventMeta, Payload},
        values::TenantId,
    },
};

use super::*;

const ORDER: &str = r#"{"orderId":"SO-2026-1042","customerId":"K-10027","totalNet":18450.00,"count":3,
"tax":0.19,"amount":"1234.50","huge":123456789012345678901234567890123456789012345678.5,"paid":false,"note":null,
"lines":[{"sku":"A-1","quantity":2,"price":10.10},{"sku":"B-2","quantity":5,"price":0.20}],
"address":{"country":"DE","zip-code":"26121"},"in":1,"text":"a\"b\u00e4\n"}"#;

fn event(payload: Payload) -> BusinessEvent {
    BusinessEvent {
        meta: EventMeta {
            made_by: None,
            id: "e-1".to_owned(),
            event_type: "sales.order.created".to_owned(),
            source: "/erp".to_owned(),
            subject: "erp.sales.order.created".to_owned(),
            time: "2026-11-02T08:14:09.120Z".parse().unwrap(),
            tenant: TenantId::try_new("nord").unwrap(),
            correlation_id: Some("c-9".to_owned()),
            trace: None,
            content_type: Some("application/json".to_owned()),
            source_sequence: Some(7),
        },
        raw: payload.bytes().clone(),
        payload,
    }
}

fn json_event(data: &str) -> BusinessEvent {
    event(Payload::Json(Bytes::copy_from_slice(data.as_bytes())))
}

fn compile(text: &str) -> Arc<dyn Expression> {
    Cel.compile(text, Scope::Event)
        .unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

fn fault(text: &str) -> String {
    Cel.compile(text, Scope::Event).expect_err(text).to_string()
}

fn made_of(event: &BusinessEvent, text: &str) -> Result<String, String> {
    let made = compile(text).json(&EventView::new(event));
    made.map(|made| String::from_utf8(made.to_vec()).unwrap())
}

/// The expression over the order, as JSON.
fn made(text: &str) -> Result<String, String> {
    made_of(&json_event(ORDER), text)
}
