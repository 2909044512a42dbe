//! Every variable that is read, as data: the source of `--help`, `.env.example` and
//! `docs/configuration.md`.

/// What happens when a variable is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// This value is taken.
    Default(&'static str),
    /// Nothing is taken, and nothing is missing.
    Optional,
    /// A fault, except for `dev` and `demo`, which make their own.
    Required,
}

/// One variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What happens without it.
    pub unset: Unset,
    /// An example, for one without a default.
    pub example: &'static str,
    /// What it does and what is allowed, in one line.
    pub help: &'static str,
}

/// Variables that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// The variables.
    pub variables: &'static [Variable],
}

const fn default(name: &'static str, value: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        unset: Unset::Default(value),
        example: value,
        help,
    }
}

const fn optional(name: &'static str, example: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        unset: Unset::Optional,
        example,
        help,
    }
}

const fn required(name: &'static str, example: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        unset: Unset::Required,
        example,
        help,
    }
}

const NATS: &[Variable] = &[
    default(
        "NATS_URL",
        "nats://127.0.0.1:4222",
        "The servers, comma-separated: nats://host:port or tls://host:port.",
    ),
    optional(
        "NATS_CREDS_FILE",
        "/etc/integration-worker/nats.creds",
        "A credentials file (JWT and seed). At most one way to sign in is given.",
    ),
    optional(
        "NATS_NKEY_FILE",
        "/etc/integration-worker/nats.nk",
        "A file that holds an nkey seed.",
    ),
    optional("NATS_USER", "integration", "A user, with NATS_PASSWORD."),
    optional("NATS_PASSWORD", "change-me", "The user's password."),
    optional("NATS_TOKEN", "change-me", "A token."),
    optional(
        "NATS_TLS_CA",
        "/etc/integration-worker/nats-ca.pem",
        "Certificates (PEM) that the servers' certificates are checked against, besides the system's.",
    ),
    optional(
        "NATS_TLS_CERT",
        "/etc/integration-worker/nats-client.pem",
        "The client's certificate (PEM), with NATS_TLS_KEY.",
    ),
    optional(
        "NATS_TLS_KEY",
        "/etc/integration-worker/nats-client.key",
        "The client certificate's private key (PEM).",
    ),
    default(
        "NATS_SUBJECT_PREFIX",
        "integration",
        "What all own subjects, streams, consumers and the service are named after: dot-separated tokens of [A-Za-z0-9_-].",
    ),
    default(
        "ERP_STREAM",
        "ERP_EVENTS",
        "The stream that the business events are read from; made if it is missing.",
    ),
    default(
        "ERP_SUBJECTS",
        "erp.>,sales.>,crm.>,purchase.>,contract.>,document.>,inventory.>,compliance.>,workflow.>,fibu.>,finance.>,logistics.>,quality.>,production.>,regulatory.>,hr.>,order.>,customer.>",
        "The subjects that this stream captures, comma-separated.",
    ),
    default(
        "ERP_RESPONSE_SUBJECT",
        "erp.",
        "What an event made of an endpoint's answer (response of a webhook) is published on, with its type behind it: dot-separated tokens of [A-Za-z0-9_-] with a dot at the end, outside of NATS_SUBJECT_PREFIX. ERP_SUBJECTS should capture it.",
    ),
    default(
        "ERP_ACK_WAIT",
        "30s",
        "How long an event of a worker that died waits before another worker gets it, 3s to 1h.",
    ),
];

const STORE: &[Variable] = &[
    required(
        "DATABASE_URL",
        "postgresql://integration:change-me@127.0.0.1:5432/integration",
        "postgresql://user:password@host:port/database for any number of workers, or sqlite://path for one.",
    ),
    default(
        "DATABASE_MAX_CONNECTIONS",
        "16",
        "Connections to PostgreSQL that a worker opens at most: 2 to 1000.",
    ),
    required(
        "ENCRYPTION_KEYS_FILE",
        "/etc/integration-worker/encryption_keys",
        "A file with the keys that seal stored secrets, one a line: <id>:<base64 of 32 bytes>. The first encrypts, all decrypt.",
    ),
    optional(
        "ENCRYPTION_KEYS",
        "k1:<base64 of 32 bytes>",
        "The keys themselves, comma-separated, instead of the file.",
    ),
];

const OPERATION: &[Variable] = &[
    default(
        "OPS_ADDR",
        "0.0.0.0:9464",
        "Where /live, /ready, /health and /metrics are served; port 0 picks one and logs it.",
    ),
    default("LOG_FORMAT", "text", "text or json (one object a line)."),
    default(
        "RUST_LOG",
        "info",
        "What is logged: a level, or levels by module as in info,integration_worker=debug.",
    ),
    default(
        "SHUTDOWN_TIMEOUT",
        "20s",
        "How long work in hand may take after SIGTERM: 1s to 25s.",
    ),
];

const ACCESS: &[Variable] = &[
    default(
        "AUTH_MODE",
        "none",
        "Who may send commands. none: whoever reaches NATS; jwt is not supported by this version.",
    ),
    default(
        "DEFAULT_TENANT",
        "default",
        "The tenant of commands and events that name none: [A-Za-z0-9_.-]{1,64}.",
    ),
    optional(
        "EGRESS_ALLOW_CIDRS",
        "10.20.0.0/16,192.0.2.7",
        "Non-public networks that webhooks may reach, comma-separated; all others are refused.",
    ),
    optional(
        "EGRESS_CA_FILE",
        "/etc/integration-worker/egress-ca.pem",
        "Certificates (PEM) that endpoints are checked against, besides the system's.",
    ),
];

