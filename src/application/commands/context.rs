//! Who asks, and how the command is known: its headers (CONTRACT 2).

use crate::domain::{
    events::Context,
    values::{CommandId, Faults, TenantId},
};

use super::Incoming;

/// Longest idempotency key, user and correlation id, in bytes.
const MAX_LEN: usize = 255;
/// Longest `tracestate`, in bytes (W3C: at least 512 are carried).
const MAX_TRACESTATE: usize = 512;
/// The actor of a command that names none.
const SYSTEM: &str = "system";

/// What the headers of a command say.
#[derive(Debug, Clone)]
pub(super) struct CommandContext {
    /// Whose it is.
    pub(super) tenant: TenantId,
    /// Who asks.
    pub(super) actor: String,
    /// The idempotency key, else the fallback.
    pub(super) command_id: CommandId,
    /// Carried into everything that follows.
    pub(super) correlation_id: String,
    /// Under which the reply is kept. A durable command without one has its message's id.
    pub(super) key: Option<String>,
    /// W3C trace context.
    pub(super) traceparent: Option<String>,
    /// W3C trace state.
    pub(super) tracestate: Option<String>,
}

impl CommandContext {
    /// The context of the events that the command causes.
    pub(super) fn for_events(&self) -> Context {
        Context {
            tenant: self.tenant.clone(),
            actor: self.actor.clone(),
            correlation_id: self.correlation_id.clone(),
            causation_id: self.command_id.clone(),
            traceparent: self.traceparent.clone(),
        }
    }
}

/// Reads the headers. There is always a context, with defaults in the place of what is faulty.
pub(super) fn read(incoming: &Incoming, default_tenant: &TenantId) -> (CommandContext, Faults) {
    let mut faults = Faults::default();
    let tenant = header(incoming, "X-Tenant-Id").map(|text| {
        TenantId::try_new(text)
            .map_err(|error| faults.add("X-Tenant-Id", error.to_string()))
            .ok()
    });
    let tenant = tenant.flatten().unwrap_or_else(|| default_tenant.clone());
    let key = bounded(incoming, "Idempotency-Key", &mut faults);
    let key = match key {
        Given::Absent => bounded(incoming, "Nats-Msg-Id", &mut faults),
        given => given,
    };
    let fallback = incoming.fallback_id.to_string();
    let key = match key {
        Given::Good(key) => Some(key),
        Given::Absent if incoming.durable => Some(fallback.clone()),
        Given::Absent | Given::Faulty => None,
    };
    let command_id = key.clone().unwrap_or(fallback);
    let actor = bounded(incoming, "X-User-Id", &mut faults).or(SYSTEM);
    let correlation_id = bounded(incoming, "X-Correlation-Id", &mut faults).or(&command_id);
    let traceparent = header(incoming, "traceparent").filter(|text| is_traceparent(text));
    let tracestate = header(incoming, "tracestate")
        .filter(|text| traceparent.is_some() && text.len() <= MAX_TRACESTATE && printable(text));
    let context = CommandContext {
        tenant,
        actor,
        command_id,
        correlation_id,
        key,
        traceparent: traceparent.map(str::to_owned),
        tracestate: tracestate.map(str::to_owned),
    };
    (context, faults)
}

/// A header with a limit.
enum Given {
    Absent,
    Faulty,
    Good(String),
}

impl Given {
    fn or(self, default: &str) -> String {
        match self {
            Self::Good(text) => text,
            Self::Absent | Self::Faulty => default.to_owned(),
        }
    }
}

fn bounded(incoming: &Incoming, name: &str, faults: &mut Faults) -> Given {
    match header(incoming, name) {
        None => Given::Absent,
        Some(text) if !text.is_empty() && text.len() <= MAX_LEN && printable(text) => {
            Given::Good(text.to_owned())
        }
        Some(_) => {
            faults.add(
                name,
                format!("must have 1 to {MAX_LEN} bytes and no control characters"),
            );
            Given::Faulty
        }
    }
}

fn header<'a>(incoming: &'a Incoming, name: &str) -> Option<&'a str> {
    let mut headers = incoming.headers.iter();
    headers
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; what is none is ignored, as W3C asks.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    };
    let parts: Vec<&str> = text.split('-').take(5).collect();
    match parts[..] {
        ["00", trace, span, flags] => {
            let zero = |part: &str| part.bytes().all(|b| b == b'0');
            hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn with(durable: bool, headers: &[(&str, &str)]) -> (CommandContext, Vec<String>) {
        let headers = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let incoming = Incoming {
            entity: "webhook".to_owned(),
            action: "get".to_owned(),
            headers: headers.collect(),
            body: Bytes::new(),
            fallback_id: Uuid::nil(),
            durable,
        };
        let (context, faults) = read(&incoming, &TenantId::try_new("default").unwrap());
        (
            context,
            faults.into_vec().into_iter().map(|f| f.path).collect(),
        )
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let (context, faults) = with(false, &[]);
        assert!(faults.is_empty());
        assert_eq!(context.tenant.as_str(), "default");
        assert_eq!(context.actor, "system");
        assert_eq!(context.key, None);
        assert_eq!(context.command_id, Uuid::nil().to_string());
        assert_eq!(context.correlation_id, context.command_id);
        assert_eq!(with(true, &[]).0.key, Some(Uuid::nil().to_string()));
    }

    #[test]
    fn headers_are_read_without_regard_to_case() {
        let (context, faults) = with(
            true,
            &[
                ("x-tenant-id", "acme"),
                ("X-USER-ID", "älice"),
                ("x-correlation-id", "c-1"),
                ("nats-msg-id", "m-1"),
                ("idempotency-key", "k-1"),
                ("Traceparent", TRACE),
                ("TraceState", "a=b"),
            ],
        );
        assert!(faults.is_empty());
        assert_eq!(context.tenant.as_str(), "acme");
        assert_eq!(context.actor, "älice");
        assert_eq!(context.correlation_id, "c-1");
        assert_eq!(context.command_id, "k-1");
        assert_eq!(context.key.as_deref(), Some("k-1"));
        assert_eq!(context.traceparent.as_deref(), Some(TRACE));
        assert_eq!(context.tracestate.as_deref(), Some("a=b"));
        assert_eq!(with(true, &[("Nats-Msg-Id", "m")]).0.command_id, "m");
    }

    #[test]
    fn what_is_too_long_or_not_printable_is_a_fault() {
        let long = "x".repeat(256);
        for name in [
            "Idempotency-Key",
            "Nats-Msg-Id",
            "X-User-Id",
            "X-Correlation-Id",
        ] {
            for value in ["", "a\nb", "a\0", &long] {
                assert_eq!(with(false, &[(name, value)]).1, [name], "{value:?}");
            }
        }
        for value in ["", "a b", "a/b", &long] {
            assert_eq!(with(false, &[("X-Tenant-Id", value)]).1, ["X-Tenant-Id"]);
        }
    }

    #[test]
    fn a_trace_that_is_none_is_ignored() {
        let zero = TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        for bad in [
            "",
            "00-x",
            &TRACE.to_uppercase(),
            &format!("{TRACE}-x"),
            &zero,
        ] {
            let (context, faults) = with(false, &[("traceparent", bad), ("tracestate", "a=b")]);
            assert_eq!(
                (context.traceparent, context.tracestate),
                (None, None),
                "{bad}"
            );
            assert!(faults.is_empty());
        }
    }
}
