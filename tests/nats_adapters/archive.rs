//! The source stream read back: whole, over gaps, by time, and past what nobody can read.

use std::collections::BTreeSet;

use async_nats::jetstream::consumer::PullConsumer;
use chrono::TimeDelta;
use futures_util::TryStreamExt;
use integration_worker::{
    application::{
        event_archive::{ArchiveLimit, ArchivePage, ArchiveStart, EventArchive},
        ports::{MessageSource, SourceMessage},
    },
    infrastructure::nats::{JetStreamArchive, PullSource},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::Installation;

fn archive(installation: &Installation) -> JetStreamArchive {
    JetStreamArchive::new(&installation.connection, &installation.topology)
}

async fn with_messages(count: u32) -> (Installation, JetStreamArchive) {
    let installation = Installation::start().await;
    for n in 1..=count {
        installation.store("erp.n", &n.to_string()).await;
    }
    let archive = archive(&installation);
    (installation, archive)
}

async fn page(archive: &JetStreamArchive, from: u64, messages: usize) -> ArchivePage {
    let limit = ArchiveLimit {
        messages,
        ..ArchiveLimit::default()
    };
    let page = archive.page(ArchiveStart::Sequence(from), limit).await;
    page.expect("a page")
}

fn sequences(page: &ArchivePage) -> Vec<u64> {
    page.messages.iter().map(|m| m.sequence).collect()
}

async fn delete(installation: &Installation, sequences: impl IntoIterator<Item = u64>) {
    let stream = installation.context.get_stream("ERP_EVENTS").await;
    let stream = stream.expect("the stream");
    for sequence in sequences {
        assert!(stream.delete_message(sequence).await.expect("it is there"));
    }
}

/// Publishes bytes as they are, and waits until the server has them.
async fn publish_raw(url: &str, subject: &str, head: &[u8]) {
    let address = url.trim_start_matches("nats://");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let start = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n";
    stream.write_all(start).await.expect("it reads");
    let line = format!("HPUB {subject} {} {}\r\n", head.len(), head.len() + 2);
    let message = [line.as_bytes(), head, b"{}\r\nPING\r\n"].concat();
    stream.write_all(&message).await.expect("it reads");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"PONG") {
        let read = stream.read_buf(&mut answer).await.expect("it answers");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_message_is_read_back_as_it_was_pulled() {
    let installation = Installation::start().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.append("X-Tenant-Id", "acme");
    headers.append("Many", "1");
    headers.append("Many", "2");
    let sent = installation.context.publish_with_headers(
        "sales.order.created",
        headers,
        vec![0, 159, 255].into(),
    );
    sent.await.expect("sent").await.expect("taken");
    let source = PullSource::erp(&installation.connection, &installation.topology);
    let pulled = source.pull(1).await.expect("a pull");
    let (pulled, _) = pulled.first().expect("a message");

    let archive = archive(&installation);
    let found = archive.message(1).await.expect("it answers");
    let found = found.expect("the message");

    let set = |message: &SourceMessage| message.headers.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(&found), set(pulled));
    assert_eq!(
        (&found.subject, &found.body, found.sequence),
        (&pulled.subject, &pulled.body, pulled.sequence)
    );
    assert_eq!(found.published_at, pulled.published_at);
    for other in [0, 2, u64::MAX] {
        assert!(archive.message(other).await.expect("it answers").is_none());
    }
}

#[tokio::test]
async fn pages_follow_each_other_to_the_end() {
    let (_installation, archive) = with_messages(25).await;
    let (mut seen, mut from, mut pages) = (Vec::new(), 0, 0);
    loop {
        let page = page(&archive, from, 10).await;
        assert!(page.messages.len() <= 10);
        seen.extend(sequences(&page));
        (from, pages) = (page.next, pages + 1);
        if page.is_end {
            break;
        }
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    assert_eq!((from, pages), (26, 3));
    let after = page(&archive, from, 10).await;
    assert!(after.messages.is_empty() && after.is_end);
    assert_eq!(after.next, 26);
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_has_one_message_at_least() {
    let (installation, archive) = with_messages(0).await;
    for body in ["a".repeat(100), "b".repeat(100), "c".repeat(900)] {
        installation.store("erp.n", &body).await;
    }
    let read = async |from, bytes| {
        let limit = ArchiveLimit {
            messages: 10,
            bytes,
        };
        let page = archive.page(ArchiveStart::Sequence(from), limit).await;
        let page = page.expect("a page");
        (sequences(&page), page.next, page.is_end)
    };
    assert_eq!(read(1, 200).await, (vec![1, 2], 3, false));
    assert_eq!(read(2, 200).await, (vec![2], 3, false));
    assert_eq!(read(3, 200).await, (vec![3], 4, true));
    assert_eq!(read(1, 0).await, (vec![1], 2, false));
}

#[tokio::test]
async fn gaps_are_passed_in_one_leap() {
    let (installation, archive) = with_messages(40).await;
    delete(&installation, (2..=30).chain([40])).await;
    let first = page(&archive, 1, 5).await;
    assert_eq!((sequences(&first), first.next), (vec![1], 6));
    let gap = page(&archive, 6, 5).await;
    assert_eq!((sequences(&gap), gap.next, gap.is_end), (vec![], 31, false));
    let rest = page(&archive, 31, 100).await;
    assert_eq!(sequences(&rest), (31..=39).collect::<Vec<_>>());
    assert!(rest.is_end);
    assert!(archive.message(10).await.expect("it answers").is_none());
}

#[tokio::test]
async fn a_page_begins_at_a_time() {
    let (installation, archive) = with_messages(12).await;
    // Both ends have to be found, also over gaps.
    delete(&installation, [4, 5, 6]).await;
    let bounds = archive.bounds().await.expect("it answers").expect("some");
    assert_eq!((bounds.first.sequence, bounds.last.sequence), (1, 12));
    let whole = page(&archive, 1, 100).await;
    let from = async |time| {
        let limit = ArchiveLimit::default();
        let page = archive.page(ArchiveStart::Time(time), limit).await;
        sequences(&page.expect("a page"))
    };
    for message in &whole.messages {
        let expected: Vec<_> = { whole.messages.iter() }
            .filter(|other| other.published_at >= message.published_at)
            .map(|other| other.sequence)
            .collect();
        assert_eq!(from(message.published_at).await, expected);
    }
    let far = TimeDelta::hours(1);
    assert_eq!(from(bounds.first.published_at - far).await.len(), 9);
    assert!(from(bounds.last.published_at + far).await.is_empty());
}

#[tokio::test]
async fn an_empty_stream_has_no_bounds_and_one_empty_page() {
    let (installation, archive) = with_messages(0).await;
    assert_eq!(archive.bounds().await.expect("it answers"), None);
    let empty = page(&archive, 7, 10).await;
    assert!(empty.messages.is_empty() && empty.is_end);
    installation.store("erp.n", "1").await;
    delete(&installation, [1]).await;
    assert_eq!(archive.bounds().await.expect("it answers"), None);
}

#[tokio::test]
async fn what_the_client_cannot_read_is_passed_and_disturbs_nothing() {
    let (installation, archive) = with_messages(1).await;
    let url = installation.server.url();
    for poison in [
        b"NATS/1.0\r\nX-Name: M\xfcller\r\n\r\n".as_slice(),
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/9.0\r\nA: b\r\n\r\n",
    ] {
        publish_raw(&url, "sales.order.created", poison).await;
    }
    installation.store("erp.n", "5").await;

    assert_eq!(sequences(&page(&archive, 1, 10).await), [1, 5]);
    assert!(archive.message(2).await.expect("it answers").is_none());
    let statistics = installation.connection.client.statistics();
    let connects = statistics
        .connects
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connects, 1, "the connection was never lost");
}

#[tokio::test]
async fn reading_back_leaves_nothing_behind_and_takes_nothing_away() {
    let (installation, archive) = with_messages(30).await;
    page(&archive, 1, 100).await;
    let stream = installation.context.get_stream("ERP_EVENTS").await;
    let stream = stream.expect("the stream");
    let names: Vec<String> = stream.consumer_names().try_collect().await.expect("names");
    assert_eq!(names, ["integration_erp"]);
    let consumer: PullConsumer = stream
        .get_consumer("integration_erp")
        .await
        .expect("the consumer");
    assert_eq!(consumer.cached_info().num_pending, 30);
}