const LIMITS: &[Variable] = &[
    default(
        "MAX_IN_FLIGHT",
        "256",
        "Requests to endpoints under way at once: 1 to 10000.",
    ),
    default(
        "MAX_IN_FLIGHT_PER_ENDPOINT",
        "64",
        "The same to one endpoint: 1 to 10000.",
    ),
    default(
        "MAX_EVENTS_IN_HAND",
        "2000",
        "Events that are pulled and not settled yet: 1 to 100000.",
    ),
    default(
        "MAX_EVENT_BYTES",
        "1MiB",
        "The longest event; a longer one is a dead letter: 1KiB to 64MiB.",
    ),
    default(
        "MAX_BYTES_IN_HAND",
        "64MiB",
        "Bytes of events in hand, at least MAX_EVENT_BYTES: up to 16GiB.",
    ),
    default(
        "COMMAND_CONCURRENCY",
        "16",
        "Commands that are handled at once: 1 to 256.",
    ),
    default(
        "MAX_COMMAND_BYTES",
        "1MiB",
        "The longest command: 1KiB to 64MiB.",
    ),
    default(
        "BREAKER_OPEN_AFTER",
        "10",
        "After how many failures in a row, over all workers, nothing is sent to an endpoint for a while: 1 to 10000.",
    ),
    default(
        "BREAKER_WAIT",
        "30s",
        "How long that is at first; it doubles with every request that fails when it is over: 100ms to 1h.",
    ),
    default(
        "BREAKER_MAX_WAIT",
        "10m",
        "How long it is at most, at least BREAKER_WAIT: up to 1d.",
    ),
    default(
        "DISABLE_AFTER",
        "5d",
        "After how long of nothing but failures a webhook is disabled: 1s to 365d.",
    ),
    default(
        "DELIVERY_RETENTION",
        "30d",
        "How long finished deliveries are kept: 1s to 3650d.",
    ),
    default(
        "OUTBOX_RETENTION",
        "1d",
        "How long published events stay in the outbox: 1s to 365d.",
    ),
];

const OTHER: &[Variable] = &[
    optional(
        "REDIS_URL",
        "redis://127.0.0.1:6379",
        "Accepted and unused: the registry is kept in the process and checked against the database.",
    ),
    optional(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://127.0.0.1:4318",
        "Accepted and unused, with a warning in the log: this version exports no traces.",
    ),
];

/// All variables.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "NATS",
        variables: NATS,
    },
    Section {
        title: "Database and secrets",
        variables: STORE,
    },
    Section {
        title: "Operation",
        variables: OPERATION,
    },
    Section {
        title: "Access",
        variables: ACCESS,
    },
    Section {
        title: "Limits",
        variables: LIMITS,
    },
    Section {
        title: "Other",
        variables: OTHER,
    },
];

/// All variables, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Variable> {
    SECTIONS.iter().flat_map(|section| section.variables)
}

/// What a variable is when it is not set; `None` also for a name that is not in the table.
pub(super) fn default_of(name: &str) -> Option<&'static str> {
    let variable = all().find(|variable| variable.name == name)?;
    match variable.unset {
        Unset::Default(value) => Some(value),
        Unset::Optional | Unset::Required => None,
    }
}

/// The end of `--help`.
pub fn help_text() -> String {
    let variables = all().map(|variable| {
        let unset = match variable.unset {
            Unset::Default(value) => format!(" [default: {value}]"),
            Unset::Optional => String::new(),
            Unset::Required => " [required]".to_owned(),
        };
        format!("  {}\n          {}{unset}\n", variable.name, variable.help)
    });
    format!(
        "Environment:\n{}\nExit codes: 0 done, 1 refused or failed, 2 usage, 69 not reachable, 78 configuration.",
        variables.collect::<String>()
    )
}

/// The text of `.env.example`.
pub fn env_example() -> String {
    let line = |variable: &Variable| {
        let mark = match variable.unset {
            Unset::Required => "",
            Unset::Default(_) | Unset::Optional => "# ",
        };
        let Variable {
            name,
            example,
            help,
            ..
        } = variable;
        format!("\n# {help}\n{mark}{name}={example}\n")
    };
    let section = |section: &Section| {
        let lines: String = section.variables.iter().map(line).collect();
        format!("\n# ---- {} ----\n{lines}", section.title)
    };
    format!(
        "# Every variable of the integration worker. Commented ones show their default or an example.\n\
         # An empty value is the same as none. All faults are reported at once, with exit code 78.\n{}",
        SECTIONS.iter().map(section).collect::<String>()
    )
}

/// The tables of `docs/configuration.md`.
pub fn markdown() -> String {
    let row = |variable: &Variable| {
        let unset = match variable.unset {
            Unset::Default(value) => format!("`{}`", value.replace(',', ", ")),
            Unset::Optional => "none".to_owned(),
            Unset::Required => "required".to_owned(),
        };
        let help = variable.help.replace('<', "&lt;").replace('[', "\\[");
        format!("| `{}` | {unset} | {help} |\n", variable.name)
    };
    let section = |section: &Section| {
        let rows: String = section.variables.iter().map(row).collect();
        format!(
            "## {}\n\n| variable | default | meaning |\n|---|---|---|\n{rows}",
            section.title
        )
    };
    SECTIONS.iter().map(section).collect::<Vec<_>>().join("\n")
}
