use std::{collections::BTreeMap, fs, path::Path};

use secrecy::ExposeSecret as _;

use super::*;

const KEYS: &str = "k1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

type Variables = BTreeMap<String, String>;

/// The required variables, and these.
fn with(given: &[(&str, &str)]) -> Variables {
    let required = [
        ("DATABASE_URL", "sqlite://worker.db"),
        ("ENCRYPTION_KEYS", KEYS),
    ];
    required
        .iter()
        .chain(given)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn read(variables: &Variables) -> Result<Config, ConfigFaults> {
    Config::from_lookup(&|name| variables.get(name).cloned())
}

/// The variables that have faults.
fn faulty(given: &[(&str, &str)]) -> Vec<&'static str> {
    let faults = read(&with(given)).err().unwrap_or_default();
    faults.0.iter().map(|fault| fault.variable).collect()
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_required_variables_are_enough_and_an_empty_one_is_none() {
    let empty: Vec<(&str, &str)> = variables::all()
        .filter(|variable| variable.unset != variables::Unset::Required)
        .filter(|variable| variable.name != "ENCRYPTION_KEYS")
        .map(|variable| (variable.name, "  "))
        .collect();
    for given in [&[][..], &empty] {
        let config = read(&with(given)).unwrap();
        assert_eq!(config.nats.servers, ["nats://127.0.0.1:4222"]);
        assert_eq!(config.nats.stream_name("EVENTS"), "INTEGRATION_EVENTS");
        assert_eq!(config.nats.source_subjects.len(), 18);
        assert_eq!(config.ops_addr.port(), 9464);
        assert_eq!(config.log.filter, "info");
        assert_eq!(config.limits.event_bytes, 1_048_576);
        assert_eq!(config.limits.bytes_in_hand, 64 * 1_048_576);
        assert_eq!(config.limits.events_in_hand, 2_000);
        assert_eq!(config.retention.deliveries.as_secs(), 30 * 86_400);
        assert_eq!(config.shutdown_timeout.as_secs(), 20);
        assert_eq!(config.default_tenant, "default");
    }
}

/// Values that are refused.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "NATS_URL",
        &[
            "http://a",
            "nats://",
            "nats://a:b:c",
            "nats://a/b",
            ",",
            "nats://a:99999",
        ],
    ),
    ("NATS_CREDS_FILE", &["/nowhere/creds", "/"]),
    ("NATS_NKEY_FILE", &["/nowhere/nkey"]),
    (
        "NATS_SUBJECT_PREFIX",
        &["a.", "a b", "a.*", "größe", "a..b"],
    ),
    ("ERP_STREAM", &["a.b", "a b", "INTEGRATION_EVENTS"]),
    (
        "ERP_RESPONSE_SUBJECT",
        &[
            "erp",
            ".",
            "a..",
            "*.",
            "a.>.",
            "a b.",
            "größe.",
            "$JS.",
            "integration.",
            "integration.commands.",
        ],
    ),
    (
        "ERP_SUBJECTS",
        &[
            "a..b",
            "a.>.b",
            "a.b*",
            ">",
            "integration.>",
            "*.events.>",
            "a.>,a.b",
            "a.*,a.b",
            "a,a",
            "$JS.API.>",
            "_INBOX.>",
            "a b",
        ],
    ),
    (
        "DATABASE_URL",
        &[
            "mysql://a/b",
            "worker.db",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://a?mode=ro",
            "postgresql:///b",
            "postgresql://a",
            "postgres://a/b?sslmode=on",
        ],
    ),
    ("DATABASE_MAX_CONNECTIONS", &["1", "x", "-3"]),
    (
        "ENCRYPTION_KEYS",
        &[
            "k1",
            "k1:AAAA",
            "k1:!",
            ":BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        ],
    ),
    ("OPS_ADDR", &["9464", "localhost:9464", "0.0.0.0:70000"]),
    ("LOG_FORMAT", &["JSON", "xml"]),
    ("RUST_LOG", &["info,=", "a=b=c", "integration_worker=loud"]),
    ("SHUTDOWN_TIMEOUT", &["26s", "0s", "20", "soon"]),
    ("AUTH_MODE", &["jwt", "basic"]),
    ("DEFAULT_TENANT", &["a b", "größe"]),
    (
        "EGRESS_ALLOW_CIDRS",
        &["10.0.0.0/33", "localhost", "10.0.0.0/8;::1"],
    ),
    ("EGRESS_CA_FILE", &["/nowhere/ca.pem"]),
    ("MAX_IN_FLIGHT", &["0", "10001", "1.5"]),
    ("MAX_IN_FLIGHT_PER_ENDPOINT", &["0"]),
    ("MAX_EVENTS_IN_HAND", &["0", "many"]),
    (
        "MAX_EVENT_BYTES",
        &["65MiB", "1", "1MB", "99999999999999999999GiB"],
    ),
    ("MAX_BYTES_IN_HAND", &["512KiB", "17GiB", "-"]),
    ("COMMAND_CONCURRENCY", &["0", "257"]),
    ("MAX_COMMAND_BYTES", &["0", "1TiB"]),
    ("DELIVERY_RETENTION", &["30", "0s", "forever"]),
    ("OUTBOX_RETENTION", &["366d"]),
];

