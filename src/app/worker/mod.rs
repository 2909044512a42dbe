//! The worker: its parts are wired, started in order, and stopped in the reverse one.

mod lanes;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    application::{
        commands::{CommandHandler, CommandSettings, SourceHistory},
        dead_letter_box::DeadLetterBox,
        dead_letter_watch::DeadLetterWatch,
        deliver::Deliverer,
        health::Health,
        in_hand::InHand,
        leases::Leases,
        normalise::Normaliser,
        oauth::{TokenParts, TokenSender},
        parked::ParkedLane,
        ports::{Clock, EventPublisher, HttpSender},
        relay::Relay,
        store_clock,
        upkeep::{Retention, Upkeep},
        wakers::Wakers,
    },
    domain::{policies::EgressPolicy, values::TenantId},
    infrastructure::{
        clock::SystemClock,
        expression::Cel,
        http::EndpointClient,
        nats::{
            Burial, Connection, ConsumerFloor, JetStreamArchive, JetStreamDeadLetters,
            JetStreamPublisher, PullSource, Topology, TopologySettings,
        },
        telemetry::MetricsRecorder,
    },
    presentation::{
        nats::{DurableCommands, DurableSettings, RequestService, ServiceSettings},
        ops::{Ops, OpsServer},
    },
    shared::{
        config::Config,
        error_chain::Chain,
        lifecycle::{Alarm, Group},
    },
};

use super::{dependencies, error::RunError, keys::Keys, lag, nats, signals, store::OpenStore};

/// What is left of the time to stop, after the work in hand, for recording, publishing and goodbyes.
const FAREWELL: Duration = Duration::from_secs(6);
/// The longest step of the goodbyes.
const STEP: Duration = Duration::from_millis(500);

/// Requests that are answered at a time; more wait.
const MAX_REQUESTS: usize = 64;

/// The groups, in the order in which they are stopped.
struct Groups {
    inbound: Group,
    lanes: Group,
    recording: Group,
    relay: Group,
    upkeep: Group,
    ops: Group,
}

impl Groups {
    fn new(alarm: &Alarm) -> Self {
        let group = |name| Group::new(name, alarm);
        Self {
            inbound: group("inbound"),
            lanes: group("lanes"),
            recording: group("recording"),
            relay: group("relay"),
            upkeep: group("upkeep"),
            ops: group("ops"),
        }
    }
}

/// What every part of the worker may need.
struct Parts {
    config: Config,
    tenant: TenantId,
    egress: EgressPolicy,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    wakers: Arc<Wakers>,
    keys: Keys,
    store: OpenStore,
    connection: Connection,
    topology: Arc<Topology>,
    sender: Arc<dyn HttpSender>,
    publisher: Arc<JetStreamPublisher>,
    dead_letters: Arc<dyn DeadLetterBox>,
}

impl Parts {
    fn publisher(&self) -> Arc<dyn EventPublisher> {
        Arc::<JetStreamPublisher>::clone(&self.publisher)
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser {
            stream: self.config.nats.source_stream.clone(),
            default_tenant: self.tenant.clone(),
            max_bytes: self.config.limits.event_bytes,
        }
    }

    fn history(&self) -> SourceHistory {
        SourceHistory {
            archive: Arc::new(JetStreamArchive::new(&self.connection, &self.topology)),
            floor: Arc::new(ConsumerFloor::new(&self.connection, &self.topology)),
            normaliser: self.normaliser(),
            kept: self.config.retention.deliveries,
        }
    }

    fn burial(&self, kind: &'static str) -> Burial {
        Burial {
            publisher: self.publisher(),
            clock: Arc::clone(&self.clock),
            kind,
            tenant: self.tenant.clone(),
        }
    }
}

/// What is given back at the end.
struct Running {
    in_hand: Arc<InHand>,
    leases: Arc<Leases>,
    give_up: CancellationToken,
    source: Arc<PullSource>,
}

/// Runs a worker until `shutdown` or a crash. The ops server answers first and last.
///
/// # Errors
/// [`RunError`] when it cannot start, or when a task of it has crashed.
pub(crate) async fn run(
    config: Config,
    metrics: MetricsRecorder,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let ops = OpsServer::bind(config.ops_addr).await?;
    run_on(ops, config, metrics, shutdown).await
}

