//! How NATS is reached, and what is used there.

use std::{path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::Url;

use super::{
    reader::{Reader, is_pem},
    subjects::{
        check_prefix, check_response_subject, check_source_subjects, check_stream, includes,
    },
};

/// How NATS is reached, and what is used there.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// The servers, `nats://host:port` or `tls://host:port`, without credentials; at least one.
    pub servers: Vec<String>,
    /// How the worker signs in.
    pub credentials: NatsCredentials,
    /// Certificates.
    pub tls: NatsTls,
    /// What all own subjects, streams, consumers and the service are named after.
    pub prefix: String,
    /// The stream that business events are read from.
    pub source_stream: String,
    /// The subjects that it captures; none overlaps another one or the worker's own.
    pub source_subjects: Vec<String>,
    /// What events that are made of answers are published on, with their type behind it; ends in a dot.
    pub response_subject: String,
    /// How long an event may go without a sign of life from its worker before another one gets it.
    pub source_ack_wait: Duration,
}

/// How the worker signs in to NATS.
#[derive(Debug, Clone)]
pub enum NatsCredentials {
    /// Not at all.
    None,
    /// A credentials file.
    CredsFile(PathBuf),
    /// A file with an nkey seed.
    NkeyFile(PathBuf),
    /// A user and a password.
    User {
        /// The user.
        name: String,
        /// The password.
        password: SecretString,
    },
    /// A token.
    Token(SecretString),
}

/// Certificates for NATS, besides the system's.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// What the servers are checked against.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl NatsConfig {
    /// The name of one of the worker's own streams: `INTEGRATION_COMMANDS` for `COMMANDS`.
    pub fn stream_name(&self, kind: &str) -> String {
        format!(
            "{}_{kind}",
            self.prefix.to_ascii_uppercase().replace('.', "_")
        )
    }

    /// Whether a stream of these subjects captures the events that are made of answers, whatever their
    /// type.
    pub fn captures_responses(&self, subjects: &[String]) -> bool {
        let all = format!("{}>", self.response_subject);
        subjects.iter().any(|subject| includes(subject, &all))
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let (servers, from_url) = reader.parse(
            "NATS_URL",
            (Vec::new(), NatsCredentials::None),
            parse_servers,
        );
        let credentials = credentials(reader, from_url);
        let tls = tls(reader);
        let prefix = reader.parse("NATS_SUBJECT_PREFIX", "integration".to_owned(), |text| {
            check_prefix(text).map(|()| text.to_owned())
        });
        let mut config = Self {
            servers,
            credentials,
            tls,
            prefix,
            source_stream: String::new(),
            source_subjects: Vec::new(),
            response_subject: String::new(),
            source_ack_wait: reader.duration("ERP_ACK_WAIT", "3s", "1h"),
        };
        let own = ["COMMANDS", "EVENTS", "DEAD_LETTERS"].map(|kind| config.stream_name(kind));
        config.source_stream = reader.parse("ERP_STREAM", String::new(), |text| {
            check_stream(text)?;
            if own.iter().any(|name| name == text) {
                return Err(format!("{text:?} is one of the worker's own streams"));
            }
            Ok(text.to_owned())
        });
        config.source_subjects = reader.parse("ERP_SUBJECTS", Vec::new(), |text| {
            let subjects: Vec<String> = list(text).map(str::to_owned).collect();
            check_source_subjects(&subjects, &config.prefix).map(|()| subjects)
        });
        config.response_subject = reader.parse("ERP_RESPONSE_SUBJECT", String::new(), |text| {
            check_response_subject(text, &config.prefix).map(|()| text.to_owned())
        });
        config
    }
}

/// The entries of a comma-separated list, without empty ones.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

/// The servers without credentials, and the credentials that their URLs held.
fn parse_servers(text: &str) -> Result<(Vec<String>, NatsCredentials), String> {
    let mut servers = Vec::new();
    let mut held: Option<(String, Option<String>)> = None;
    for (index, entry) in list(text).enumerate() {
        // An entry may hold a password, so a fault names its place alone.
        let (server, userinfo) =
            parse_server(entry).map_err(|problem| format!("server {}: {problem}", index + 1))?;
        if userinfo.is_some() && held.is_some() && userinfo != held {
            return Err("its servers hold different credentials".to_owned());
        }
        held = held.or(userinfo);
        servers.push(server);
    }
    if servers.is_empty() {
        return Err("names no server: nats://host:port, comma-separated".to_owned());
    }
    let credentials = match held {
        None => NatsCredentials::None,
        Some((name, Some(password))) => NatsCredentials::User {
            name,
            password: password.into(),
        },
        Some((token, None)) => NatsCredentials::Token(token.into()),
    };
    Ok((servers, credentials))
}

