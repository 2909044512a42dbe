//! The names of all metrics, and their help texts. Prometheus naming rules; no tenant or entity label.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Counter, label `result`: `accepted`, `dead_letter`.
pub const EVENTS: &str = "integration_events_total";
/// Counter: matches of events and webhooks.
pub const MATCHES: &str = "integration_event_matches_total";
/// Counter: matches of patterns that a filter ruled out.
pub const FILTERED: &str = "integration_event_matches_filtered_total";
/// Counter, label `expression` (`filter`, `transform`): deliveries that ended because theirs could not be
/// evaluated.
pub const EXPRESSION_FAULTS: &str = "integration_expression_faults_total";
/// Counter, label `result` (`event`, `fault`, `loop`): answers of webhooks with `response`.
pub const RESPONSES: &str = "integration_responses_total";
/// Counter, labels `lane` (`fast`, `parked`) and `outcome` (`delivered`, `failed`, `exhausted`).
pub const ATTEMPTS: &str = "integration_delivery_attempts_total";
/// Histogram in seconds, label `lane`.
pub const ATTEMPT_SECONDS: &str = "integration_delivery_attempt_duration_seconds";
/// Histogram in seconds: from the moment at which a worker takes an event in hand to its being settled.
pub const EVENT_SECONDS: &str = "integration_event_duration_seconds";
/// Gauge: attempts under way, of all lanes.
pub const IN_FLIGHT: &str = "integration_delivery_attempts_in_flight";
/// Counter: deliveries that were moved aside without an attempt.
pub const PARKED: &str = "integration_deliveries_parked_total";
/// Counter, labels `kind` (`replay`, `backfill`) and `outcome` (`done`, `skipped`): deliveries that replays
/// of this worker handed out or left alone.
pub const REPLAYED: &str = "integration_replayed_deliveries_total";
/// Counter, labels `kind` and `outcome` (`completed`, `cancelled`, `failed`): replays that this worker ended.
pub const REPLAYS_ENDED: &str = "integration_replays_ended_total";
/// Gauge: endpoints whose breaker is open, over all workers.
pub const BREAKERS_OPEN: &str = "integration_breakers_open";
/// Counter, label `to` (`open`, `closed`): breakers that this worker switched; one that opens again after its
/// probe counts again.
pub const BREAKER_SWITCHES: &str = "integration_breaker_switches_total";
/// Counter, label `outcome` (`got`, `failed`): requests to token endpoints (OAuth 2).
pub const TOKEN_REQUESTS: &str = "integration_token_requests_total";
/// Gauge: deliveries that wait in the database.
pub const PARKED_ROWS: &str = "integration_deliveries_parked";
/// Gauge in seconds: how long the longest-due delivery has been due.
pub const PARKED_OLDEST: &str = "integration_deliveries_oldest_due_seconds";
/// Gauge: events that are committed and wait to be published.
pub const OUTBOX_ROWS: &str = "integration_outbox_events";
/// Gauge in seconds: the age of the oldest of them.
pub const OUTBOX_OLDEST: &str = "integration_outbox_oldest_seconds";
/// Gauge: events made of answers that are committed and wait to be published.
pub const RESPONSE_ROWS: &str = "integration_outbox_responses";
/// Gauge in seconds: the age of the oldest of them.
pub const RESPONSE_OLDEST: &str = "integration_outbox_responses_oldest_seconds";
/// Counter: domain events published and acknowledged.
pub const PUBLISHED: &str = "integration_domain_events_published_total";
/// Counter, labels `action` (`<entity>.<action>`, `unknown`), `path` (`durable`, `request`), `result` (`success`, an error code).
pub const COMMANDS: &str = "integration_commands_total";
/// Histogram in seconds, label `path`.
pub const COMMAND_SECONDS: &str = "integration_command_duration_seconds";
/// Counter, label `kind` (`commands`, `events`).
pub const DEAD_LETTERS: &str = "integration_dead_letters_total";
/// Gauge: dead letters that are kept, neither replayed nor discarded.
pub const DEAD_LETTERS_KEPT: &str = "integration_dead_letters_kept";
/// Gauge in seconds: the age of the oldest of them.
pub const DEAD_LETTERS_OLDEST: &str = "integration_dead_letters_oldest_seconds";
/// Gauge: the registry's change counter as this worker knows it.
pub const REGISTRY_VERSION: &str = "integration_registry_version";
/// Gauge: webhooks in the registry.
pub const REGISTRY_WEBHOOKS: &str = "integration_registry_webhooks";
/// Histogram in seconds, label `operation` (`record`, `claim`, `version`, `delta`).
pub const STORE_SECONDS: &str = "integration_store_duration_seconds";
/// Counter, label `loop`: a loop met a fault and tries again.
pub const LOOP_FAULTS: &str = "integration_loop_faults_total";
/// Gauge 1, labels `version` and `database`.
pub const BUILD_INFO: &str = "integration_build_info";
/// Gauge, label `dependency` (`nats`, `database`): 1 when it answers.
pub const UP: &str = "integration_dependency_up";

