//! The publisher: events once, dead letters in shape, replies where they may go.

use bytes::Bytes;
use chrono::DateTime;
use integration_worker::{
    application::{
        dead_letters::dead_letter_id,
        ports::{DeadLetter, EventPublisher, ReplyPublisher},
    },
    domain::{interfaces::OutboxRow, values::TraceContext},
    infrastructure::nats::JetStreamPublisher,
};
use uuid::Uuid;

use futures_util::StreamExt as _;

use crate::{
    harness::Installation,
    support::{PATIENCE, eventually},
};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn rows(count: u64) -> Vec<OutboxRow> {
    let row = |n| OutboxRow {
        is_response: false,
        id: Uuid::from_u64_pair(1, n),
        event_type: "webhook.triggered".to_owned(),
        trace: TraceContext::read((n == 0).then_some(TRACE), Some("vendor=1,other=2")),
        body: format!(r#"{{"id":{n},"data":{{}}}}"#).into_bytes(),
    };
    (0..count).map(row).collect()
}

fn header<'a>(message: &'a async_nats::Message, name: &str) -> Option<&'a str> {
    let headers = message.headers.as_ref()?;
    headers.get(name).map(async_nats::HeaderValue::as_str)
}

fn letter(body: Bytes) -> DeadLetter {
    DeadLetter {
        kind: "events",
        reason: "malformed: no\r\nJSON".to_owned(),
        tenant: "acme".to_owned(),
        subject: "sales.order.created".to_owned(),
        stream: "ERP_EVENTS".to_owned(),
        sequence: 7,
        published_at: DateTime::UNIX_EPOCH,
        headers: vec![
            ("X-Kept".to_owned(), "yes".to_owned()),
            ("Nats-Msg-Id".to_owned(), "original".to_owned()),
            ("Bad Name".to_owned(), "x".to_owned()),
        ],
        body,
    }
}

#[tokio::test]
async fn a_batch_published_twice_is_there_once_and_in_order() {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    let rows = rows(1500);
    publisher.publish(&rows).await.expect("published");
    publisher.publish(&rows).await.expect("published again");

    let messages = installation.messages("INTEGRATION_EVENTS").await;

    assert_eq!(messages.len(), rows.len());
    for (message, row) in messages.iter().zip(&rows) {
        assert_eq!(message.payload, row.body);
    }
    let first = messages.first().expect("a message");
    assert_eq!(
        first.subject.as_str(),
        "integration.events.webhook.triggered"
    );
    assert_eq!(
        header(first, "Content-Type"),
        Some("application/cloudevents+json")
    );
    let id = Uuid::from_u64_pair(1, 0).to_string();
    assert_eq!(header(first, "Nats-Msg-Id"), Some(id.as_str()));
    assert_eq!(header(first, "traceparent"), Some(TRACE));
    assert_eq!(header(first, "tracestate"), Some("vendor=1,other=2"));
}

