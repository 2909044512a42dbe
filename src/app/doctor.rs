//! `doctor`: checks the configuration and everything that it points to, and changes nothing.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use async_nats::{Client, jetstream};
use serde::Serialize;

use crate::{
    application::{
        ports::{Cipher, CipherError},
        store_clock,
    },
    domain::interfaces::RegistryWebhook,
    infrastructure::{clock::SystemClock, nats::Inspection},
    presentation::cli::{Exit, Output},
    shared::{
        config::{Config, DatabaseLocation, environment},
        error_chain::Chain,
    },
};

use super::{client, keys::Keys, nats, store::OpenStore};

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the ERP runs; nothing needs a newer server.
const OLDEST_SERVER: (u64, u64) = (2, 10);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Good,
    Note,
    Bad,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    result: Mark,
    check: &'static str,
    text: String,
}

#[derive(Debug, Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, result: Mark, check: &'static str, text: impl Into<String>) {
        self.0.push(Finding {
            result,
            check,
            text: text.into(),
        });
    }

    fn good(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(Mark::Good, check, text);
    }

    fn note(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(Mark::Note, check, text);
    }

    fn bad(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(Mark::Bad, check, text);
    }

    fn print(&self, json: bool, output: &mut Output<'_>) -> Exit {
        let failed = self.0.iter().any(|finding| finding.result == Mark::Bad);
        if json {
            output.line(serde_json::json!({ "ok": !failed, "checks": self.0 }));
        } else {
            for finding in &self.0 {
                let mark = match finding.result {
                    Mark::Good => '✓',
                    Mark::Note => '!',
                    Mark::Bad => '✗',
                };
                output.line(format_args!("{mark} {}: {}", finding.check, finding.text));
            }
        }
        if failed { Exit::Failed } else { Exit::Done }
    }
}

/// Prints a line for each check.
pub(crate) async fn doctor(json: bool, output: &mut Output<'_>) -> Exit {
    let mut report = Report::default();
    let config = match Config::from_lookup(&environment) {
        Ok(config) => config,
        Err(faults) => {
            for fault in &faults.0 {
                report.bad(fault.variable, &fault.problem);
            }
            report.print(json, output);
            return Exit::Configuration;
        }
    };
    report.good("configuration", "no faults");
    check_nats(&config, &mut report).await;
    check_database(&config, &mut report).await;
    report.print(json, output)
}

async fn check_nats(config: &Config, report: &mut Report) {
    let client = match client::connect(&config.nats).await {
        Ok(client) => client,
        Err(error) => return report.bad("NATS", Chain(&error).to_string()),
    };
    let server = client.server_info();
    let servers = config.nats.servers.join(",");
    if is_old(&server.version) {
        let remedy = "too old: 2.10 is the oldest that is supported";
        report.bad(
            "NATS",
            format!("{servers} runs {}, {remedy}", server.version),
        );
    } else {
        report.good("NATS", format!("{servers} runs {}", server.version));
    }
    let (largest, longest) = (server.max_payload, config.limits.event_bytes);
    if largest > longest {
        report.note(
            "NATS",
            format!(
                "messages may have {largest} bytes, and events over MAX_EVENT_BYTES ({longest}) \
                 become dead letters"
            ),
        );
    }
    check_streams(config, &client, report).await;
}

fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0_u64), parts.next().unwrap_or(0)) < OLDEST_SERVER
}

async fn check_streams(config: &Config, client: &Client, report: &mut Report) {
    let topology = match nats::topology(&config.nats) {
        Ok(topology) => topology,
        Err(error) => return report.bad("streams", Chain(&error).to_string()),
    };
    let context = jetstream::new(client.clone());
    match within(topology.inspect(&context)).await {
        Err(problem) => {
            report.bad(
                "streams",
                format!("{problem}; is JetStream switched on for us?"),
            );
        }
        Ok(found) => tell_streams(&found, report),
    }
    let subjects = topology.source_subjects(&context).await;
    if let Some(note) = nats::responses_note(&config.nats, subjects.as_deref()) {
        report.note("streams", note);
    }
}