/// Gauge in seconds: how far this machine's clock is ahead of the database's.
pub const CLOCK_SKEW: &str = "integration_clock_skew_seconds";

/// Tells the recorder what each metric means.
pub fn describe() {
    describe_breakers();
    describe_replays();
    describe_counter!(
        EVENTS,
        "Messages of the source stream by what became of them"
    );
    describe_counter!(MATCHES, "Matches of events and webhooks");
    describe_counter!(FILTERED, "Matches of patterns that a filter ruled out");
    describe_counter!(
        EXPRESSION_FAULTS,
        "Deliveries that ended because an expression could not be evaluated"
    );
    describe_responses();
    describe_counter!(ATTEMPTS, "Requests to endpoints by lane and outcome");
    describe_histogram!(
        ATTEMPT_SECONDS,
        Unit::Seconds,
        "Duration of a request to an endpoint"
    );
    describe_histogram!(
        EVENT_SECONDS,
        Unit::Seconds,
        "From taking an event in hand to its settlement"
    );
    describe_gauge!(IN_FLIGHT, "Requests to endpoints under way, of all lanes");
    describe_counter!(PARKED, "Deliveries moved aside without a request");
    describe_gauge!(PARKED_ROWS, "Deliveries that wait in the database");
    describe_gauge!(
        PARKED_OLDEST,
        Unit::Seconds,
        "How long the longest-due delivery has been due"
    );
    describe_gauge!(OUTBOX_ROWS, "Committed events that wait to be published");
    describe_gauge!(
        OUTBOX_OLDEST,
        Unit::Seconds,
        "Age of the oldest committed, unpublished event"
    );
    describe_counter!(PUBLISHED, "Domain events published and acknowledged");
    describe_counter!(COMMANDS, "Commands by action, path and result");
    describe_histogram!(COMMAND_SECONDS, Unit::Seconds, "Duration of a command");
    describe_counter!(DEAD_LETTERS, "Messages that could not be understood");
    describe_gauge!(
        DEAD_LETTERS_KEPT,
        "Dead letters that are neither replayed nor discarded"
    );
    describe_gauge!(
        DEAD_LETTERS_OLDEST,
        Unit::Seconds,
        "Age of the oldest dead letter"
    );
    describe_gauge!(
        REGISTRY_VERSION,
        "Change counter of the registry as this worker knows it"
    );
    describe_gauge!(REGISTRY_WEBHOOKS, "Webhooks in the registry");
    describe_histogram!(
        STORE_SECONDS,
        Unit::Seconds,
        "Duration of a database operation"
    );
    describe_counter!(LOOP_FAULTS, "Faults after which a loop tries again");
    describe_gauge!(BUILD_INFO, "Version of the worker");
    describe_gauge!(UP, "Whether a dependency answers");
    describe_gauge!(
        CLOCK_SKEW,
        Unit::Seconds,
        "How far this machine's clock is ahead of the database's"
    );
}

fn describe_replays() {
    describe_counter!(REPLAYED, "Deliveries that replays handed out or left alone");
    describe_counter!(REPLAYS_ENDED, "Replays that have ended");
}

fn describe_responses() {
    describe_counter!(
        RESPONSES,
        "Answers that were to become events, by what became of them"
    );
    describe_gauge!(
        RESPONSE_ROWS,
        "Committed events made of answers that wait to be published"
    );
    describe_gauge!(
        RESPONSE_OLDEST,
        Unit::Seconds,
        "Age of the oldest committed, unpublished event made of an answer"
    );
}

fn describe_breakers() {
    describe_gauge!(
        BREAKERS_OPEN,
        "Endpoints whose breaker is open, over all workers"
    );
    describe_counter!(BREAKER_SWITCHES, "Breakers opened and closed");
    describe_counter!(TOKEN_REQUESTS, "Requests to token endpoints by outcome");
}
