//! What the tests stand on holds: servers keep their port and data over a restart, the receiver
//! misbehaves as told, the worker starts and ends.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    PATIENCE, eventually,
    nats::{self, NatsServer},
    postgres::{Postgres, PostgresServer, execute},
    receiver::{Answer, Receiver},
    worker::{Environment, Worker},
};

#[tokio::test]
async fn a_nats_server_keeps_its_streams_over_a_restart_and_a_kill() {
    let mut server = NatsServer::start_with("max_payload: 2MB").await;
    let client = nats::client(&server.url()).await;
    let jetstream = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept.>".to_owned()],
        ..Default::default()
    };
    jetstream
        .create_stream(config)
        .await
        .expect("JetStream is on");
    for restart in ["orderly", "after a kill"] {
        let publishing = jetstream.publish("kept.a", restart.into()).await;
        publishing.expect("it is sent").await.expect("it is stored");
        let url = server.url();
        if restart == "after a kill" {
            server.kill();
        }
        server.restart().await;
        assert_eq!(server.url(), url);
    }

    let stored = eventually(PATIENCE, async || {
        let mut stream = jetstream.get_stream("KEPT").await.ok()?;
        Some(stream.info().await.ok()?.state.messages)
    })
    .await;

    assert_eq!(stored, 2);
    assert_eq!(client.server_info().max_payload, 2 * 1024 * 1024);
}

#[tokio::test]
async fn each_test_has_its_own_database() {
    let (one, two) = (Postgres::database().await, Postgres::database().await);
    for database in [&one, &two] {
        execute(&database.url(), "CREATE TABLE a (b int)").await;
    }
    assert_ne!(one.url(), two.url());
    let url = one.url();
    drop(one);
    let refused = PgConnection::connect(&url)
        .await
        .expect_err("it was dropped");
    assert!(refused.to_string().contains("does not exist"), "{refused}");
}

#[tokio::test]
async fn a_postgres_server_keeps_what_was_committed_over_a_restart_and_a_crash() {
    let server = PostgresServer::start().await;
    execute(&server.url(), "CREATE TABLE a (b int)").await;
    for crash in [false, true] {
        execute(&server.url(), "INSERT INTO a VALUES (1)").await;
        if crash {
            server.crash().await;
        } else {
            server.stop().await;
        }
        PgConnection::connect(&server.url())
            .await
            .expect_err("it is down");
        server.restart().await;
    }

    let mut connection = PgConnection::connect(&server.url())
        .await
        .expect("it is back");
    let row = sqlx::query("SELECT count(*) FROM a")
        .fetch_one(&mut connection)
        .await;

    assert_eq!(row.expect("the table is there").get::<i64, _>(0), 2);
}

/// Sends one request and reads until the connection ends; empty where no answer came.
async fn post(url: &str, body: &str) -> String {
    let (address, path) = url
        .trim_start_matches("http://")
        .split_once('/')
        .expect("a path");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nX-Test: yes\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len(),
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = String::new();
    // An aborted connection is an answer too.
    drop(stream.read_to_string(&mut answer).await);
    answer
}

#[tokio::test]
async fn the_receiver_records_requests_and_answers_as_told() {
    let receiver = Receiver::start();
    receiver.answer_in_turn(
        "/turns",
        vec![
            Answer::status(503).header("Retry-After", "7").body("busy"),
            Answer::status(204).after(Duration::from_millis(50)),
        ],
    );
    let start = Instant::now();
    let answers = [
        post(&receiver.url("/turns?q=1"), r#"{"n":1}"#).await,
        post(&receiver.url("/turns"), "").await,
    ];
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(answers[0].starts_with("HTTP/1.1 503"), "{}", answers[0]);
    assert!(answers[0].contains("retry-after: 7") && answers[0].ends_with("busy"));
    assert!(answers[1].starts_with("HTTP/1.1 204"), "{}", answers[1]);
    post(&receiver.url("/other"), "").await;

    let all = receiver.wait_for(3, PATIENCE).await;

    assert_eq!(all.len(), receiver.requests().len());
    let turns = receiver.requests_to("/turns");
    assert_eq!(turns.len(), 2);
    let first = &turns[0];
    assert_eq!(
        (first.method.as_str(), first.query.as_deref()),
        ("POST", Some("q=1"))
    );
    assert_eq!(
        (first.header("x-test"), first.header("x-absent")),
        ("yes", "")
    );
    assert_eq!(first.json()["n"], 1);
    assert!(first.at >= start);
    assert_eq!((first.connection, turns[1].connection), (1, 2));
}

#[tokio::test]
async fn the_receiver_hangs_and_hangs_up() {
    let receiver = Receiver::start();
    receiver.answer("/hang", Answer::hang());
    receiver.answer("/close", Answer::close());

    assert_eq!(post(&receiver.url("/close"), "").await, "");
    let hanging = receiver.url("/hang");
    let unanswered = post(&hanging, "");
    let received = receiver.wait_until(PATIENCE, |all| all.iter().any(|one| one.path == "/hang"));
    tokio::select! {
        answer = unanswered => panic!("it answered {answer}"),
        all = received => assert_eq!(all.len(), 2),
    }
}

#[tokio::test]
async fn a_stopped_receiver_ends_its_connections_and_comes_back_on_its_port() {
    let mut receiver = Receiver::start();
    let address = receiver.url("/");
    let socket = address
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    post(&address, "").await;
    let mut idle = TcpStream::connect(&socket).await.expect("it listens");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("it reads");
    receiver.wait_for(2, PATIENCE).await;

    receiver.stop();

    let mut rest = String::new();
    drop(idle.read_to_string(&mut rest).await);
    TcpStream::connect(&socket).await.expect_err("it is down");
    receiver.restart();
    post(&address, "").await;
    assert_eq!(receiver.wait_for(3, PATIENCE).await[2].connection, 3);
}

#[tokio::test]
async fn a_worker_becomes_ready_and_ends_with_zero() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));

    worker.wait_ready().await;

    assert_eq!(worker.ops("/live").await.0, 200);
    assert_eq!(worker.terminate().await, 0);
}

#[tokio::test]
async fn a_killed_worker_leaves_its_port() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    let ops = worker.ops_address().await;

    worker.kill9();

    TcpStream::connect(ops).await.expect_err("it is gone");
}

#[tokio::test]
async fn a_worker_without_configuration_ends_with_78_and_says_why() {
    let mut worker = Worker::command(&["run"], &Environment::default());

    assert_eq!(worker.exit_code(PATIENCE).await, 78);

    for variable in ["DATABASE_URL", "ENCRYPTION_KEYS"] {
        let named = |line: &str| line.contains(variable).then_some(());
        worker.output().wait_for(PATIENCE, named).await;
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_worker_at_once() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;

    worker.signal("INT");
    worker.signal("INT");

    worker.exit_code(Duration::from_secs(5)).await;
}
