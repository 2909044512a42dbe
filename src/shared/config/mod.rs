//! The configuration: read from the environment here alone, checked as a whole, and passed on as
//! values that cannot be wrong.

mod fault;
pub mod keys;
mod nats;
mod reader;
mod store;
mod subjects;
#[cfg(test)]
mod tests;
pub mod variables;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use crate::shared::naming::is_tenant_name;

pub use fault::{ConfigFault, ConfigFaults};
pub use nats::{NatsConfig, NatsCredentials, NatsTls};
pub use store::{DatabaseConfig, DatabaseLocation, KeySource};
pub use subjects::check_subject;

use nats::list;
use reader::{Reader, is_pem};

/// Everything that a worker is configured with.
#[derive(Debug, Clone)]
pub struct Config {
    /// How NATS is reached, and what is used there.
    pub nats: NatsConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// The encryption keys.
    pub keys: KeySource,
    /// Where the ops server listens.
    pub ops_addr: SocketAddr,
    /// The log.
    pub log: LogConfig,
    /// Which endpoints may be reached.
    pub egress: EgressConfig,
    /// The tenant of what names none; a valid tenant name.
    pub default_tenant: String,
    /// How much at once.
    pub limits: Limits,
    /// How long finished things are kept.
    pub retention: Retention,
    /// When an endpoint is left alone.
    pub breaker: BreakerConfig,
    /// How long work in hand may take after SIGTERM, at most 25 s.
    pub shutdown_timeout: Duration,
    /// Whether traces are to be exported, which this version cannot do.
    pub wants_tracing: bool,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Directives that `EnvFilter` understands.
    pub filter: String,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which endpoints may be reached.
#[derive(Debug, Clone, Default)]
pub struct EgressConfig {
    /// Non-public networks that are allowed.
    pub allowed: Vec<IpNet>,
    /// Certificates besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attempts under way in all.
    pub in_flight: usize,
    /// Attempts under way to one endpoint.
    pub in_flight_per_endpoint: usize,
    /// Events pulled and not settled.
    pub events_in_hand: usize,
    /// Longest event, in bytes.
    pub event_bytes: usize,
    /// Bytes of events in hand, at least `event_bytes`.
    pub bytes_in_hand: usize,
    /// Commands handled at once.
    pub commands: usize,
    /// Longest command, in bytes.
    pub command_bytes: usize,
}

/// How long finished things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Deliveries that are delivered, exhausted or cancelled.
    pub deliveries: Duration,
    /// Outbox rows that are published.
    pub outbox: Duration,
}

/// When an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// After how many failures in a row, at least 1.
    pub open_after: u32,
    /// For how long at first.
    pub wait: Duration,
    /// For how long at most, at least `wait`.
    pub max_wait: Duration,
    /// After how long of nothing but failures for good.
    pub disable_after: Duration,
}

/// What the commands need that speak to a worker over NATS.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How NATS is reached.
    pub nats: NatsConfig,
    /// The log.
    pub log: LogConfig,
}

/// What `migrate` needs.
#[derive(Debug, Clone)]
pub struct MigrateConfig {
    /// The database.
    pub database: DatabaseConfig,
    /// The log.
    pub log: LogConfig,
}

/// What `dev` and `demo` make for themselves, unless the environment gives it.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// For `NATS_URL`.
    pub nats_url: String,
    /// For `DATABASE_URL`.
    pub database_url: String,
    /// For `ENCRYPTION_KEYS_FILE`, where neither it nor `ENCRYPTION_KEYS` is given.
    pub keys_file: String,
    /// For `OPS_ADDR`.
    pub ops_addr: String,
}

/// Looks a variable of the process up; what is not UTF-8 in it is replaced.
#[expect(
    clippy::disallowed_methods,
    reason = "this is where the environment is read"
)]
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

impl Config {
    /// The configuration in the process's environment.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_env() -> Result<Self, ConfigFaults> {
        Self::from_lookup(&environment)
    }

    /// The configuration in the given variables. Reads the files that they name, to check them.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut reader = Reader::new(lookup);
        let nats = NatsConfig::read(&mut reader);
        let database = DatabaseConfig::read(&mut reader);
        let keys = KeySource::read(&mut reader);
        let ops_addr = reader.parse("OPS_ADDR", SocketAddr::from(([0, 0, 0, 0], 0)), |text| {
            let address = text.parse().ok();
            address.ok_or_else(|| format!("{text:?} is no address:port, such as 0.0.0.0:9464"))
        });
        let log = log(&mut reader);
        let shutdown_timeout = reader.duration("SHUTDOWN_TIMEOUT", "1s", "25s");
        auth(&mut reader);
        let default_tenant = reader.parse("DEFAULT_TENANT", String::new(), |text| {
            let is_name = is_tenant_name(text).then(|| text.to_owned());
            is_name
                .ok_or_else(|| format!("{text:?} is not 1 to 64 letters, digits, '_', '.' or '-'"))
        });
        let egress = egress(&mut reader);
        let limits = limits(&mut reader);
        let retention = Retention {
            deliveries: reader.duration("DELIVERY_RETENTION", "1s", "3650d"),
            outbox: reader.duration("OUTBOX_RETENTION", "1s", "365d"),
        };
        let breaker = breaker(&mut reader);
        let wants_tracing = reader.given("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
        let (Some(database), Some(keys), []) = (database, keys, reader.faults.0.as_slice()) else {
            return Err(reader.faults);
        };
        Ok(Self {
            nats,
            database,
            keys,
            ops_addr,
            log,
            egress,
            default_tenant,
            limits,
            retention,
            breaker,
            shutdown_timeout,
            wants_tracing,
        })
    }

    /// What was asked for and this version does not do; to be said once in the log.
    pub fn unsupported(&self) -> Option<&'static str> {
        self.wants_tracing
            .then_some("OTEL_EXPORTER_OTLP_ENDPOINT is not used: this version exports no traces")
    }

    /// The same for `dev` and `demo`: what they made stands in for what is required, and webhooks may
    /// reach this machine unless `EGRESS_ALLOW_CIDRS` says otherwise.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn embedded(
        lookup: &dyn Fn(&str) -> Option<String>,
        made: &Embedded,
    ) -> Result<Self, ConfigFaults> {
        let given = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let has_keys = given("ENCRYPTION_KEYS").is_some();
        Self::from_lookup(&|name| {
            given(name).or_else(|| match name {
                "NATS_URL" => Some(made.nats_url.clone()),
                "DATABASE_URL" => Some(made.database_url.clone()),
                "ENCRYPTION_KEYS_FILE" if !has_keys => Some(made.keys_file.clone()),
                "OPS_ADDR" => Some(made.ops_addr.clone()),
                "EGRESS_ALLOW_CIDRS" => Some("127.0.0.0/8,::1".to_owned()),
                _ => None,
            })
        })
    }
}