#[tokio::test]
async fn an_event_that_the_server_would_refuse_goes_out_without_its_data() {
    let installation = Installation::start_with("max_payload: 64KB", PATIENCE).await;
    let mut rows = rows(2);
    rows[0].body = format!(r#"{{"id":"big","data":"{}"}}"#, "x".repeat(100_000)).into();
    let published = installation.publisher().publish(&rows).await;
    published.expect("published");
    let messages = installation.messages("INTEGRATION_EVENTS").await;
    assert_eq!(messages.len(), 2);
    let text = String::from_utf8_lossy(&messages[0].payload);
    assert!(
        text.starts_with(r#"{"id":"big","data":{"omitted""#),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_stream_is_an_error_and_is_there_at_the_next_try() {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    let delete = installation.context.delete_stream("INTEGRATION_EVENTS");
    delete.await.expect("it was there");
    publisher.publish(&rows(3)).await.expect_err("no stream");
    publisher
        .publish(&rows(3))
        .await
        .expect("it is there again");
    let messages = installation.messages("INTEGRATION_EVENTS").await;
    assert_eq!(messages.len(), 3);
}

/// The ids of those that were refused, in order.
async fn refused(publisher: &JetStreamPublisher, rows: &[OutboxRow]) -> Vec<Uuid> {
    let refused = publisher.publish_each(rows).await.expect("it is there");
    let mut refused: Vec<Uuid> = refused.iter().map(|refusal| refusal.id).collect();
    refused.sort_unstable();
    refused
}

fn made_of_answers(count: u64) -> Vec<OutboxRow> {
    let mut rows = rows(count);
    for row in &mut rows {
        row.is_response = true;
    }
    rows
}

#[tokio::test]
async fn an_event_made_of_an_answer_goes_to_the_erp() {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    let rows = made_of_answers(1);
    assert!(refused(&publisher, &rows).await.is_empty());
    assert!(refused(&publisher, &rows).await.is_empty());

    let messages = installation.messages("ERP_EVENTS").await;

    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].subject.as_str(), "erp.webhook.triggered");
    let id = rows[0].id.to_string();
    assert_eq!(header(&messages[0], "Nats-Msg-Id"), Some(id.as_str()));
    assert!(installation.messages("INTEGRATION_EVENTS").await.is_empty());

    let delete = installation.context.delete_stream("ERP_EVENTS");
    delete.await.expect("it was there");
    assert_eq!(refused(&publisher, &rows).await, [rows[0].id]);
    assert!(refused(&publisher, &rows).await.is_empty());
    assert_eq!(installation.messages("ERP_EVENTS").await.len(), 1);
}

#[tokio::test]
async fn an_event_that_no_stream_keeps_is_refused() {
    let installation = Installation::start().await;
    let publisher = installation.publisher_of_responses("elsewhere.");
    let rows = made_of_answers(3);
    let all: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let refusals = publisher.publish_each(&rows).await.expect("it is there");
    assert_eq!(refusals.len(), 3);
    assert_eq!(refusals[0].subject, "elsewhere.webhook.triggered");
    assert_eq!(refused(&publisher, &rows).await, all);
}

#[tokio::test]
async fn of_events_made_of_answers_those_are_refused_that_the_stream_does_not_take() {
    let installation = Installation::start_with("max_payload: 64KB", PATIENCE).await;
    let stream = installation.context.get_stream("ERP_EVENTS").await;
    let mut config = stream.expect("there").cached_info().config.clone();
    config.max_message_size = 4096;
    let updated = installation.context.update_stream(config).await;
    updated.expect("updated");
    let mut rows = made_of_answers(4);
    // One for the stream, one for the server.
    rows[0].body = vec![b' '; 8192];
    rows[2].body = vec![b' '; 100_000];
    let publisher = installation.publisher();
    assert_eq!(refused(&publisher, &rows).await, [rows[0].id, rows[2].id]);
    let kept = installation.messages("ERP_EVENTS").await;
    let mut bodies: Vec<_> = kept.iter().map(|one| one.payload.to_vec()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, [rows[1].body.clone(), rows[3].body.clone()]);
}

#[tokio::test]
async fn a_dead_letter_is_the_original_and_what_became_of_it_and_there_once() {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    let letter = letter(Bytes::from_static(b"{"));
    publisher.dead_letter(&letter).await.expect("published");
    publisher.dead_letter(&letter).await.expect("again");

    let messages = installation.messages("INTEGRATION_DEAD_LETTERS").await;

    assert_eq!(messages.len(), 1);
    let message = &messages[0];
    assert_eq!(message.subject.as_str(), "integration.dead_letters.events");
    assert_eq!(&message.payload[..], b"{");
    let id = dead_letter_id(&letter).to_string();
    for (name, value) in [
        ("X-Kept", Some("yes")),
        ("Nats-Msg-Id", Some(id.as_str())),
        ("Integration-Reason", Some("malformed: no  JSON")),
        ("Integration-Origin-Subject", Some("sales.order.created")),
        ("Integration-Origin-Stream", Some("ERP_EVENTS")),
        ("Integration-Origin-Sequence", Some("7")),
        ("Integration-Tenant", Some("acme")),
    ] {
        assert_eq!(header(message, name), value, "{name}");
    }
}

#[tokio::test]
async fn a_dead_letter_as_large_as_the_server_takes_is_cut() {
    let installation = Installation::start_with("max_payload: 64KB", PATIENCE).await;
    let mut letter = letter(Bytes::from(vec![b'x'; 64 * 1024]));
    letter.headers.push(("Long".to_owned(), "v".repeat(40_000)));
    let published = installation.publisher().dead_letter(&letter).await;
    published.expect("it fits");
    let messages = installation.messages("INTEGRATION_DEAD_LETTERS").await;
    let reason = header(&messages[0], "Integration-Reason").expect("a reason");
    assert!(reason.contains("the body was cut from 65536"), "{reason}");
    assert!(messages[0].payload.len() > 20_000);
}

#[tokio::test]
async fn a_reply_goes_to_a_plain_subject_and_never_to_our_own() {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    let client = &installation.connection.client;
    let mut replies = client.subscribe("my.replies").await.expect("subscribed");
    for refused in [
        "integration.commands.webhook.create",
        "integration.events.webhook.created",
        "$JS.API.STREAM.DELETE.INTEGRATION_EVENTS",
        "my.*",
        "a b",
        "",
    ] {
        let published = publisher.publish_plain(refused, "x".into()).await;
        published.expect_err(refused);
    }
    let published = publisher.publish_plain("my.replies", "yes".into()).await;
    published.expect("published");
    let reply = tokio::time::timeout(PATIENCE, replies.next()).await;
    assert_eq!(reply.expect("in time").expect("a reply").payload, "yes");
    eventually(PATIENCE, async || {
        let unsettled = installation
            .unsettled("INTEGRATION_COMMANDS", "integration_commands")
            .await;
        (unsettled == 0).then_some(())
    })
    .await;
}
