//! The request–reply twin: a micro service that anybody finds, and that answers errors with a body.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use integration_worker::{
    presentation::nats::{Connect, HandleCommand, RequestService, ServiceSettings},
    shared::lifecycle::{Alarm, Group},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    commands::Scripted,
    harness::{Installation, TestClock, connect_to},
    support::{PATIENCE, eventually},
};

struct Running {
    installation: Installation,
    handler: Arc<Scripted>,
    group: Group,
    alarm: Alarm,
}

fn service(
    installation: &Installation,
    connect: Connect,
    handler: &Arc<Scripted>,
) -> RequestService {
    RequestService {
        connect,
        handler: Arc::clone(handler) as Arc<dyn HandleCommand>,
        clock: Arc::new(TestClock::default()),
        settings: ServiceSettings {
            name: installation.prefix.service(),
            subject_root: installation.prefix.api(),
            concurrency: 2,
        },
    }
}

impl Running {
    async fn start() -> Self {
        Self::over(Installation::start().await).await
    }

    async fn over(installation: Installation) -> Self {
        let handler = Arc::new(Scripted::default());
        let alarm = Alarm::default();
        let group = Group::new("requests", &alarm);
        let service = service(&installation, installation.connect_again(), &handler);
        service.spawn(&group).await.expect("registered");
        Self {
            installation,
            handler,
            group,
            alarm,
        }
    }

    async fn ask(&self, subject: &str, body: &str) -> Option<async_nats::Message> {
        let client = &self.installation.connection.client;
        let asked = client.request(subject.to_owned(), body.to_owned().into());
        asked.await.ok()
    }
}

fn json(message: &async_nats::Message) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

const GET: &str = "integration.api.webhook.get";

#[tokio::test]
async fn a_success_and_an_error_are_answered_with_a_body() {
    let running = Running::start().await;
    let done = running.ask(GET, "do").await.expect("an answer");
    assert_eq!(json(&done)["data"]["done"], true);
    assert!(done.headers.is_none());

    let refused = running.ask(GET, "refuse").await.expect("an answer");
    assert_eq!(json(&refused)["error"]["code"], "not_found");
    let headers = refused.headers.expect("headers");
    let header = |name: &str| headers.get(name).map(ToString::to_string);
    assert_eq!(header("Nats-Service-Error-Code").as_deref(), Some("404"));
    assert_eq!(
        header("Nats-Service-Error").as_deref(),
        Some("as the script says")
    );

    let panicked = running.ask(GET, "once panic").await.expect("an answer");
    assert_eq!(json(&panicked)["success"], true, "not the first any more");
    assert!(!running.alarm.is_rung());
}

#[tokio::test]
async fn a_panic_is_an_internal_error() {
    let running = Running::start().await;
    let panicked = running.ask(GET, "once panic").await.expect("an answer");
    assert_eq!(json(&panicked)["error"]["code"], "internal");
    assert!(!running.alarm.is_rung());
}

#[tokio::test]
async fn a_page_that_is_larger_than_the_server_takes_is_cut() {
    let installation = Installation::start_with("max_payload: 64KB", PATIENCE).await;
    let running = Running::over(installation).await;
    let page = running.ask(GET, "list").await.expect("an answer");
    assert!(page.headers.is_none());
    let data = &json(&page)["data"];
    let items = data["items"].as_array().expect("items").len();
    assert!((100..150).contains(&items), "{items}");
    assert!(data["nextCursor"].is_string(), "{}", data["nextCursor"]);

    let refused = running.ask(GET, "large item").await.expect("an answer");
    let error = &json(&refused)["error"];
    assert_eq!(error["code"], "internal");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("max_payload"), "{message}");
}

