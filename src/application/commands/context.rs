//! Who asks, and how the command is known: its headers (CONTRACT 2).

use crate::domain::{
    events::Context,
    values::{CommandId, Faults, TenantId, TraceContext},
};

use super::Incoming;

/// Longest idempotency key, user and correlation id, in bytes.
const MAX_LEN: usize = 255;
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
    /// The trace that goes on; what is none is ignored, as the standard asks.
    pub(super) trace: Option<TraceContext>,
}

impl CommandContext {
    /// The context of the events that the command causes.
    pub(super) fn for_events(&self) -> Context {
        Context {
            tenant: self.tenant.clone(),
            actor: self.actor.clone(),
            correlation_id: self.correlation_id.clone(),
            causation_id: self.command_id.clone(),
            trace: self.trace.clone(),
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
    let trace = TraceContext::read(
        header(incoming, "traceparent"),
        header(incoming, "tracestate"),
    );
    let context = CommandContext {
        tenant,
        actor,
        command_id,
        correlation_id,
        key,
        trace,
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
        let trace = TraceContext::read(Some(TRACE), Some("a=b"));
        assert!(trace.is_some());
        assert_eq!(context.trace, trace);
        assert_eq!(context.for_events().trace, trace);
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
        for bad in ["", "00-x"] {
            let (context, faults) = with(false, &[("traceparent", bad), ("tracestate", "a=b")]);
            assert_eq!(context.trace, None, "{bad}");
            assert!(faults.is_empty());
        }
    }
}
