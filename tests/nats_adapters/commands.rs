//! Durable commands: each is settled as its outcome asks for, and none is lost.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use async_nats::HeaderMap;
use async_trait::async_trait;
use futures_util::StreamExt;
use integration_worker::{
    application::commands::{ErrorCode, Handled, Incoming, Refusal, Reply},
    domain::values::TenantId,
    infrastructure::nats::PullSource,
    presentation::nats::{DurableCommands, DurableSettings, HandleCommand},
    shared::lifecycle::{Alarm, Group},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::{ACK_WAIT, Installation, TestClock},
    support::{PATIENCE, eventually},
};

/// Answers by the body: what is to happen there.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) seen: Mutex<Vec<Incoming>>,
    slow: AtomicUsize,
}

impl Scripted {
    fn tries(&self) -> usize {
        self.seen.lock().expect("no test panics with it").len()
    }

    fn incoming(&self) -> Vec<Incoming> {
        self.seen.lock().expect("no test panics with it").clone()
    }
}

#[async_trait]
impl HandleCommand for Scripted {
    fn actions(&self) -> &'static [(&'static str, &'static str)] {
        &[("webhook", "create"), ("webhook", "get")]
    }

    async fn handle(&self, incoming: Incoming) -> Handled {
        let script = String::from_utf8_lossy(&incoming.body).into_owned();
        let id = incoming.fallback_id.to_string();
        self.seen
            .lock()
            .expect("no test panics with it")
            .push(incoming);
        let refuse = |code| Reply::Failure(Refusal::new(code, "as\nthe script says"));
        let reply = match script.as_str() {
            "refuse" => refuse(ErrorCode::NotFound),
            "malformed" => refuse(ErrorCode::Malformed),
            "once unavailable" if self.tries() == 1 => refuse(ErrorCode::Unavailable),
            "once panic" if self.tries() == 1 => panic!("as the script says"),
            "slow" => {
                self.slow.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(ACK_WAIT * 3 / 2).await;
                Reply::Success(json!({ "slow": true }))
            }
            "list" => Reply::Success(json!({ "items": vec![item(400); 300], "nextCursor": null })),
            "large item" => Reply::Success(json!({ "items": [item(100_000)], "nextCursor": null })),
            _ => Reply::Success(json!({ "done": true })),
        };
        Handled {
            command_id: id,
            tenant: TenantId::try_new("acme").expect("a tenant"),
            reply,
        }
    }
}

fn item(size: usize) -> Value {
    json!({
        "id": Uuid::from_u128(7), "createdAt": "2026-11-02T08:14:09.120Z", "text": "x".repeat(size),
    })
}

struct Running {
    installation: Installation,
    handler: Arc<Scripted>,
    group: Group,
    alarm: Alarm,
}

impl Running {
    async fn start() -> Self {
        let installation = Installation::start().await;
        let handler = Arc::new(Scripted::default());
        let alarm = Alarm::default();
        let group = Group::new("commands", &alarm);
        let publisher = Arc::new(installation.publisher());
        let source = PullSource::commands(&installation.connection, &installation.topology);
        let commands = DurableCommands {
            source: Arc::new(source),
            handler: Arc::clone(&handler) as Arc<dyn HandleCommand>,
            publisher: Arc::clone(&publisher) as _,
            replies: publisher,
            clock: Arc::new(TestClock::default()),
            settings: DurableSettings {
                subject_root: installation.prefix.commands(),
                stream: installation.prefix.commands_stream(),
                concurrency: 4,
                ack_wait: ACK_WAIT,
                default_tenant: TenantId::try_new("default").expect("a tenant"),
            },
        };
        commands.spawn(&group);
        Self {
            installation,
            handler,
            group,
            alarm,
        }
    }

    /// Until no command is left.
    async fn settled(&self) {
        let stream = self.installation.prefix.commands_stream();
        eventually(PATIENCE, async || {
            let mut stream = self.installation.context.get_stream(&stream).await.ok()?;
            (stream.info().await.ok()?.state.messages == 0).then_some(())
        })
        .await;
        assert!(!self.alarm.is_rung());
    }

    async fn send(&self, subject: &str, body: &str, headers: &[(&str, &str)]) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    name.parse().expect("a name"),
                    value.parse().expect("a value"),
                )
            })
            .collect();
        let context = &self.installation.context;
        let sent = context
            .publish_with_headers(subject.to_owned(), headers, body.to_owned().into())
            .await;
        sent.expect("sent").await.expect("stored");
    }
}

const CREATE: &str = "integration.commands.webhook.create";

