//! `dev`: a worker with servers of its own, and a receiver to send to, until it is told to stop.

use std::{net::SocketAddr, path::Path, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    application::ports::Clock as _, domain::values::format_time, infrastructure::clock::SystemClock,
};

use super::{
    embedded::{
        Environment, Folder, Surroundings, ops_client,
        receiver::{Received, Receiver},
        transcript::Transcript,
        worker::Worker,
    },
    error::RunError,
};

/// Where the ops server listens unless `OPS_ADDR` says otherwise.
const OPS_ADDR: &str = "127.0.0.1:9464";
/// How much of a body is shown.
const SHOWN: usize = 160;

/// Runs until `shutdown`. Everything lies in `data` and stays there; without it, in a temporary
/// folder, which is removed in the end.
///
/// # Errors
/// [`RunError`] when its servers cannot be had, or the worker does not run.
pub(crate) async fn run(data: Option<&Path>, shutdown: CancellationToken) -> Result<(), RunError> {
    let out = Transcript::stdout();
    let folder = match data {
        Some(path) => Folder::given(path)?,
        None => Folder::temporary("dev")?,
    };
    let variables = Environment::Settings;
    let surroundings = Surroundings::set_up(folder, variables, OPS_ADDR).await?;
    for name in variables.passed_over() {
        out.line(&format!(
            "{name} is set and not used: `dev` brings its own."
        ));
    }
    let result = in_surroundings(&surroundings, &out, shutdown).await;
    surroundings.tear_down().await;
    out.finish()?;
    result
}

async fn in_surroundings(
    surroundings: &Surroundings,
    out: &Transcript,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let worker = Worker::start(surroundings.config.clone(), None).await?;
    let (witness, clock) = (out.clone(), SystemClock::new());
    let tell = move |request: Received| {
        let time = format_time(clock.now());
        witness.line(&request_line(
            &request,
            time.get(11..23).unwrap_or_default(),
        ));
    };
    let receiver = Receiver::start(worker.group(), Arc::new(tell)).await?;
    let ops = worker.ops();
    let for_ever = Box::pin(async {
        ops_client::wait_ready(ops).await;
        introduce(surroundings, ops, &receiver, out);
        std::future::pending::<()>().await;
    });
    worker.run_beside(shutdown, for_ever).await?;
    Ok(())
}

/// `09:31:00.120  POST /orders → 200  webhook-id 0199…  signed  {"type":…`
fn request_line(request: &Received, time: &str) -> String {
    let signed = if request.header("webhook-signature").is_empty() {
        "not signed"
    } else {
        "signed"
    };
    let body: String = request.text().chars().take(SHOWN).collect();
    let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
    format!(
        "{time}  {} {} → {}  webhook-id {}  {signed}  {body}",
        request.method,
        request.path,
        request.status,
        request.header("webhook-id"),
    )
}

fn introduce(surroundings: &Surroundings, ops: SocketAddr, receiver: &Receiver, out: &Transcript) {
    let (nats, hook) = (surroundings.nats_url(), receiver.url("/orders"));
    let prefix = &surroundings.config.nats.prefix;
    let folder = surroundings.folder.path().display();
    let lasts = if surroundings.folder.is_temporary() {
        "removed in the end; `dev --data DIR` keeps it"
    } else {
        "stays for the next time"
    };
    out.heading("A worker for you to try, until Ctrl-C");
    for (name, value) in [
        (
            "NATS",
            format!("{nats}  (nats-server {})", surroundings.nats_version()),
        ),
        (
            "ops",
            format!("http://{ops}  /live /ready /health /metrics"),
        ),
        ("data", format!("{folder}  ({lasts})")),
        (
            "receiver",
            format!(
                "{}  shows every request here; /status/503 answers 503",
                receiver.url("/")
            ),
        ),
    ] {
        out.say(&format!("{name:<9} {value}"));
    }
    out.heading("Try, in another terminal");
    for line in client_commands(&nats, &hook) {
        out.say(&line);
    }
    out.heading("Or with the `nats` command line");
    for line in nats_commands(&nats, prefix, &hook) {
        out.say(&line);
    }
    out.line("");
}

const INTEGRATION: &str = r#"{"name":"My partner","type":"webhook","config":{}}"#;
const EVENT: &str = r#"{"eventId":"e-1","eventType":"sales.order.created","payload":{"orderId":"o-1","totalNet":18450.00}}"#;

fn webhook(hook: &str) -> String {
    format!(
        r#"{{"name":"Orders","integrationId":"ID","events":["sales.order.*"],"config":{{"url":"{hook}"}}}}"#
    )
}

fn client_commands(nats: &str, hook: &str) -> Vec<String> {
    vec![
        format!("export NATS_URL={nats}"),
        "integration-worker events tail".to_owned(),
        format!("integration-worker integration create --data '{INTEGRATION}'"),
        format!(
            "integration-worker webhook create --data '{}'",
            webhook(hook)
        ),
        "  (ID is the id that the integration was answered with)".to_owned(),
        "integration-worker delivery list".to_owned(),
    ]
}

fn nats_commands(nats: &str, prefix: &str, hook: &str) -> Vec<String> {
    vec![
        format!("export NATS_URL={nats}"),
        format!("nats sub '{prefix}.events.>'"),
        format!("nats req {prefix}.api.integration.create '{INTEGRATION}'"),
        format!("nats req {prefix}.api.webhook.create '{}'", webhook(hook)),
        format!("nats pub sales.order.created '{EVENT}'"),
        format!("nats req {prefix}.api.delivery.list '{{}}'"),
        format!("nats micro info {prefix}"),
    ]
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Method};

    use super::*;

    #[test]
    fn what_is_to_be_copied_is_json() {
        let hook = webhook("http://127.0.0.1:1/orders");
        for text in [INTEGRATION, EVENT, &hook] {
            assert!(
                serde_json::from_str::<serde_json::Value>(text).is_ok(),
                "{text}"
            );
            assert!(!text.contains('\''), "{text}");
        }
    }

    #[test]
    fn a_request_is_one_readable_line() {
        let request = |headers: HeaderMap, body: &'static str| Received {
            method: Method::POST,
            path: "/orders".to_owned(),
            headers,
            body: body.into(),
            status: 200,
        };
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "d-1".parse().unwrap());
        headers.insert("webhook-signature", "v1,x".parse().unwrap());
        assert_eq!(
            request_line(&request(headers, "{\n \"a\": 1\n}"), "09:31:00.120"),
            r#"09:31:00.120  POST /orders → 200  webhook-id d-1  signed  { "a": 1 }"#
        );
        let line = request_line(&request(HeaderMap::new(), ""), "09:31:00.120");
        assert_eq!(
            line,
            "09:31:00.120  POST /orders → 200  webhook-id   not signed  "
        );
    }
}