#[tokio::test]
async fn an_unknown_action_has_no_responder() {
    let running = Running::start().await;
    let client = &running.installation.connection.client;
    let asked = client.request("integration.api.webhook.fly", "".into());
    let error = asked.await.expect_err("nobody is there");
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn the_service_tells_what_it_is_and_counts() {
    let running = Running::start().await;
    for body in ["do", "refuse", "do"] {
        running.ask(GET, body).await.expect("an answer");
    }
    let info = running.ask("$SRV.INFO.integration", "").await;
    let info = json(&info.expect("an answer"));
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let endpoints = info["endpoints"].as_array().expect("endpoints");
    let subjects: std::collections::BTreeSet<_> = endpoints
        .iter()
        .map(|endpoint| endpoint["subject"].as_str().expect("a subject"))
        .collect();
    assert_eq!(
        subjects,
        ["integration.api.webhook.create", GET]
            .into_iter()
            .collect()
    );
    eventually(PATIENCE, async || {
        let stats = json(&running.ask("$SRV.STATS.integration", "").await?);
        let endpoints = stats["endpoints"].as_array()?.clone();
        let get = endpoints.into_iter().find(|e| e["name"] == "webhook-get")?;
        let counted = (get["num_requests"].as_u64()?, get["num_errors"].as_u64()?);
        (counted == (3, 1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_service_is_there_again_after_a_restart_of_the_server() {
    let mut running = Running::start().await;
    running.installation.server.restart().await;
    let answer = eventually(PATIENCE, async || running.ask(GET, "do").await).await;
    assert_eq!(json(&answer)["success"], true);
    assert!(!running.alarm.is_rung());
}

#[tokio::test]
async fn what_has_arrived_is_answered_when_the_group_stops_and_then_nobody_is_there() {
    let running = Running::start().await;
    let client = &running.installation.connection.client;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribed");
    // More than are handled at a time.
    for _ in 0..5 {
        let sent = client.publish_with_reply(GET, inbox.clone(), "slow".into());
        sent.await.expect("sent");
    }
    client.flush().await.expect("sent");
    eventually(PATIENCE, async || {
        let seen = running.handler.seen.lock().expect("no panic").len();
        (seen > 0).then_some(())
    })
    .await;
    assert!(running.group.shut_down(PATIENCE).await);
    let handled = running.handler.seen.lock().expect("no panic").len();
    for _ in 0..handled {
        let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
        assert_eq!(
            json(&answer.expect("in time").expect("an answer"))["success"],
            true
        );
    }
    assert!(running.ask(GET, "do").await.is_none());
    assert!(!running.alarm.is_rung());
}

/// A way to the server that holds back what the client sends, as long as it is told to.
async fn held_up(server: &str) -> (String, watch::Sender<bool>, JoinSet<()>) {
    let mut url = url::Url::parse(server).expect("a URL");
    let target = url.socket_addrs(|| None).expect("an address")[0];
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    url.set_port(Some(port)).expect("it may have one");
    let held = watch::Sender::new(false);
    let mut free = held.subscribe();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut client, _) = listener.accept().await.expect("the client");
        let mut server = TcpStream::connect(target).await.expect("the server");
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let forward = async {
            let mut bytes = [0; 8192];
            while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                let freed = free.wait_for(|held| !held).await.map(drop);
                if freed.is_err() || to_server.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = forward => {}
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        }
    });
    (url.to_string(), held, tasks)
}

#[tokio::test]
async fn it_counts_as_registered_only_when_the_server_has_the_registrations() {
    let installation = Installation::start().await;
    let (url, held, _tasks) = held_up(&installation.server.url()).await;
    let connection = connect_to(&url).await;
    connection.established().await;
    let handler = Arc::new(Scripted::default());
    let group = Group::new("requests", &Alarm::default());
    held.send_replace(true);

    let client = connection.client.clone();
    let connect: Connect = Box::new(move || {
        let client = client.clone();
        Box::pin(async move { Ok(client) })
    });
    let service = service(&installation, connect, &handler);
    let mut registered = Box::pin(service.spawn(&group));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut registered).await;
    assert!(early.is_err(), "the server knows nothing yet");

    held.send_replace(false);
    let registered = tokio::time::timeout(PATIENCE, registered).await;
    registered.expect("in time").expect("registered");
    // Over another connection, and asked once.
    let client = &installation.connection.client;
    let answer = client.request(GET, "do".into()).await.expect("an answer");
    assert_eq!(json(&answer)["data"]["done"], true);
}