/// The same on an ops server that is bound already.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_on(
    ops: OpsServer,
    config: Config,
    metrics: MetricsRecorder,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let alarm = Alarm::default();
    let groups = Groups::new(&alarm);
    let health = Arc::new(Health::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let render = metrics.clone();
    ops.spawn(
        &groups.ops,
        Ops {
            health: Arc::clone(&health),
            clock: Arc::clone(&clock),
            metrics: Arc::new(move || render.render()),
        },
    );
    metrics.spawn_upkeep(&groups.ops);
    let started = tokio::select! {
        parts = prepare(config, clock, Arc::clone(&health), &groups.upkeep) => Some(parts?),
        () = shutdown.cancelled() => None,
    };
    if let Some(parts) = started {
        let running = start(&parts, &groups).await?;
        health.started();
        tracing::info!("the worker runs");
        tokio::select! {
            () = shutdown.cancelled() => tracing::info!("stopping"),
            () = alarm.rung() => tracing::error!("a task has crashed, stopping"),
        }
        health.drain();
        stop(&parts, &groups, running).await;
    }
    groups.ops.shut_down(STEP).await;
    if alarm.is_rung() {
        Err(RunError::Crashed)
    } else {
        Ok(())
    }
}

/// Waits for everything that the worker stands on. `background` is where tokens are replaced.
async fn prepare(
    config: Config,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    background: &Group,
) -> Result<Parts, RunError> {
    let tenant = TenantId::try_new(&config.default_tenant)
        .map_err(|error| RunError::configuration("DEFAULT_TENANT", &error))?;
    let egress = EgressPolicy::new(config.egress.allowed.clone());
    let ca_file = config.egress.ca_file.as_deref();
    let sender = EndpointClient::new(egress.clone(), ca_file, Arc::clone(&clock))
        .map_err(|error| RunError::configuration("EGRESS_CA_FILE", &error))?;
    let keys = Keys::read(&config.keys)?;
    let store = OpenStore::wait_for(&config.database, &health).await?;
    keys.check(store.store.as_ref()).await?;
    // Before any lease is taken; later it is done as part of the upkeep.
    let learned = store_clock::learn_first(store.store.as_ref(), clock.as_ref()).await;
    learned.map_err(RunError::Store)?;
    let (connection, topology) = nats::wait_for(&config.nats, Arc::clone(&clock), &health).await?;
    let tokens = TokenParts {
        store: Arc::clone(&store.store),
        cipher: keys.cipher(),
        clock: Arc::clone(&clock),
        group: background.clone(),
    };
    let sender = TokenSender::new(Arc::new(sender), tokens);
    let prefix = nats::prefix(&config.nats)?;
    let dead_letters = JetStreamDeadLetters::new(&connection, prefix.clone(), &topology);
    let responses = config.nats.response_subject.clone();
    let publisher = JetStreamPublisher::new(&connection, prefix, responses, &topology);
    Ok(Parts {
        config,
        tenant,
        egress,
        clock,
        health,
        wakers: Arc::default(),
        keys,
        store,
        connection,
        topology,
        sender: Arc::new(sender),
        publisher: Arc::new(publisher),
        dead_letters: Arc::new(dead_letters),
    })
}

async fn start(parts: &Parts, groups: &Groups) -> Result<Running, RunError> {
    let running = Running {
        in_hand: Arc::default(),
        leases: Arc::default(),
        give_up: CancellationToken::new(),
        source: Arc::new(
            PullSource::erp(&parts.connection, &parts.topology).with_burial(parts.burial("events")),
        ),
    };
    Relay {
        store: Arc::clone(&parts.store.store),
        publisher: parts.publisher(),
        clock: Arc::clone(&parts.clock),
        wakers: Arc::clone(&parts.wakers),
        health: Arc::clone(&parts.health),
    }
    .start(&groups.relay);
    let deliverer = Arc::new(lanes::deliverer(parts, &running));
    deliverer.breakers().start(&groups.upkeep);
    start_upkeep(parts, groups, &deliverer, &running.in_hand);
    start_commands(parts, groups).await?;
    lanes::start(parts, groups, &running, &deliverer);
    Ok(running)
}

fn start_upkeep(parts: &Parts, groups: &Groups, deliverer: &Deliverer, in_hand: &Arc<InHand>) {
    Upkeep {
        store: Arc::clone(&parts.store.store),
        clock: Arc::clone(&parts.clock),
        health: Arc::clone(&parts.health),
        in_hand: Arc::clone(in_hand),
        endpoints: deliverer.endpoints().clone(),
        retention: Retention {
            deliveries: parts.config.retention.deliveries,
            outbox: parts.config.retention.outbox,
        },
        progress_every: parts.config.nats.source_ack_wait / 3,
    }
    .start(&groups.upkeep);
    DeadLetterWatch {
        letters: Arc::clone(&parts.dead_letters),
        store: Arc::clone(&parts.store.store),
        clock: Arc::clone(&parts.clock),
        wakers: Arc::clone(&parts.wakers),
        default_tenant: parts.tenant.clone(),
    }
    .start(&groups.upkeep);
    lag::watch(
        &groups.upkeep,
        parts.connection.client.clone(),
        Arc::clone(&parts.topology),
        Arc::clone(&parts.health),
    );
    let keys = parts.keys.clone();
    let store = Arc::clone(&parts.store.store);
    let hangups = signals::on_hangup(groups.upkeep.stopping(), move || {
        let (keys, store) = (keys.clone(), Arc::clone(&store));
        async move { keys.reload(store.as_ref()).await }
    });
    groups.upkeep.spawn_loop("hangup", hangups);
    groups.upkeep.spawn_loop(
        "clock",
        store_clock::follow(
            Arc::clone(&parts.store.store),
            Arc::clone(&parts.clock),
            groups.upkeep.stopping(),
        ),
    );
    groups.upkeep.spawn_loop(
        "dependencies",
        dependencies::watch(
            Arc::clone(&parts.store.store),
            parts.connection.connected.clone(),
            Arc::clone(&parts.health),
            groups.upkeep.stopping(),
        ),
    );
}

