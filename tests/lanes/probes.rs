//! The one request that tries an endpoint whose breaker is open.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use integration_worker::{
    application::ports::{Clock as _, TokenFault},
    domain::{
        interfaces::{ClaimRequest, ClaimedDelivery, DeliveryStore as _},
        values::Timestamp,
    },
};

use crate::world::{Does, World, until};

#[tokio::test]
async fn an_ordered_probe_asks_for_the_floor_where_it_waits_above_it() {
    let world = World::new(|_| Does::Answer).await;
    world.floor.value.store(3, Ordering::SeqCst);
    world.open_breaker().await;
    world.start();
    until("it is open", || !world.breakers.open().is_empty()).await;
    let asked = || world.floor.asked.load(Ordering::SeqCst);
    until("a floor is known", || asked() > 0).await;

    world.floor.value.store(10, Ordering::SeqCst);
    world.park(vec![world.waiting(5, Some("a"), 0)]).await;

    world.until_closed().await;
    assert_eq!(world.endpoint.got(), [5]);
}

#[tokio::test]
async fn a_probe_that_says_nothing_about_the_endpoint_is_made_again_with_another_delivery() {
    for lanes in [[None, None, None], [Some("a"), Some("b"), Some("c")]] {
        let world = World::new(|n| if n == 2 { Does::NoNames } else { Does::Answer }).await;
        world.floor.value.store(10, Ordering::SeqCst);
        world.open_breaker().await;
        let [mut unreadable, no_names, good] = [(1, lanes[0]), (2, lanes[1]), (3, lanes[2])]
            .map(|(n, lane)| world.waiting(n, lane, 0));
        unreadable.event.as_mut().expect("it is there").meta = "{}".to_owned();
        world.park(vec![unreadable, no_names, good]).await;

        world.start();

        world.until_closed().await;
        let got = world.endpoint.got();
        assert_eq!(got.first(), Some(&2), "{got:?}");
    }
}

#[tokio::test]
async fn a_probe_outlives_a_registry_that_cannot_be_read() {
    for lanes in [[None, None], [Some("a"), Some("b")]] {
        let world = World::new(|_| Does::Answer).await;
        world.floor.value.store(10, Ordering::SeqCst);
        world.open_breaker().await;
        world
            .sql("ALTER TABLE registry_state RENAME TO registry_state_gone")
            .await;
        world.park(vec![world.waiting(1, lanes[0], 0)]).await;
        world.start();
        world.until_claimed(1).await;
        let held = || {
            let now = world.clock.store_now();
            world.breakers.held(now) == [world.webhook.id]
        };
        until("the right is there again", held).await;
        world
            .sql("ALTER TABLE registry_state_gone RENAME TO registry_state")
            .await;

        world.park(vec![world.waiting(2, lanes[1], 0)]).await;

        world.until_closed().await;
    }
}

fn request(now: Timestamp) -> ClaimRequest {
    ClaimRequest {
        now,
        lease_until: now + Duration::from_secs(30),
        limit: 10,
        per_webhook: 10,
        exclude: Vec::new(),
        only: None,
    }
}

async fn claim(world: &World, now: Timestamp) -> Vec<ClaimedDelivery> {
    let claimed = world.breakers.claim_probes(&request(now)).await;
    claimed.expect("it is asked")
}

/// The breakers alone, of which one is open.
async fn open_world() -> World {
    let world = World::new(|_| Does::Answer).await;
    world.open_breaker().await;
    world.breakers.start(&world.group);
    until("it is open", || !world.breakers.open().is_empty()).await;
    world
}

#[tokio::test]
async fn one_lane_at_a_time_has_the_right_to_a_probe() {
    let world = open_world().await;
    let hook = world.webhook.id;
    world.park(vec![world.waiting(2, Some("a"), 0)]).await;
    assert_eq!(claim(&world, world.clock.store_now()).await, []);

    let now = world.clock.store_now();
    assert!(world.breakers.use_probe(hook, now));
    assert!(!world.breakers.use_probe(hook, now));
    world.park(vec![world.waiting(1, None, 0)]).await;
    let now = world.clock.store_now();
    assert_eq!(claim(&world, now).await, [], "another lane has it");

    world.breakers.keep_probe(hook, Duration::ZERO);
    let now = world.clock.store_now();
    assert_eq!(claim(&world, now).await.len(), 1);
    assert!(!world.breakers.use_probe(hook, now));
}

#[tokio::test]
async fn the_right_to_a_probe_is_held_as_long_as_it_lasts_and_no_longer() {
    let world = open_world().await;
    let hook = world.webhook.id;
    let begun = world.clock.store_now();
    assert_eq!(claim(&world, begun).await, []);

    // Nobody else gets it, so whoever has it uses it as soon as there is something to send.
    // The longest request is over by then.
    let later = world.later(Duration::from_secs(340));
    let others = async |now: Timestamp| {
        let until = now + Duration::from_mins(2);
        let taken = world.store().take_probes(&[hook], now, until).await;
        taken.expect("it is asked")
    };
    assert_eq!(others(later).await, []);
    assert!(world.breakers.use_probe(hook, later));

    // What is kept late is not kept for longer.
    world.breakers.keep_probe(hook, Duration::ZERO);
    let over = world.later(Duration::from_secs(20));
    assert_eq!(world.breakers.held(over), []);
    assert_eq!(others(over).await, [hook]);
}

#[tokio::test]
async fn what_is_not_sent_for_no_fault_of_the_partner_is_no_attempt() {
    for (what, attempts) in [
        (Does::NoNames, 1),
        (Does::NoToken(TokenFault::None), 1),
        (Does::NoToken(TokenFault::Address), 2),
        (Does::NoToken(TokenFault::Partner), 2),
    ] {
        let asked = AtomicUsize::new(0);
        let world = World::new(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => what,
            _ => Does::Answer,
        })
        .await;
        world.park(vec![world.waiting(1, None, 0)]).await;
        world.start();
        world.until_got(1).await;
        assert_eq!(
            world.attempts_until_delivered(1).await,
            attempts,
            "{what:?}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_stops_gives_its_right_to_a_probe_back() {
    let world = open_world().await;
    let now = world.clock.store_now();
    assert_eq!(claim(&world, now).await, []);
    // It is kept from the claim's end on.
    let now = world.clock.store_now();
    assert_eq!(world.breakers.held(now), [world.webhook.id]);

    assert!(world.group.shut_down(Duration::from_secs(20)).await);

    let hooks = [world.webhook.id];
    let now = world.clock.store_now();
    let taken = world
        .store()
        .take_probes(&hooks, now, now + Duration::from_secs(1));
    assert_eq!(taken.await.expect("it is asked"), hooks);
}