#[test]
fn each_fault_names_its_variable() {
    for (name, values) in REFUSED {
        for value in *values {
            assert_eq!(faulty(&[(name, value)]), [*name], "{name}={value}");
        }
    }
}

#[test]
fn what_is_made_of_answers_goes_beside_the_workers_own_subjects() {
    let given = [
        ("NATS_SUBJECT_PREFIX", "erp.integration"),
        ("ERP_SUBJECTS", "sales.>"),
    ];
    assert_eq!(faulty(&given), ["ERP_RESPONSE_SUBJECT"]);
    let apart = [given[0], given[1], ("ERP_RESPONSE_SUBJECT", "erp.partner.")];
    assert_eq!(faulty(&apart), [""; 0]);
}

#[test]
fn it_is_known_whether_the_source_stream_captures_what_is_made_of_answers() {
    for (subjects, response, expected) in [
        ("erp.>", "erp.", true),
        ("a.>,erp.>", "erp.", true),
        ("erp.>", "erp.partner.", true),
        ("erp.*.>", "erp.partner.", true),
        ("*.partner.>", "erp.partner.", true),
        ("erp.*.>", "erp.", false),
        ("erp.*", "erp.", false),
        ("sales.>", "erp.", false),
        ("erp", "erp.", false),
    ] {
        let given = [
            ("ERP_SUBJECTS", subjects),
            ("ERP_RESPONSE_SUBJECT", response),
        ];
        let config = read(&with(&given)).unwrap();
        let captures = config.nats.captures_responses(&config.nats.source_subjects);
        assert_eq!(captures, expected, "{subjects} {response}");
    }
}