async fn start_commands(parts: &Parts, groups: &Groups) -> Result<(), RunError> {
    let handler = CommandHandler::new(
        Arc::clone(&parts.store.store),
        parts.keys.cipher(),
        Arc::clone(&parts.clock),
        Arc::clone(&parts.sender),
        Arc::clone(&parts.wakers),
        CommandSettings {
            default_tenant: parts.tenant.clone(),
            max_body: parts.config.limits.command_bytes,
            egress: parts.egress.clone(),
            expressions: Arc::new(Cel),
        },
    );
    let handler = handler.with_dead_letters(Arc::clone(&parts.dead_letters));
    let handler = Arc::new(handler.with_history(parts.history()));
    let prefix = nats::prefix(&parts.config.nats)?;
    let publisher = &parts.publisher;
    DurableCommands {
        source: Arc::new(
            PullSource::commands(&parts.connection, &parts.topology)
                .with_burial(parts.burial("commands")),
        ),
        handler: Arc::<CommandHandler>::clone(&handler),
        publisher: Arc::<JetStreamPublisher>::clone(publisher),
        replies: Arc::<JetStreamPublisher>::clone(publisher),
        clock: Arc::clone(&parts.clock),
        settings: DurableSettings {
            subject_root: prefix.commands(),
            stream: prefix.commands_stream(),
            concurrency: parts.config.limits.commands,
            ack_wait: TopologySettings::COMMANDS_ACK_WAIT,
            default_tenant: parts.tenant.clone(),
        },
    }
    .spawn(&groups.inbound);
    RequestService {
        connect: nats::for_requests(&parts.config.nats, &parts.clock),
        handler,
        clock: Arc::clone(&parts.clock),
        settings: ServiceSettings {
            name: prefix.service(),
            subject_root: prefix.api(),
            concurrency: MAX_REQUESTS,
        },
    }
    .spawn(&groups.inbound)
    .await
    .map_err(|error| RunError::Service(Box::new(error)))
}

/// Stops in order: nothing new is taken; what is in hand is finished, recorded and told within the
/// time there is; the rest is given back. No step waits for what may be away for longer than its share.
async fn stop(parts: &Parts, groups: &Groups, running: Running) {
    let Running {
        in_hand,
        leases,
        give_up,
        source,
    } = running;
    let end = Instant::now() + parts.config.shutdown_timeout;
    let left = || end.saturating_duration_since(Instant::now());
    let for_work = left().saturating_sub(FAREWELL);
    tokio::join!(
        groups.inbound.shut_down(for_work),
        groups.lanes.shut_down(for_work),
    );
    // With the lanes, their ends of the recorder's channel are gone, and it ends by itself.
    groups
        .recording
        .shut_down(left().saturating_sub(FAREWELL / 2))
        .await;
    give_up.cancel();
    groups.recording.shut_down(STEP).await;
    let now = parts.clock.store_now();
    let store = parts.store.store.as_ref();
    let deliveries = within("leases", ParkedLane::give_back(store, &leases, now)).await;
    groups.relay.shut_down(STEP).await;
    let events = within("events in hand", in_hand.give_back()).await;
    if let Some(Err(error)) = within("events that were not begun", source.release()).await {
        tracing::debug!(error = %Chain(&error), "events that were not begun come again later");
    }
    groups.upkeep.shut_down(STEP).await;
    if let Some(Err(error)) = within("last messages", parts.connection.client.flush()).await {
        tracing::debug!(%error, "the last messages were not flushed");
    }
    within("goodbye to the database", parts.store.close()).await;
    tracing::info!(
        events,
        deliveries,
        "stopped; what was in hand was given back"
    );
}

/// One step of the goodbye; `None` when it took too long.
async fn within<T>(what: &'static str, step: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(STEP, step).await.ok();
    if done.is_none() {
        tracing::warn!(
            what,
            "was not done in time while stopping; it comes again by itself"
        );
    }
    done
}