fn tell_streams(found: &Inspection, report: &mut Report) {
    if !found.present.is_empty() {
        report.good("streams", format!("there: {}", found.present.join(", ")));
    }
    if !found.missing.is_empty() {
        let missing = found.missing.join(", ");
        report.note("streams", format!("missing, made by `run`: {missing}"));
    }
    for difference in &found.differences {
        report.note(
            "streams",
            format!(
                "{}: {} is {}, the worker would set {}; it leaves it as it is",
                difference.of, difference.field, difference.actual, difference.expected
            ),
        );
    }
}

async fn check_database(config: &Config, report: &mut Report) {
    let place = config.database.location.to_string();
    if let DatabaseLocation::Sqlite(path) = &config.database.location
        && !path.exists()
    {
        return tell_missing_file(path, report);
    }
    let store = match within(OpenStore::open(&config.database)).await {
        Ok(store) => store,
        Err(problem) => return report.bad("database", format!("{place}: {problem}")),
    };
    match within(store.migrations_current()).await {
        Err(problem) => report.bad("database", format!("{place}: {problem}")),
        Ok(false) => report.bad(
            "database",
            format!("{place} does not have this program's tables: integration-worker migrate"),
        ),
        Ok(true) => {
            report.good("database", format!("{place} is there and up to date"));
            check_clock(&store, report).await;
            check_keys(config, &store, report).await;
        }
    }
    store.close().await;
}

async fn check_clock(store: &OpenStore, report: &mut Report) {
    match within(store_clock::learn(&*store.store, &SystemClock::new())).await {
        Err(problem) => report.bad("clock", problem),
        Ok(skew) => tell_skew(skew, report),
    }
}

/// Seconds that this machine's clock is ahead of the database's, where that has one.
fn tell_skew(skew: Option<f64>, report: &mut Report) {
    let Some(skew) = skew else {
        return;
    };
    if skew.abs() <= store_clock::TOLERATED.as_secs_f64() {
        return report.good("clock", "as the database's");
    }
    let way = if skew > 0.0 { "ahead of" } else { "behind" };
    report.note(
        "clock",
        format!(
            "this machine's is {:.1} s {way} the database's: leases and due times follow the \
             database's, signatures and the times in events follow this one",
            skew.abs()
        ),
    );
}

/// Opening would make it.
fn tell_missing_file(path: &Path, report: &mut Report) {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    if folder.is_none_or(Path::is_dir) {
        let text = format!("{} is missing, made by `migrate` or `run`", path.display());
        report.note("database", text);
    } else {
        let text = format!("{}: make its folder first", path.display());
        report.bad("database", text);
    }
}

async fn check_keys(config: &Config, store: &OpenStore, report: &mut Report) {
    let keys = match Keys::read(&config.keys) {
        Ok(keys) => keys,
        Err(error) => return report.bad("keys", Chain(&error).to_string()),
    };
    if let Err(problem) = within(keys.check(&*store.store)).await {
        return report.bad("keys", problem);
    }
    let wrong = match within(store.store.registry_delta(0)).await {
        Ok(all) => wrong_keys(&*keys.cipher(), &all.changed),
        Err(problem) => return report.bad("keys", problem),
    };
    if wrong.is_empty() {
        report.good("keys", "every key that the database needs is there");
    }
    for problem in wrong {
        report.bad("keys", problem);
    }
}

/// Opens a signing secret for each key that sealed some: a key of the same name may be another one.
/// Keys that are missing are told already.
fn wrong_keys(cipher: &dyn Cipher, webhooks: &[RegistryWebhook]) -> Vec<String> {
    let mut tried = BTreeMap::new();
    for RegistryWebhook { webhook, .. } in webhooks {
        for secret in &webhook.secrets {
            let id = secret.sealed.key_id.as_str();
            tried
                .entry(id)
                .or_insert_with(|| cipher.open(&secret.sealed, &webhook.id.to_string()).err());
        }
    }
    let wrong = tried
        .into_iter()
        .filter(|(_, error)| matches!(error, Some(CipherError::Broken)));
    wrong
        .map(|(id, _)| {
            format!("the key {id:?} does not open what was sealed with it: it is another key")
        })
        .collect()
}