type Userinfo = (String, Option<String>);

fn parse_server(entry: &str) -> Result<(String, Option<Userinfo>), String> {
    let text = if entry.contains("://") {
        entry.to_owned()
    } else {
        format!("nats://{entry}")
    };
    let mut url = Url::parse(&text).map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err("begins neither with nats:// nor with tls://".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host: nats://host:port".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has more than nats://host:port".to_owned());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let userinfo = (!url.username().is_empty())
        .then(|| (decoded(url.username()), url.password().map(decoded)));
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    if cleared.is_err() {
        return Err("its credentials cannot be read".to_owned());
    }
    Ok((url.as_str().trim_end_matches('/').to_owned(), userinfo))
}

fn credentials(reader: &mut Reader<'_>, from_url: NatsCredentials) -> NatsCredentials {
    let creds_file = reader.file("NATS_CREDS_FILE", |text| {
        is_pem(text, "JWT").map_err(|_| "holds no JWT block: it is no credentials file".to_owned())
    });
    let nkey_file = reader.file("NATS_NKEY_FILE", |text| {
        let is_seed = text.lines().any(|line| line.trim_start().starts_with('S'));
        is_seed
            .then_some(())
            .ok_or_else(|| "holds no nkey seed (S…)".to_owned())
    });
    let user = user(reader);
    let token = reader.secret("NATS_TOKEN");
    let ways = [
        (
            "NATS_CREDS_FILE",
            creds_file.map(NatsCredentials::CredsFile),
        ),
        ("NATS_NKEY_FILE", nkey_file.map(NatsCredentials::NkeyFile)),
        ("NATS_USER", user),
        ("NATS_TOKEN", token.map(NatsCredentials::Token)),
        (
            "NATS_URL",
            (!matches!(from_url, NatsCredentials::None)).then_some(from_url),
        ),
    ];
    let mut given: Vec<_> = ways
        .into_iter()
        .filter_map(|(name, way)| Some((name, way?)))
        .collect();
    if let [(first, _), rest @ ..] = given.as_slice()
        && !rest.is_empty()
    {
        let others: Vec<&str> = rest.iter().map(|(name, _)| *name).collect();
        let problem = format!(
            "signs in another way than {}: give one of them",
            others.join(", ")
        );
        reader.faults.add(first, problem);
    }
    given.pop().map_or(NatsCredentials::None, |(_, way)| way)
}

fn user(reader: &mut Reader<'_>) -> Option<NatsCredentials> {
    match (reader.given("NATS_USER"), reader.secret("NATS_PASSWORD")) {
        (Some(name), Some(password)) => Some(NatsCredentials::User { name, password }),
        (Some(_), None) => {
            reader
                .faults
                .add("NATS_PASSWORD", "is missing, and NATS_USER is set");
            None
        }
        (None, Some(_)) => {
            reader
                .faults
                .add("NATS_USER", "is missing, and NATS_PASSWORD is set");
            None
        }
        (None, None) => None,
    }
}

fn tls(reader: &mut Reader<'_>) -> NatsTls {
    let ca = reader.file("NATS_TLS_CA", |text| is_pem(text, "CERTIFICATE"));
    let cert = reader.file("NATS_TLS_CERT", |text| is_pem(text, "CERTIFICATE"));
    let key = reader.file("NATS_TLS_KEY", |text| is_pem(text, "KEY"));
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) => {
            reader
                .faults
                .add("NATS_TLS_KEY", "is missing, and NATS_TLS_CERT is set");
            None
        }
        (None, Some(_)) => {
            reader
                .faults
                .add("NATS_TLS_CERT", "is missing, and NATS_TLS_KEY is set");
            None
        }
        (None, None) => None,
    };
    NatsTls { ca, client }
}