#[tokio::test]
async fn a_command_is_handled_once_and_answers_to_where_it_asks() {
    let running = Running::start().await;
    let client = &running.installation.connection.client;
    let mut replies = client.subscribe("my.replies").await.expect("subscribed");
    for body in ["do", "refuse"] {
        let headers = [("integration-reply-to", "my.replies"), ("X-User-Id", "u")];
        running.send(CREATE, body, &headers).await;
        let reply = tokio::time::timeout(PATIENCE, replies.next()).await;
        let reply = reply.expect("in time").expect("a reply");
        let reply: Value = serde_json::from_slice(&reply.payload).expect("JSON");
        assert_eq!(reply["success"], body == "do", "{reply}");
    }
    // Neither is there, nor is it in the way.
    running
        .send(CREATE, "do", &[("Integration-Reply-To", "a b")])
        .await;
    running.settled().await;
    let seen = running.handler.incoming();
    assert_eq!(seen.len(), 3);
    let first = seen.first().expect("a command");
    assert_eq!(
        (first.entity.as_str(), first.action.as_str()),
        ("webhook", "create")
    );
    assert!(first.durable);
    assert_eq!(first.fallback_id.get_version_num(), 7);
    assert!(
        first
            .headers
            .iter()
            .any(|(n, v)| n == "X-User-Id" && v == "u")
    );
}

#[tokio::test]
async fn a_command_that_fails_for_now_is_tried_again_under_the_same_id() {
    for body in ["once unavailable", "once panic"] {
        let running = Running::start().await;
        running.send(CREATE, body, &[]).await;
        running.settled().await;
        let seen = running.handler.incoming();
        assert_eq!(seen.len(), 2, "{body}");
        assert_eq!(seen[0].fallback_id, seen[1].fallback_id, "{body}");
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_a_dead_letter_and_told() {
    let running = Running::start().await;
    let subjects = [
        "integration.commands.webhook.fly",
        "integration.commands.webhook",
        "integration.commands.webhook.create.now",
        CREATE,
    ];
    for subject in subjects {
        let headers = [("X-Tenant-Id", "beta"), ("X-Kept", "yes")];
        running.send(subject, "malformed", &headers).await;
    }
    running.settled().await;

    let stream = running.installation.prefix.dead_letters_stream();
    let mut letters: Vec<_> = running
        .installation
        .messages(&stream)
        .await
        .iter()
        .map(|message| {
            let headers = message.headers.as_ref().expect("headers");
            let of = |name: &str| headers.get(name).expect("it is there").to_string();
            assert_eq!(
                message.subject.as_str(),
                "integration.dead_letters.commands"
            );
            assert_eq!(of("X-Kept"), "yes");
            let reason = of("Integration-Reason");
            let code = reason.split(':').next().unwrap_or_default().to_owned();
            (
                of("Integration-Origin-Subject"),
                code,
                of("Integration-Tenant"),
            )
        })
        .collect();
    letters.sort();
    let expected = |subject: &str, code: &str, tenant: &str| {
        (subject.to_owned(), code.to_owned(), tenant.to_owned())
    };
    assert_eq!(
        letters,
        [
            expected(subjects[1], "unknown_action", "beta"),
            expected(CREATE, "malformed", "acme"),
            expected(subjects[2], "unknown_action", "beta"),
            expected(subjects[0], "unknown_action", "beta"),
        ]
    );
    let events = running.installation.messages("INTEGRATION_EVENTS").await;
    let added = "integration.events.deadletter.added";
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event.subject.as_str() == added));
}

#[tokio::test]
async fn a_slow_command_is_not_given_to_another_worker() {
    let running = Running::start().await;
    running.send(CREATE, "slow", &[]).await;
    running.settled().await;
    assert_eq!(running.handler.tries(), 1);
}

#[tokio::test]
async fn what_is_in_hand_is_finished_when_the_group_stops_and_no_more_is_taken() {
    let running = Running::start().await;
    running.send(CREATE, "slow", &[]).await;
    eventually(PATIENCE, async || {
        (running.handler.slow.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    assert!(running.group.shut_down(PATIENCE).await);
    running.settled().await;
    running.send(CREATE, "late", &[]).await;
    assert_eq!(running.handler.tries(), 1);
    assert!(!running.alarm.is_rung());
}

#[tokio::test]
async fn a_restarted_server_loses_no_command() {
    let mut running = Running::start().await;
    for n in 0..10 {
        running.send(CREATE, &n.to_string(), &[]).await;
        if n == 5 {
            running.installation.server.restart().await;
            running.installation.connection.established().await;
            running
                .installation
                .connection
                .client
                .flush()
                .await
                .expect("sent");
        }
    }
    eventually(PATIENCE * 3, async || {
        let seen = running.handler.incoming();
        let bodies: std::collections::BTreeSet<_> = seen.iter().map(|i| i.body.clone()).collect();
        (bodies.len() == 10).then_some(())
    })
    .await;
}
