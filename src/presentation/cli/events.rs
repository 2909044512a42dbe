//! Shows domain events as they are published.

use async_nats::Client;
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::shared::{config::check_subject, error_chain::Chain};

use super::{Exit, Output, TailOptions, Trouble, show::printable};

/// Prints every event of the given types, until Ctrl-C or the wanted number. Only what is published
/// from now on: it reads no stream and leaves no consumer behind.
///
/// # Errors
/// [`Trouble`] when the pattern is none, or NATS is not there.
pub async fn tail(
    client: &Client,
    prefix: &str,
    options: &TailOptions,
    output: &mut Output<'_>,
) -> Result<Exit, Trouble> {
    check_subject(&options.pattern).map_err(Trouble::usage)?;
    let subject = format!("{prefix}.events.{}", options.pattern);
    let gone =
        |error: &(dyn std::error::Error + 'static)| Trouble::unreachable(Chain(error).to_string());
    let mut events = client
        .subscribe(subject.clone())
        .await
        .map_err(|e| gone(&e))?;
    client.flush().await.map_err(|e| gone(&e))?;
    output.remark(format_args!("events on {subject}, until Ctrl-C"));
    let mut left = options.count;
    while left != Some(0) && !output.is_closed() {
        let message = tokio::select! {
            message = events.next() => message,
            ended = tokio::signal::ctrl_c() => {
                return ended
                    .map(|()| Exit::Done)
                    .map_err(|error| Trouble::failed(error.to_string()));
            }
        };
        let Some(message) = message else {
            return Err(Trouble::unreachable("the connection to NATS has ended"));
        };
        if options.json {
            output.bytes(&message.payload);
            output.bytes(b"\n");
        } else {
            output.line(line(&message.payload));
        }
        left = left.map(|left| left - 1);
    }
    Ok(Exit::Done)
}

/// Time, type, tenant, subject and data of an event; what is no event is shown as it is.
pub(super) fn line(event: &[u8]) -> String {
    let Ok(event) = serde_json::from_slice::<Value>(event) else {
        return printable(&String::from_utf8_lossy(event));
    };
    let text = |name| printable(event.get(name).and_then(Value::as_str).unwrap_or("-"));
    let data = event.get("data").map(Value::to_string).unwrap_or_default();
    format!(
        "{}  {:<24}  {}  {}  {}",
        text("time"),
        text("type"),
        text("tenantid"),
        text("subject"),
        printable(&data)
    )
}
