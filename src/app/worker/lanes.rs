//! The lanes of a worker: what takes events in, tries deliveries and records what became of them.

use std::sync::Arc;

use crate::{
    application::{
        batches::Batches,
        blocked_lanes::BlockedLanes,
        breakers::{BreakerSettings, Breakers},
        deliver::Deliverer,
        endpoints::Endpoints,
        former_streams::FormerStreams,
        intake::{Intake, IntakeLimits, MAX_DELIVERIES_IN_HAND},
        lanes::{OrderedLanes, STRETCH},
        leased::LeasedAttempts,
        parked::ParkedLane,
        recorder::Recorder,
        registry::Registry,
        replays::Replays,
        webhook_changes::WebhookChanges,
    },
    domain::policies::BreakerRules,
    infrastructure::{
        expression::Cel,
        nats::{ConsumerFloor, PullSource},
    },
};

use super::{Groups, Parts, Running};

/// What the headers of an event made of an answer have at most, in bytes.
const RESPONSE_HEADERS: usize = 1024;

/// What makes attempts, for both lanes.
pub(super) fn deliverer(parts: &Parts, running: &Running) -> Deliverer {
    let limits = parts.config.limits;
    let changes = WebhookChanges::new(
        Arc::clone(&parts.store.store),
        Arc::clone(&parts.clock),
        Arc::clone(&parts.wakers),
    );
    let breaker = parts.config.breaker;
    let breakers = Breakers::new(
        Arc::clone(&parts.store.store),
        Arc::clone(&parts.clock),
        changes,
        BreakerSettings {
            rules: BreakerRules {
                open_after: breaker.open_after,
                first_wait: breaker.wait,
                longest_wait: breaker.max_wait,
            },
            disable_after: breaker.disable_after,
        },
    );
    let per_endpoint = u32::try_from(limits.in_flight_per_endpoint).unwrap_or(u32::MAX);
    let largest = parts.connection.client.max_payload();
    let largest = largest.saturating_sub(RESPONSE_HEADERS);
    Deliverer::new(
        Arc::clone(&parts.clock),
        Arc::clone(&parts.sender),
        breakers,
        Endpoints::new(per_endpoint),
        limits.in_flight,
        running.give_up.clone(),
    )
    .with_max_response_event(limits.event_bytes.min(largest))
}

fn recorder(parts: &Parts, running: &Running) -> Recorder {
    Recorder {
        store: Arc::clone(&parts.store.store),
        publisher: parts.publisher(),
        in_hand: Arc::clone(&running.in_hand),
        leases: Arc::clone(&running.leases),
        wakers: Arc::clone(&parts.wakers),
        give_up: running.give_up.clone(),
    }
}

/// Starts what takes events in, tries deliveries and records what became of them.
pub(super) fn start(parts: &Parts, groups: &Groups, running: &Running, deliverer: &Arc<Deliverer>) {
    let store = &parts.store.store;
    let registry = Arc::new(Registry::new(
        Arc::clone(store),
        parts.keys.cipher(),
        Arc::new(Cel),
    ));
    let outcomes = recorder(parts, running).start(&groups.recording, MAX_DELIVERIES_IN_HAND);
    let attempts = Arc::new(LeasedAttempts {
        clock: Arc::clone(&parts.clock),
        deliverer: Arc::clone(deliverer),
        outcomes: outcomes.clone(),
    });
    let source = Arc::new(ConsumerFloor::new(&parts.connection, &parts.topology));
    FormerStreams {
        store: Arc::clone(store),
        source: Arc::<ConsumerFloor>::clone(&source),
        wakers: Arc::clone(&parts.wakers),
    }
    .start(&groups.upkeep);
    ordered(parts, running, &registry, &attempts, source).start(&groups.lanes);
    replays(parts, running, &registry, &attempts).start(&groups.lanes);
    batches(parts, running, &registry, &attempts).start(&groups.lanes);
    ParkedLane {
        store: Arc::clone(store),
        registry: Arc::clone(&registry),
        clock: Arc::clone(&parts.clock),
        attempts,
        leases: Arc::clone(&running.leases),
        wakers: Arc::clone(&parts.wakers),
        health: Arc::clone(&parts.health),
    }
    .start(&groups.lanes, &groups.upkeep);
    BlockedLanes {
        store: Arc::clone(store),
        registry: Arc::clone(&registry),
        wakers: Arc::clone(&parts.wakers),
    }
    .start(&groups.upkeep);
    Intake {
        source: Arc::<PullSource>::clone(&running.source),
        normaliser: parts.normaliser(),
        registry,
        store: Arc::clone(store),
        publisher: parts.publisher(),
        clock: Arc::clone(&parts.clock),
        deliverer: Arc::clone(deliverer),
        outcomes,
        in_hand: Arc::clone(&running.in_hand),
        health: Arc::clone(&parts.health),
        limits: IntakeLimits {
            events: parts.config.limits.events_in_hand,
            bytes: parts.config.limits.bytes_in_hand,
        },
    }
    .start(&groups.lanes);
}

fn ordered(
    parts: &Parts,
    running: &Running,
    registry: &Arc<Registry>,
    attempts: &Arc<LeasedAttempts>,
    floor: Arc<ConsumerFloor>,
) -> OrderedLanes {
    OrderedLanes {
        store: Arc::clone(&parts.store.store),
        floor,
        registry: Arc::clone(registry),
        clock: Arc::clone(&parts.clock),
        attempts: Arc::clone(attempts),
        leases: Arc::clone(&running.leases),
        wakers: Arc::clone(&parts.wakers),
        health: Arc::clone(&parts.health),
        stretch: STRETCH,
    }
}

fn replays(
    parts: &Parts,
    running: &Running,
    registry: &Arc<Registry>,
    attempts: &Arc<LeasedAttempts>,
) -> Replays {
    Replays {
        store: Arc::clone(&parts.store.store),
        history: parts.history(),
        registry: Arc::clone(registry),
        clock: Arc::clone(&parts.clock),
        attempts: Arc::clone(attempts),
        leases: Arc::clone(&running.leases),
        wakers: Arc::clone(&parts.wakers),
        health: Arc::clone(&parts.health),
    }
}

fn batches(
    parts: &Parts,
    running: &Running,
    registry: &Arc<Registry>,
    attempts: &Arc<LeasedAttempts>,
) -> Batches {
    Batches {
        store: Arc::clone(&parts.store.store),
        registry: Arc::clone(registry),
        clock: Arc::clone(&parts.clock),
        attempts: Arc::clone(attempts),
        leases: Arc::clone(&running.leases),
        wakers: Arc::clone(&parts.wakers),
        health: Arc::clone(&parts.health),
    }
}
