//! Who works, and what waits.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{self, ErrorCode, context::GetStreamErrorKind},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::shared::error_chain::Chain;

use super::{
    Exit, Output, StatusOptions, Trouble,
    show::{aligned, printable},
};

/// What belongs to an installation on NATS.
#[derive(Debug, Clone)]
pub struct StatusNames {
    /// The workers' service.
    pub service: String,
    /// The streams, and the consumer that the workers share on each, if any.
    pub streams: Vec<(String, Option<String>)>,
}

/// More workers than these are not counted.
const MAX_WORKERS: usize = 1_000;

/// Prints the workers that answer and the state of their streams.
///
/// # Errors
/// [`Trouble`] when NATS is not there.
pub async fn status(
    client: &Client,
    names: &StatusNames,
    options: &StatusOptions,
    output: &mut Output<'_>,
) -> Result<Exit, Trouble> {
    let workers = workers(client, &names.service, options.wait).await?;
    let streams = streams(client, names).await;
    let exit = if workers.is_empty() {
        Exit::Unreachable
    } else {
        Exit::Done
    };
    if options.json {
        output.line(json!({ "workers": workers, "streams": streams }));
        return Ok(exit);
    }
    if workers.is_empty() {
        output.remark(format_args!(
            "no worker answers as the service {:?}",
            names.service
        ));
    } else {
        output.line(rows(
            &workers,
            &["worker", "version", "started", "requests", "errors"],
        ));
        output.line("");
    }
    output.line(rows(
        &streams,
        &["stream", "messages", "bytes", "pending", "unsettled"],
    ));
    Ok(exit)
}

/// One line for each worker that answers in time.
async fn workers(client: &Client, service: &str, wait: Duration) -> Result<Vec<Value>, Trouble> {
    let gone =
        |error: &(dyn std::error::Error + 'static)| Trouble::unreachable(Chain(error).to_string());
    let inbox = client.new_inbox();
    let mut answers = client
        .subscribe(inbox.clone())
        .await
        .map_err(|e| gone(&e))?;
    client
        .publish_with_reply(format!("$SRV.STATS.{service}"), inbox, Bytes::new())
        .await
        .map_err(|e| gone(&e))?;
    let deadline = Instant::now() + wait;
    let mut workers = Vec::new();
    while workers.len() < MAX_WORKERS {
        let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await else {
            break;
        };
        // Where nobody listens, the server says so, without a body.
        if answer.status.is_some() {
            break;
        }
        workers.extend(
            serde_json::from_slice::<Value>(&answer.payload)
                .ok()
                .map(|stats| worker(&stats)),
        );
    }
    Ok(workers)
}

fn worker(stats: &Value) -> Value {
    let endpoints = || {
        stats
            .get("endpoints")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let sum = |name| {
        endpoints()
            .filter_map(|one| one.get(name)?.as_u64())
            .sum::<u64>()
    };
    json!({
        "worker": stats.get("id"),
        "version": stats.get("version"),
        "started": stats.get("started"),
        "requests": sum("num_requests"),
        "errors": sum("num_errors"),
    })
}

async fn streams(client: &Client, names: &StatusNames) -> Vec<Value> {
    let context = jetstream::new(client.clone());
    let mut rows = Vec::new();
    for (name, consumer) in &names.streams {
        rows.push(match context.get_stream(name).await {
            Ok(stream) => stream_row(&stream, consumer.as_deref()).await,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(e)
                    if e.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    json!({ "stream": name, "messages": "missing" })
                }
                _ => json!({ "stream": name, "messages": Chain(&error).to_string() }),
            },
        });
    }
    rows
}

async fn stream_row(stream: &jetstream::stream::Stream, consumer: Option<&str>) -> Value {
    let info = stream.cached_info();
    let consumer = match consumer {
        Some(name) => stream.consumer_info(name).await.ok(),
        None => None,
    };
    json!({
        "stream": info.config.name,
        "messages": info.state.messages,
        "bytes": info.state.bytes,
        "pending": consumer.as_ref().map(|info| info.num_pending),
        "unsettled": consumer.as_ref().map(|info| info.num_ack_pending),
    })
}

fn rows(items: &[Value], columns: &[&str]) -> String {
    let heading = columns.iter().map(|column| (*column).to_owned()).collect();
    let row = |item: &Value| {
        let cell = |column: &&str| match item.get(column) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => printable(text),
            Some(other) => printable(&other.to_string()),
        };
        columns.iter().map(cell).collect()
    };
    let rows: Vec<_> = std::iter::once(heading)
        .chain(items.iter().map(row))
        .collect();
    aligned(&rows)
}
