//! The source: nothing that the stream holds is lost, whatever happens to the server.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::{self, consumer::PullConsumer};
use integration_worker::{
    application::ports::{MessageSource, Settle, SourceMessage},
    infrastructure::nats::PullSource,
};
use tokio::time::Instant;

use crate::{
    harness::{Installation, connect_to, store},
    support::{PATIENCE, eventually},
};

type Pulled = Vec<(SourceMessage, Box<dyn Settle>)>;

fn source(installation: &Installation) -> PullSource {
    PullSource::erp(&installation.connection, &installation.topology)
}

fn bodies(pulled: &Pulled) -> Vec<String> {
    let text =
        |(message, _): &(SourceMessage, _)| String::from_utf8(message.body.to_vec()).expect("text");
    pulled.iter().map(text).collect()
}

async fn ack(pulled: &Pulled) {
    for (_, handle) in pulled {
        handle.ack().await.expect("the client lives");
    }
}

/// Pulls and acks until each of them was seen; faults on the way are what the tests are about.
async fn drain(source: &PullSource, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = BTreeSet::new();
    while !wanted.is_subset(&seen) {
        assert!(Instant::now() < deadline, "missing: {:?}", wanted - &seen);
        if let Ok(pulled) = source.pull(7).await {
            seen.extend(bodies(&pulled));
            ack(&pulled).await;
        }
    }
    seen
}

fn numbers(range: std::ops::Range<u32>) -> BTreeSet<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_message_comes_as_it_was_published() {
    let installation = Installation::start().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.append("X-Tenant-Id", "acme");
    headers.append("Many", "1");
    headers.append("Many", "2");
    let client = &installation.connection.client;
    // Plain publications are captured too.
    let published = client.publish_with_headers("sales.order.created", headers, "body".into());
    published.await.expect("it is sent");

    let source = source(&installation);
    let pulled = source.pull(10).await.expect("a pull");

    let (message, _) = pulled.first().expect("a message");
    assert_eq!(message.subject, "sales.order.created");
    assert_eq!(message.header("x-tenant-id"), Some("acme"));
    let many: Vec<_> = message.headers.iter().filter(|h| h.0 == "Many").collect();
    assert_eq!(many.len(), 2);
    assert_eq!(&message.body[..], b"body");
    assert_eq!((message.sequence, message.deliveries), (1, 1));
    let nanos = message.published_at.timestamp_subsec_nanos();
    assert_eq!(nanos % 1_000_000, 0);
}

#[tokio::test]
async fn a_pull_takes_what_is_there_and_waits_for_the_first() {
    let installation = Installation::start().await;
    let source = source(&installation);
    assert!(source.pull(10).await.expect("a pull").is_empty());
    for n in 0..25 {
        installation.store("erp.n", &n.to_string()).await;
    }
    let mut seen = Vec::new();
    for expected in [10, 10, 5] {
        let started = Instant::now();
        let pulled = source.pull(10).await.expect("a pull");
        assert_eq!(pulled.len(), expected);
        // Nothing is waited for where something is there.
        assert!(started.elapsed() < Duration::from_millis(500));
        seen.extend(bodies(&pulled));
        ack(&pulled).await;
    }
    let wanted: Vec<_> = (0..25).map(|n| n.to_string()).collect();
    assert_eq!(seen, wanted);

    let (pulled, ()) = tokio::join!(source.pull(10), installation.store("erp.n", "late"));
    assert_eq!(bodies(&pulled.expect("a pull")), ["late"]);
}

#[tokio::test]
async fn what_is_not_settled_comes_again_and_what_is_does_not() {
    let installation = Installation::start().await;
    for n in 0..4 {
        installation.store("erp.n", &n.to_string()).await;
    }
    let source = source(&installation);
    let first = source.pull(10).await.expect("a pull");
    assert_eq!(first.len(), 4);
    first[0].1.ack().await.expect("settled");
    first[1].1.terminate().await.expect("settled");
    first[2]
        .1
        .nak(Duration::from_millis(1))
        .await
        .expect("settled");

    let again = drain(&source, &["2".to_owned(), "3".to_owned()].into()).await;

    assert_eq!(again, ["2".to_owned(), "3".to_owned()].into());
    eventually(PATIENCE, async || {
        let left = installation.unsettled("ERP_EVENTS", "integration_erp");
        (left.await == 0).then_some(())
    })
    .await;
}