#[test]
fn what_is_allowed_is_read() {
    let config = read(&with(&[
        ("NATS_URL", "nats://a, tls://b:4333,c"),
        ("NATS_SUBJECT_PREFIX", "erp-2.site_1"),
        ("ERP_SUBJECTS", "erp.> ,order.*.created,order.paid"),
        ("DATABASE_URL", "postgres://u:p@db/erp?sslmode=verify-full"),
        ("OPS_ADDR", "[::1]:0"),
        ("RUST_LOG", "info,integration_worker=debug"),
        ("EGRESS_ALLOW_CIDRS", "127.0.0.0/8,::1"),
        ("MAX_EVENT_BYTES", "65536"),
        ("SHUTDOWN_TIMEOUT", "25s"),
        ("REDIS_URL", "anything"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
    ]))
    .unwrap();
    let warning = config.unsupported().unwrap();
    assert!(warning.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{warning}");
    assert_eq!(
        config.nats.servers,
        ["nats://a", "tls://b:4333", "nats://c"]
    );
    assert_eq!(config.nats.stream_name("COMMANDS"), "ERP-2_SITE_1_COMMANDS");
    assert_eq!(
        config.nats.source_subjects,
        ["erp.>", "order.*.created", "order.paid"]
    );
    assert_eq!(
        config.database.location.to_string(),
        "postgresql://db:5432/erp"
    );
    assert_eq!(config.database.location.kind(), "postgresql");
    assert_eq!(config.egress.allowed.len(), 2);
    assert_eq!(config.limits.event_bytes, 65_536);
    let sqlite = read(&with(&[
        ("DATABASE_URL", "sqlite:///var/lib/worker.db"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
    ]))
    .unwrap();
    assert_eq!(sqlite.unsupported(), None);
    assert_eq!(
        sqlite.database.location.to_string(),
        "sqlite:///var/lib/worker.db"
    );
}

#[test]
fn all_faults_are_reported_at_once() {
    let faults = Config::from_lookup(&|name| {
        let value = match name {
            "NATS_USER" => "someone",
            "NATS_TLS_CERT" => "/nowhere/cert.pem",
            "OPS_ADDR" | "LOG_FORMAT" | "MAX_IN_FLIGHT" | "AUTH_MODE" => "?",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .unwrap_err();
    let names: Vec<_> = faults.0.iter().map(|fault| fault.variable).collect();
    assert_eq!(
        names,
        [
            "NATS_PASSWORD",
            "NATS_TLS_CERT",
            "NATS_TLS_KEY",
            "DATABASE_URL",
            "ENCRYPTION_KEYS_FILE",
            "OPS_ADDR",
            "LOG_FORMAT",
            "AUTH_MODE",
            "MAX_IN_FLIGHT",
        ]
    );
    let text = faults.to_string();
    assert!(
        text.starts_with("the configuration has 9 faults:\n  NATS_PASSWORD: is missing"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 10);
}

#[test]
fn nats_is_signed_in_to_in_one_way_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let creds = file(folder.path(), "creds", "-----BEGIN NATS USER JWT-----\nx\n");
    let nkey = file(folder.path(), "nkey", "SUAXYZ\n");
    let user = &[("NATS_USER", "u"), ("NATS_PASSWORD", "p")][..];
    let ways = [
        (
            &[("NATS_CREDS_FILE", creds.as_str())][..],
            "NATS_CREDS_FILE",
        ),
        (&[("NATS_NKEY_FILE", nkey.as_str())], "NATS_NKEY_FILE"),
        (user, "NATS_USER"),
        (&[("NATS_TOKEN", "t")], "NATS_TOKEN"),
        (&[("NATS_URL", "nats://u:p@a,nats://u:p@b")], "NATS_URL"),
    ];
    for (index, (one, name)) in ways.iter().enumerate() {
        let config = read(&with(one)).unwrap();
        assert!(
            !matches!(config.nats.credentials, NatsCredentials::None),
            "{name}"
        );
        for (other, _) in ways.iter().skip(index + 1) {
            assert_eq!(faulty(&[*one, *other].concat()), [*name]);
        }
    }
    assert_eq!(faulty(&[("NATS_PASSWORD", "p")]), ["NATS_USER"]);
    assert_eq!(
        faulty(&[("NATS_URL", "nats://u:p@a,nats://v:p@b")]),
        ["NATS_URL"]
    );
    assert_eq!(faulty(&[("NATS_CREDS_FILE", &nkey)]), ["NATS_CREDS_FILE"]);
}

#[test]
fn credentials_in_the_url_are_taken_out_of_it() {
    let config = read(&with(&[("NATS_URL", "nats://u:p%40ss@a:4222,nats://b")])).unwrap();
    assert_eq!(config.nats.servers, ["nats://a:4222", "nats://b"]);
    let NatsCredentials::User { name, password } = config.nats.credentials else {
        panic!("a user");
    };
    assert_eq!((name.as_str(), password.expose_secret()), ("u", "p@ss"));
    let config = read(&with(&[("NATS_URL", "nats://tok@a")])).unwrap();
    assert!(
        matches!(config.nats.credentials, NatsCredentials::Token(token) if token.expose_secret() == "tok")
    );
}

#[test]
fn certificate_and_key_are_given_together_and_keys_in_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let cert = file(folder.path(), "cert", "-----BEGIN CERTIFICATE-----\n");
    let key = file(folder.path(), "key", "-----BEGIN PRIVATE KEY-----\n");
    let keys = file(folder.path(), "keys", &format!("# ours\n{KEYS}\n"));
    assert_eq!(faulty(&[("NATS_TLS_CERT", &cert)]), ["NATS_TLS_KEY"]);
    assert_eq!(faulty(&[("NATS_TLS_KEY", &key)]), ["NATS_TLS_CERT"]);
    assert_eq!(
        faulty(&[("NATS_TLS_CERT", &key), ("NATS_TLS_KEY", &key)]),
        ["NATS_TLS_CERT"]
    );
    assert_eq!(
        faulty(&[("NATS_TLS_CERT", &cert), ("NATS_TLS_KEY", &key)]),
        [""; 0]
    );
    assert_eq!(
        faulty(&[("ENCRYPTION_KEYS_FILE", &keys)]),
        ["ENCRYPTION_KEYS"]
    );
    let broken = file(folder.path(), "broken", "k1:AAAA\nk2 BBBB\n");
    for broken in [broken.as_str(), "/nowhere/keys"] {
        let given = [("ENCRYPTION_KEYS", ""), ("ENCRYPTION_KEYS_FILE", broken)];
        assert_eq!(faulty(&given), ["ENCRYPTION_KEYS_FILE"]);
    }
    let given = [
        ("ENCRYPTION_KEYS", ""),
        ("ENCRYPTION_KEYS_FILE", keys.as_str()),
    ];
    assert!(matches!(
        read(&with(&given)).unwrap().keys,
        KeySource::File(_)
    ));
}

#[test]
fn a_secret_is_never_shown() {
    let canary = "c4n4ry";
    let given = [
        ("NATS_URL", format!("nats://u:{canary}@a")),
        (
            "DATABASE_URL",
            format!("postgresql://u:{canary}@db/erp?password={canary}"),
        ),
    ];
    let mut variables = with(&[]);
    variables.extend(given.map(|(name, value)| (name.to_owned(), value)));
    let config = read(&variables).unwrap();
    let shown = format!("{config:?} {}", config.database.location);
    assert!(
        !shown.contains(canary) && !shown.contains("BwcH"),
        "{shown}"
    );

    for (name, value) in [
        ("NATS_URL", format!("http://u:{canary}@a")),
        ("NATS_URL", format!("nats://u:{canary}@a:b")),
        (
            "NATS_URL",
            format!("nats://u:{canary}@a,nats://v:{canary}@a"),
        ),
        ("DATABASE_URL", format!("mysql://u:{canary}@a/b")),
        ("DATABASE_URL", format!("postgresql://u:{canary}@a:b/c")),
        ("DATABASE_URL", format!("postgresql://u:{canary}@a")),
        ("ENCRYPTION_KEYS", canary.to_owned()),
        ("ENCRYPTION_KEYS", format!("k1:{canary}")),
        ("ENCRYPTION_KEYS", format!("k 1:{canary}")),
        ("NATS_PASSWORD", canary.to_owned()),
    ] {
        let mut variables = with(&[]);
        variables.insert(name.to_owned(), value.clone());
        let shown = read(&variables).unwrap_err().to_string();
        assert!(!shown.contains(canary), "{value}: {shown}");
    }
}

#[test]
fn dev_and_demo_bring_what_is_required_and_the_environment_goes_first() {
    let made = Embedded {
        nats_url: "nats://127.0.0.1:5555".to_owned(),
        database_url: "sqlite://dev.db".to_owned(),
        keys_file: "/nowhere".to_owned(),
        ops_addr: "127.0.0.1:0".to_owned(),
    };
    let given = |name: &str| match name {
        "ENCRYPTION_KEYS" => Some(KEYS.to_owned()),
        "DATABASE_URL" => Some("sqlite://mine.db".to_owned()),
        _ => None,
    };
    let config = Config::embedded(&given, &made).unwrap();
    assert_eq!(config.nats.servers, ["nats://127.0.0.1:5555"]);
    assert_eq!(config.database.location.to_string(), "sqlite://mine.db");
    assert_eq!(config.egress.allowed.len(), 2);
    let faults = Config::embedded(&|_| None, &made).unwrap_err();
    assert!(faults.concern("ENCRYPTION_KEYS_FILE"));
}

#[test]
fn clients_and_migrations_need_only_their_own_part() {
    let unset = |_: &str| None;
    assert!(ClientConfig::from_lookup(&unset).is_ok());
    assert!(
        MigrateConfig::from_lookup(&unset)
            .unwrap_err()
            .concern("DATABASE_URL")
    );
    let given = with(&[]);
    let given = |name: &str| given.get(name).cloned();
    assert!(MigrateConfig::from_lookup(&given).is_ok());
    assert!(KeySource::from_lookup(&given).is_ok());
}

#[test]
fn the_committed_example_and_page_are_those_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = |name| fs::read_to_string(root.join(name)).unwrap_or_default();
    for (name, begin, generated) in [
        (".env.example", "# Every variable", variables::env_example()),
        ("docs/configuration.md", "## NATS\n", variables::markdown()),
    ] {
        let text = committed(name);
        let (head, rest) = text.split_at(text.find(begin).unwrap_or(text.len()));
        if rest != generated {
            let target = root.join("target").join(name.replace('/', "-"));
            fs::write(&target, format!("{head}{generated}")).unwrap();
            panic!(
                "{name} is not in step with the table: cp {} {name}",
                target.display()
            );
        }
    }
    let help = variables::help_text();
    assert!(variables::all().all(|variable| help.contains(variable.name)));
}

#[test]
fn every_default_of_the_table_is_allowed() {
    let defaults: Vec<(&str, &str)> = variables::all()
        .filter_map(|variable| match variable.unset {
            variables::Unset::Default(value) => Some((variable.name, value)),
            _ => None,
        })
        .collect();
    assert!(defaults.len() > 15);
    read(&with(&defaults)).unwrap();
}