/// What the check answers, or why it does not, within [`PATIENCE`].
async fn within<T, E: std::error::Error + 'static>(
    check: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, check).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::{
            entities::{EntityMeta, Labels, NewWebhook, SigningSecret, Webhook},
            values::{EventPattern, IntegrationId, SecretConfig, TenantId, WebhookId},
        },
        infrastructure::crypto::{RingCipher, generate_key_line},
    };

    #[test]
    fn servers_before_2_10_are_too_old() {
        for (version, old) in [
            ("2.9.25", true),
            ("1.4.1", true),
            ("", true),
            ("2.10.0", false),
            ("2.11.0-RC.1", false),
            ("3.0.0", false),
        ] {
            assert_eq!(is_old(version), old, "{version}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_a_note() {
        for (skew, expected) in [
            (-1.9, (Mark::Good, "as the database's")),
            (61.3, (Mark::Note, "61.3 s ahead of the database's")),
            (-3600.0, (Mark::Note, "3600.0 s behind the database's")),
        ] {
            let mut report = Report::default();
            tell_skew(Some(skew), &mut report);
            let [found] = &report.0[..] else {
                panic!("{report:?}");
            };
            assert_eq!(found.result, expected.0, "{skew}");
            assert!(found.text.contains(expected.1), "{}", found.text);
        }
        let mut report = Report::default();
        tell_skew(None, &mut report);
        assert!(report.0.is_empty(), "{report:?}");
    }

    fn webhook(id: u128, cipher: &dyn Cipher) -> RegistryWebhook {
        let id = WebhookId(Uuid::from_u128(id));
        let labels = Labels {
            name: "w".to_owned(),
            description: None,
            tags: Vec::new(),
        };
        let tenant = TenantId::try_new("default").unwrap();
        let (webhook, _) = Webhook::create(NewWebhook {
            id,
            integration_id: IntegrationId(Uuid::nil()),
            meta: EntityMeta::new(tenant, labels, "system", DateTime::UNIX_EPOCH),
            events: vec![EventPattern::try_new(">").unwrap()],
            config: SecretConfig {
                shown: serde_json::Map::new(),
                sealed: None,
            },
            secret: SigningSecret {
                sealed: cipher.seal(b"secret", &id.to_string()).unwrap(),
                created_at: DateTime::UNIX_EPOCH,
                expires_at: None,
            },
        });
        RegistryWebhook {
            webhook,
            integration_runs: true,
        }
    }

    #[test]
    fn another_key_under_the_name_of_a_known_one_is_found() {
        let clock = SystemClock::new();
        let [k1, k2, other] = ["k1", "k2", "k1"].map(|id| generate_key_line(id, &clock));
        let ring = |lines: &[&String]| {
            let lines: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
            RingCipher::from_text(&lines.join("\n")).unwrap()
        };
        let stored = [webhook(1, &ring(&[&k1])), webhook(2, &ring(&[&k2]))];
        assert_eq!(wrong_keys(&ring(&[&k2, &k1]), &stored), [""; 0]);
        let wrong = wrong_keys(&ring(&[&k2, &other]), &stored);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("\"k1\""), "{wrong:?}");
    }

    #[test]
    fn a_bad_finding_fails_and_a_note_does_not() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut report = Report::default();
        report.good("a", "well");
        report.note("b", "hm");
        let exit = report.print(false, &mut Output::new(&mut out, &mut err));
        assert_eq!(exit, Exit::Done);
        report.bad("c", "ill");
        let exit = report.print(false, &mut Output::new(&mut out, &mut err));
        assert_eq!(exit, Exit::Failed);
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("✓ a: well\n! b: hm\n✗ c: ill\n"), "{text}");
    }
}