/// Abandons a pull whose request has gone out, and publishes into it, until the server has sent a
/// message that nobody was handed; says which ones are out.
async fn abandon_a_pull(installation: &Installation, source: &PullSource) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for n in 0.. {
        let waiting = eventually(PATIENCE, async || {
            (info(installation).await.num_waiting > 0).then_some(())
        });
        tokio::select! {
            () = waiting => {}
            pulled = source.pull(10) => {
                let pulled = pulled.expect("a pull");
                for body in bodies(&pulled) {
                    assert!(out.remove(&body));
                }
                ack(&pulled).await;
                continue;
            }
        }
        installation.store("erp.n", &n.to_string()).await;
        out.insert(n.to_string());
        // A slow machine may have been slower than the request's second.
        if info(installation).await.num_ack_pending > 0 {
            break;
        }
    }
    out
}

async fn info(installation: &Installation) -> jetstream::consumer::Info {
    let consumer: PullConsumer = installation
        .context
        .get_consumer_from_stream("integration_erp", "ERP_EVENTS")
        .await
        .expect("the consumer");
    consumer.cached_info().clone()
}

#[tokio::test]
async fn an_abandoned_pull_loses_nothing() {
    let installation = Installation::start_with("", Duration::from_mins(6)).await;
    let source = source(&installation);
    let out = abandon_a_pull(&installation, &source).await;
    assert_eq!(drain(&source, &out).await, out);
}

#[tokio::test]
async fn what_was_requested_and_not_handed_out_can_be_given_back() {
    let installation = Installation::start_with("", Duration::from_mins(6)).await;
    let (one, other) = (source(&installation), source(&installation));
    let out = abandon_a_pull(&installation, &one).await;
    one.release().await.expect("given back");
    assert_eq!(drain(&other, &out).await, out);
}

#[tokio::test]
async fn a_restarted_server_loses_nothing() {
    let mut installation = Installation::start().await;
    let source = source(&installation);
    let context = installation.context.clone();
    let publishing = async {
        for n in 0..300 {
            store(&context, "erp.n", &n.to_string()).await;
        }
    };
    let restarting = async {
        for _ in 0..2 {
            installation.server.restart().await;
        }
    };
    let wanted = numbers(0..300);
    let (seen, (), ()) = tokio::join!(drain(&source, &wanted), publishing, restarting);
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn a_deleted_consumer_is_made_again_where_it_was() {
    let installation = Installation::start().await;
    let source = source(&installation);
    for n in 0..20 {
        installation.store("erp.n", &n.to_string()).await;
    }
    drain(&source, &numbers(0..20)).await;
    // The source knows what is settled when it has asked after a pull that brought nothing.
    for _ in 0..3 {
        assert!(source.pull(5).await.expect("a pull").is_empty());
    }
    let delete = installation
        .context
        .delete_consumer_from_stream("integration_erp", "ERP_EVENTS");
    delete.await.expect("it was there");
    for n in 20..40 {
        installation.store("erp.n", &n.to_string()).await;
    }

    let seen = drain(&source, &numbers(20..40)).await;

    assert_eq!(
        seen,
        numbers(20..40),
        "nothing that was settled comes again"
    );
}

#[tokio::test]
async fn a_deleted_stream_is_made_again() {
    let installation = Installation::start().await;
    let source = source(&installation);
    installation.store("erp.n", "0").await;
    drain(&source, &numbers(0..1)).await;
    let delete = installation.context.delete_stream("ERP_EVENTS");
    delete.await.expect("it was there");
    let storing = installation.store("erp.n", "1");
    let wanted = numbers(1..2);
    let (seen, ()) = tokio::join!(drain(&source, &wanted), storing);
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn two_workers_share_the_consumer() {
    let installation = Installation::start().await;
    let other_connection = connect_to(&installation.server.url()).await;
    let one = source(&installation);
    let other = PullSource::erp(&other_connection, &installation.topology);
    for n in 0..200 {
        installation.store("erp.n", &n.to_string()).await;
    }
    let wanted = numbers(0..200);
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < wanted.len() {
        assert!(Instant::now() < deadline, "only {} came", seen.len());
        let (a, b) = tokio::join!(one.pull(10), other.pull(10));
        for pulled in [a.expect("a pull"), b.expect("a pull")] {
            ack(&pulled).await;
            seen.extend(bodies(&pulled));
        }
    }
    assert_eq!(seen.len(), wanted.len(), "each comes to one of them");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), wanted);
}
