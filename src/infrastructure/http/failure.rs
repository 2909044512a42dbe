//! Why a request had no answer, in a few words that hold nothing secret.

use std::{error::Error, io};

use hyper_util::client::legacy as client;

use crate::{application::ports::SendError, domain::policies::RefusedAddress};

use super::resolver::LookupError;

/// Longest reason, in characters: a stranger's certificate may name a thousand hosts.
const MAX_REASON: usize = 200;

/// Reads the client's error by its types.
pub(super) fn send_error(error: &client::Error) -> SendError {
    let causes: Vec<&(dyn Error + 'static)> = causes(error);
    if let Some(refused) = find::<RefusedAddress>(&causes) {
        return SendError::Refused(refused.to_string());
    }
    let reason = reason(&causes);
    let reason = reason.chars().take(MAX_REASON).collect();
    if error.is_connect() {
        SendError::Connect(reason)
    } else {
        SendError::Broken(reason)
    }
}

fn reason(causes: &[&(dyn Error + 'static)]) -> String {
    if let Some(lookup) = find::<LookupError>(causes) {
        return lookup.to_string();
    }
    if let Some(tls) = find::<rustls::Error>(causes) {
        return format!("TLS: {tls}");
    }
    if let Some(io) = find::<io::Error>(causes) {
        return io_reason(io);
    }
    // The outermost is the client's own, which says little.
    match causes.last() {
        Some(cause) if causes.len() > 1 => cause.to_string(),
        _ => "the request could not be made".to_owned(),
    }
}

fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route".to_owned(),
        io::ErrorKind::TimedOut => "no connection in time".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        _ => error.to_string(),
    }
}

/// The error and all that lie under it. An I/O error does not answer the error that it wraps as its
/// source, but that one's source: so it is looked into.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = vec![error];
    let mut last = error;
    loop {
        let wrapped = last
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn Error + 'static));
        match wrapped.or_else(|| last.source()) {
            Some(next) => causes.push(next),
            None => return causes,
        }
        last = causes.last().copied().unwrap_or(error);
    }
}

fn find<'a, E: Error + 'static>(causes: &[&'a (dyn Error + 'static)]) -> Option<&'a E> {
    causes.iter().find_map(|cause| cause.downcast_ref::<E>())
}
