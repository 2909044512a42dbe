//! The box of dead letters: what is in it, over gaps, and the way back to where a letter came from.

use bytes::Bytes;
use chrono::DateTime;
use integration_worker::{
    application::{
        dead_letter_box::{DeadLetterBox, KeptLetter, LetterId, SendAgainError},
        ports::{DeadLetter, EventPublisher},
    },
    infrastructure::nats::JetStreamDeadLetters,
};

use crate::harness::Installation;

fn letter(kind: &'static str, subject: &str, sequence: u64) -> DeadLetter {
    DeadLetter {
        kind,
        reason: "invalid_tenant: no".to_owned(),
        tenant: "acme".to_owned(),
        subject: subject.to_owned(),
        stream: "ERP_EVENTS".to_owned(),
        sequence,
        published_at: DateTime::from_timestamp_millis(1_790_230_470_084).expect("a time"),
        headers: vec![
            ("X-Kept".to_owned(), "yes".to_owned()),
            ("Nats-Msg-Id".to_owned(), "original".to_owned()),
        ],
        body: Bytes::from(format!("body {sequence}")),
    }
}

fn letters_of(installation: &Installation) -> JetStreamDeadLetters {
    JetStreamDeadLetters::new(
        &installation.connection,
        installation.prefix.clone(),
        &installation.topology,
    )
}

async fn with_letters(count: u64) -> (Installation, JetStreamDeadLetters) {
    let installation = Installation::start().await;
    let publisher = installation.publisher();
    for sequence in 1..=count {
        let letter = letter("events", "sales.order.created", sequence);
        publisher.dead_letter(&letter).await.expect("it is kept");
    }
    let letters = letters_of(&installation);
    (installation, letters)
}

async fn all_newest(letters: &JetStreamDeadLetters) -> (Vec<KeptLetter>, usize) {
    let (mut all, mut steps, mut from) = (Vec::new(), 0, None);
    loop {
        let slice = letters.newest(from).await.expect("a slice");
        all.extend(slice.letters);
        steps += 1;
        from = slice.next;
        if from.is_none() {
            return (all, steps);
        }
    }
}

async fn all_oldest(letters: &JetStreamDeadLetters) -> (Vec<KeptLetter>, usize) {
    let (mut all, mut steps, mut from) = (Vec::new(), 0, Some(0));
    while let Some(at) = from {
        let slice = letters.oldest(at).await.expect("a slice");
        all.extend(slice.letters);
        steps += 1;
        from = slice.next;
    }
    (all, steps)
}

fn sequences(letters: &[KeptLetter]) -> Vec<u64> {
    letters.iter().map(|letter| letter.sequence).collect()
}

#[tokio::test]
async fn a_letter_is_read_as_it_was_put_aside() {
    let (_installation, letters) = with_letters(1).await;
    let (all, _) = all_newest(&letters).await;
    let [listed] = all.as_slice() else {
        panic!("not one letter: {all:?}")
    };
    assert!(listed.body.is_empty(), "a list has no bodies");

    let read = letters.letter(listed.id()).await.expect("an answer");

    let read = read.expect("the letter");
    assert_eq!(read.body, "body 1");
    assert_eq!((read.size, listed.size), (6, 6));
    assert_eq!(read.kind, "events");
    assert_eq!(read.reason(), ("invalid_tenant", "no"));
    assert_eq!(read.tenant.as_deref(), Some("acme"));
    assert_eq!(read.subject, "sales.order.created");
    assert_eq!(read.stream, "ERP_EVENTS");
    assert_eq!(read.origin_sequence, Some(1));
    let time = DateTime::from_timestamp_millis(1_790_230_470_084);
    assert_eq!(read.published_at, time);
    assert_eq!(read.headers, [("X-Kept".to_owned(), "yes".to_owned())]);
    let id = read.id();
    for other in [
        LetterId { sequence: 0, ..id },
        LetterId { sequence: 2, ..id },
        LetterId {
            added_ms: id.added_ms + 1,
            ..id
        },
    ] {
        let found = letters.letter(other).await.expect("an answer");
        assert!(found.is_none(), "{other}");
    }
}

#[tokio::test]
async fn an_empty_box_has_nothing() {
    let (_installation, letters) = with_letters(0).await;
    assert_eq!(all_newest(&letters).await.0.len(), 0);
    assert_eq!(all_oldest(&letters).await.0.len(), 0);
    let state = letters.state().await.expect("its state");
    assert_eq!((state.count, state.oldest), (0, None));
    assert_eq!(state.max_age.map(|age| age.as_secs()), Some(90 * 86_400));
}