impl ClientConfig {
    /// Reads what concerns NATS alone.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut reader = Reader::new(lookup);
        let nats = NatsConfig::read(&mut reader);
        let log = log(&mut reader);
        if reader.faults.0.is_empty() {
            Ok(Self { nats, log })
        } else {
            Err(reader.faults)
        }
    }
}

impl MigrateConfig {
    /// Reads what concerns the database alone.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut reader = Reader::new(lookup);
        let database = DatabaseConfig::read(&mut reader);
        let log = log(&mut reader);
        let (Some(database), []) = (database, reader.faults.0.as_slice()) else {
            return Err(reader.faults);
        };
        Ok(Self { database, log })
    }
}

impl KeySource {
    /// Reads where the keys are, for the commands that work on them alone.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigFaults> {
        let mut reader = Reader::new(lookup);
        let keys = Self::read(&mut reader);
        let (Some(keys), []) = (keys, reader.faults.0.as_slice()) else {
            return Err(reader.faults);
        };
        Ok(keys)
    }
}

fn log(reader: &mut Reader<'_>) -> LogConfig {
    LogConfig {
        format: reader.parse("LOG_FORMAT", LogFormat::Text, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("{text:?} is neither text nor json")),
        }),
        filter: reader.parse("RUST_LOG", String::new(), |text| {
            let parsed = EnvFilter::try_new(text);
            parsed.map(|_| text.to_owned()).map_err(|error| {
                format!("{text:?} is no log filter such as info or info,integration_worker=debug ({error})")
            })
        }),
    }
}

fn auth(reader: &mut Reader<'_>) {
    reader.parse("AUTH_MODE", (), |text| match text {
        "none" => Ok(()),
        "jwt" => Err("jwt is not supported by this version: none".to_owned()),
        _ => Err(format!("{text:?} is not none")),
    });
}

fn egress(reader: &mut Reader<'_>) -> EgressConfig {
    EgressConfig {
        allowed: reader.parse("EGRESS_ALLOW_CIDRS", Vec::new(), |text| {
            list(text).map(network).collect()
        }),
        ca_file: reader.file("EGRESS_CA_FILE", |text| is_pem(text, "CERTIFICATE")),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().or_else(|_| address());
    network.map_err(|_| format!("{text:?} is no network such as 10.0.0.0/8, 192.0.2.7 or fd00::/8"))
}

fn limits(reader: &mut Reader<'_>) -> Limits {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let limits = Limits {
        in_flight: reader.number("MAX_IN_FLIGHT", 1..=10_000),
        in_flight_per_endpoint: reader.number("MAX_IN_FLIGHT_PER_ENDPOINT", 1..=10_000),
        events_in_hand: reader.number("MAX_EVENTS_IN_HAND", 1..=100_000),
        event_bytes: reader.bytes("MAX_EVENT_BYTES", KIB..=64 * MIB),
        bytes_in_hand: reader.bytes("MAX_BYTES_IN_HAND", KIB..=16 * KIB * MIB),
        commands: reader.number("COMMAND_CONCURRENCY", 1..=256),
        command_bytes: reader.bytes("MAX_COMMAND_BYTES", KIB..=64 * MIB),
    };
    let read = !reader.faults.concern("MAX_BYTES_IN_HAND");
    if read && limits.bytes_in_hand < limits.event_bytes {
        reader
            .faults
            .add("MAX_BYTES_IN_HAND", "is less than MAX_EVENT_BYTES");
    }
    limits
}

fn breaker(reader: &mut Reader<'_>) -> BreakerConfig {
    let open_after = reader.number("BREAKER_OPEN_AFTER", 1..=10_000);
    let breaker = BreakerConfig {
        open_after: u32::try_from(open_after).unwrap_or(u32::MAX),
        wait: reader.duration("BREAKER_WAIT", "100ms", "1h"),
        max_wait: reader.duration("BREAKER_MAX_WAIT", "100ms", "1d"),
        disable_after: reader.duration("DISABLE_AFTER", "1s", "365d"),
    };
    let read = !reader.faults.concern("BREAKER_MAX_WAIT") && !reader.faults.concern("BREAKER_WAIT");
    if read && breaker.max_wait < breaker.wait {
        let fault = "is less than BREAKER_WAIT";
        reader.faults.add("BREAKER_MAX_WAIT", fault);
    }
    breaker
}
