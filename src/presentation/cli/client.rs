//! Asks a running worker over NATS: one request, one reply.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};

use async_nats::{
    Client, HeaderMap, HeaderValue, Request,
    client::{RequestError, RequestErrorKind},
};
use bytes::Bytes;
use serde_json::{Value, value::RawValue};

use crate::{application::commands::CommandHandler, shared::error_chain::Chain};

use super::{EntityRequest, Exit, Output, Trouble, show};

/// Longest body that is read; a worker takes far less.
const MAX_BODY: u64 = 64 * 1024 * 1024;

/// Sends the request for an action of `entity` and prints the reply.
///
/// # Errors
/// [`Trouble`] when there is nothing to send, nobody answers, or what answers is no worker.
pub async fn request(
    client: &Client,
    prefix: &str,
    entity: &str,
    request: &EntityRequest,
    output: &mut Output<'_>,
) -> Result<Exit, Trouble> {
    let subject = subject(prefix, entity, &request.action)?;
    let message = Request::new()
        .payload(body(request)?)
        .headers(headers(request)?)
        .timeout(Some(request.timeout));
    let reply = client
        .send_request(subject.clone(), message)
        .await
        .map_err(|error| unanswered(&error, &subject, request))?;
    print(&reply.payload, request.json, output)
}

/// Whether there is such an action; nobody needs to be asked for that.
///
/// # Errors
/// [`Trouble`] that names the actions of the entity.
pub fn check_action(entity: &str, action: &str) -> Result<(), Trouble> {
    if CommandHandler::ACTIONS.contains(&(entity, action)) {
        return Ok(());
    }
    let known = CommandHandler::ACTIONS.iter();
    let known = known.filter(|(of, _)| *of == entity);
    let names: Vec<&str> = known.map(|(_, name)| *name).collect();
    Err(Trouble::usage(format!(
        "{action:?} is no action of {entity}; there are: {}",
        names.join(", ")
    )))
}

/// The subject of an action.
pub(super) fn subject(prefix: &str, entity: &str, action: &str) -> Result<String, Trouble> {
    check_action(entity, action)?;
    Ok(format!("{prefix}.api.{entity}.{action}"))
}

/// The body: what `--data` gives, with `--id` and the like in it. Numbers stay as they are written.
pub(super) fn body(request: &EntityRequest) -> Result<Bytes, Trouble> {
    let text = match request.data.as_deref() {
        None => "{}".to_owned(),
        Some("-") => read("standard input", io::stdin())?,
        Some(data) => match data.strip_prefix('@') {
            Some(path) => {
                let file = File::open(path)
                    .map_err(|error| Trouble::usage(format!("--data {data}: {error}")))?;
                read(path, file)?
            }
            None => data.to_owned(),
        },
    };
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text)
        .map_err(|error| Trouble::usage(format!("--data is no JSON object: {error}")))?;
    let id = request.id.iter().map(|id| ("--id", "id", id));
    let others = { request.fields.iter() }.map(|(option, field, value)| (*option, *field, value));
    let options: Vec<_> = id.chain(others).collect();
    if options.is_empty() {
        return Ok(text.into());
    }
    for (option, field, value) in options {
        let value = Value::String(value.clone()).to_string();
        let value =
            RawValue::from_string(value).map_err(|error| Trouble::usage(error.to_string()))?;
        let given = fields.get(field);
        if given.is_some_and(|given| given.get() != value.get()) {
            let differ = format!("{option} and the {field:?} of --data differ");
            return Err(Trouble::usage(differ));
        }
        fields.insert(field.to_owned(), value);
    }
    let body = serde_json::to_vec(&fields).map_err(|error| Trouble::usage(error.to_string()))?;
    Ok(body.into())
}

fn read(name: &str, from: impl Read) -> Result<String, Trouble> {
    let mut text = String::new();
    let read = from.take(MAX_BODY + 1).read_to_string(&mut text);
    match read {
        Err(error) => Err(Trouble::usage(format!("{name} cannot be read: {error}"))),
        Ok(_) if text.len() as u64 > MAX_BODY => Err(Trouble::usage(format!(
            "{name} is longer than {MAX_BODY} bytes"
        ))),
        Ok(_) => Ok(text),
    }
}

/// The headers of CONTRACT 2 that were given.
pub(super) fn headers(request: &EntityRequest) -> Result<HeaderMap, Trouble> {
    let mut headers = HeaderMap::new();
    for (name, option, value) in [
        ("X-Tenant-Id", "--tenant", &request.tenant),
        ("X-User-Id", "--user", &request.user),
        ("Idempotency-Key", "--key", &request.key),
    ] {
        let Some(value) = value else { continue };
        let value: HeaderValue = value
            .parse()
            .map_err(|_| Trouble::usage(format!("{option} holds a line break")))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn unanswered(error: &RequestError, subject: &str, request: &EntityRequest) -> Trouble {
    match error.kind() {
        RequestErrorKind::NoResponders => Trouble::unreachable(format!(
            "no worker answers on {subject}: does one run with this NATS_SUBJECT_PREFIX?"
        )),
        RequestErrorKind::TimedOut => Trouble::unreachable(format!(
            "no answer within {} s; the command may have been done: `--key` makes it safe to ask again",
            request.timeout.as_secs()
        )),
        RequestErrorKind::MaxPayloadExceeded => Trouble::failed(format!(
            "the body is longer than NATS takes: {}",
            Chain(error)
        )),
        RequestErrorKind::InvalidSubject => Trouble::usage(Chain(error).to_string()),
        RequestErrorKind::Other => Trouble::unreachable(Chain(error).to_string()),
    }
}

/// Prints a reply: to standard output what was asked for, to standard error why it was refused.
pub(super) fn print(reply: &[u8], json: bool, output: &mut Output<'_>) -> Result<Exit, Trouble> {
    let value: Value = serde_json::from_slice(reply)
        .map_err(|_| Trouble::failed("what answered is no worker: the reply is not JSON"))?;
    let success = value.get("success").and_then(Value::as_bool);
    let exit = match success {
        Some(true) => Exit::Done,
        Some(false) => Exit::Failed,
        None => {
            return Err(Trouble::failed(
                "what answered is no worker: no `success` in the reply",
            ));
        }
    };
    if json {
        output.bytes(reply);
        output.bytes(b"\n");
    } else if exit == Exit::Done {
        output.line(show::show(value.get("data").unwrap_or(&Value::Null)));
    } else {
        let error = value.get("error").and_then(Value::as_object);
        output.remark(error.map(show::refusal).unwrap_or_default());
    }
    Ok(exit)
}