#[tokio::test]
async fn both_ways_lead_over_gaps_in_few_steps() {
    let (installation, letters) = with_letters(300).await;
    let kept = [2, 3, 150, 290, 300];
    let stream = installation
        .context
        .get_stream("INTEGRATION_DEAD_LETTERS")
        .await
        .expect("the stream");
    for sequence in (1..=300).filter(|sequence| !kept.contains(sequence)) {
        stream.delete_message(sequence).await.expect("deleted");
    }

    let (oldest, forth) = all_oldest(&letters).await;
    let (mut newest, back) = all_newest(&letters).await;

    assert_eq!(sequences(&oldest), kept);
    newest.reverse();
    assert_eq!(sequences(&newest), kept);
    assert!(forth <= 5 && back <= 8, "{forth} and {back} steps");
    let state = letters.state().await.expect("its state");
    assert_eq!(state.count, 5);
    let first = oldest.first().expect("a letter");
    assert_eq!(state.oldest, Some(first.added_at));
}

#[tokio::test]
async fn a_letter_goes_back_to_where_it_came_from_once() {
    let (installation, letters) = with_letters(0).await;
    let publisher = installation.publisher();
    let command = letter("commands", "integration.commands.webhook.frob", 2);
    for letter in [letter("events", "sales.order.created", 1), command] {
        publisher.dead_letter(&letter).await.expect("it is kept");
    }
    let (all, _) = all_newest(&letters).await;
    for listed in &all {
        let letter = letters.letter(listed.id()).await.expect("an answer");
        let letter = letter.expect("the letter");
        for _ in 0..2 {
            letters.send_again(&letter).await.expect("it is taken");
        }
    }

    for (stream, subject, body) in [
        ("ERP_EVENTS", "sales.order.created", "body 1"),
        (
            "INTEGRATION_COMMANDS",
            "integration.commands.webhook.frob",
            "body 2",
        ),
    ] {
        let raw = installation
            .context
            .get_stream(stream)
            .await
            .expect("it is there");
        assert_eq!(raw.cached_info().state.messages, 1, "{stream}");
        let message = raw.get_raw_message(1).await.expect("the message");
        assert_eq!(message.subject.as_str(), subject);
        assert_eq!(message.payload, body);
        let names: Vec<_> = message
            .headers
            .iter()
            .map(|(name, _)| name.to_string())
            .collect();
        assert!(names.contains(&"X-Kept".to_owned()), "{names:?}");
        assert!(
            !names.iter().any(|name| name.starts_with("Integration-")),
            "{names:?}"
        );
    }
}

#[tokio::test]
async fn a_subject_that_the_stream_does_not_take_is_refused() {
    let (installation, letters) = with_letters(0).await;
    let publisher = installation.publisher();
    for (kind, subject) in [
        ("events", "elsewhere.order"),
        ("events", "integration.commands.webhook.delete"),
        ("events", "sales.*"),
        ("events", ""),
        ("events", "$JS.API.STREAM.DELETE.ERP_EVENTS"),
        ("commands", "sales.order.created"),
    ] {
        publisher
            .dead_letter(&letter(kind, subject, 1 + subject.len() as u64))
            .await
            .expect("it is kept");
        let slice = letters.newest(None).await.expect("a slice");
        let letter = slice.letters.first().expect("the letter");
        assert_eq!(letter.subject, subject);

        match letters.send_again(letter).await {
            Err(SendAgainError::Refused(why)) => {
                assert!(why.contains("does not take"), "{why}");
            }
            other => panic!("{kind} {subject}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_letter_is_removed_once_and_no_other_one() {
    let (_installation, letters) = with_letters(2).await;
    let (all, _) = all_newest(&letters).await;
    let id = all.first().expect("a letter").id();
    let stale = LetterId {
        added_ms: id.added_ms - 1,
        ..id
    };
    letters.remove(stale).await.expect("nothing to do");
    assert_eq!(all_newest(&letters).await.0.len(), 2);

    for _ in 0..2 {
        letters.remove(id).await.expect("it is gone");
    }

    assert_eq!(sequences(&all_newest(&letters).await.0), [1]);
}
