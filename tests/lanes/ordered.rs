//! Lanes of ordered deliveries.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use integration_worker::{application::ports::Clock as _, domain::policies::RateLimit};

use crate::world::{Does, World, until};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_lane_goes_on_when_a_lease_in_it_is_lost() {
    let world = World::new(|n| if n == 1 { Does::Hang } else { Does::Answer }).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let lane = [1, 2, 3].map(|n| world.waiting(n, Some("a"), 0));
    let second = lane[1].delivery.id;
    world.park(lane.into()).await;
    world.start();
    world.until_got(1).await;

    // Somebody has retried the second one, and the worker has learnt of it.
    world
        .sql("UPDATE deliveries SET lease_epoch = lease_epoch + 1, due_at = 0 WHERE lane_turn = 2")
        .await;
    let lost = world.leases.all();
    let lost = lost.iter().find(|lease| lease.delivery_id == second);
    world.leases.forget([lost.expect("it is held")]);
    world.endpoint.let_go.send_replace(true);

    world.until_delivered(3).await;
    assert_eq!(world.endpoint.got(), [1, 2, 3], "no one twice");
    until("no lease is left", || world.leases.all().is_empty()).await;
}

/// One endpoint holds what takes most of the room; there is none for another large one meanwhile.
async fn small_ones_go_on(lanes: [Option<&str>; 3]) {
    let world = World::new(|n| if n == 1 { Does::Hang } else { Does::Answer }).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let others = world.fixture.create(8, &["order.*"]).await;
    world
        .park(vec![
            world.waiting(1, lanes[0], 40 * MIB),
            world.waiting_for(&others, 2, lanes[1], 40 * MIB),
            world.waiting_for(&others, 3, lanes[2], 0),
        ])
        .await;

    world.start();

    assert_eq!(world.until_got(2).await, [1, 3]);
    world.endpoint.let_go.send_replace(true);
    assert_eq!(world.until_got(3).await, [1, 3, 2]);
}

#[tokio::test]
async fn a_lane_that_takes_all_room_for_long_does_not_hold_up_small_ones() {
    small_ones_go_on([Some("a"), Some("b"), Some("c")]).await;
}

#[tokio::test]
async fn a_delivery_that_takes_all_room_for_long_does_not_hold_up_small_ones() {
    small_ones_go_on([None; 3]).await;
}

#[tokio::test]
async fn the_room_of_a_delivery_is_free_as_soon_as_it_is_sent() {
    let world = World::new(|n| if n == 2 { Does::Hang } else { Does::Answer }).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let others = world.fixture.create(8, &["order.*"]).await;
    let lane = [(1, 40 * MIB), (2, 0)].map(|(n, bytes)| world.waiting(n, Some("a"), bytes));
    world.park(lane.into()).await;
    world.start();
    assert_eq!(world.until_got(2).await, [1, 2]);

    // The lane is not over.
    let large = world.waiting_for(&others, 3, Some("b"), 40 * MIB);
    world.park(vec![large]).await;

    assert_eq!(world.until_got(3).await, [1, 2, 3]);
}

#[tokio::test]
async fn the_floor_is_asked_for_again_and_may_fall() {
    let world = World::new(|_| Does::Answer).await;
    world.floor.value.store(100, Ordering::SeqCst);
    world.park(vec![world.waiting(5, Some("a"), 0)]).await;
    world.start();
    world.until_got(1).await;

    // The source stream was deleted and made anew.
    world.floor.value.store(2, Ordering::SeqCst);
    let asked = || world.floor.asked.load(Ordering::SeqCst);
    let before = asked();
    until("it is asked again", || asked() > before).await;
    world.park(vec![world.waiting(7, Some("b"), 0)]).await;
    let before = asked();
    until("it waits above the floor", || asked() >= before + 3).await;
    assert_eq!(world.endpoint.got(), [5]);

    world.floor.value.store(7, Ordering::SeqCst);
    assert_eq!(world.until_got(2).await, [5, 7]);
}

#[tokio::test]
async fn lanes_and_probes_go_on_up_to_the_last_floor_while_the_bus_is_down() {
    let world = World::new(|_| Does::Answer).await;
    let others = world.fixture.create(8, &["order.*"]).await;
    world.floor.value.store(10, Ordering::SeqCst);
    world.open_breaker().await;
    world.start();
    until("it is open", || !world.breakers.open().is_empty()).await;
    let asked = || world.floor.asked.load(Ordering::SeqCst);
    until("a floor is known", || asked() > 0).await;

    world.floor.is_down.store(true, Ordering::SeqCst);
    let (before, since) = (asked(), Instant::now());
    let above = world.waiting_for(&others, 20, Some("above"), 0);
    world.park(vec![above]).await;
    until("it waits above the floor", || asked() > before).await;
    let below = world.waiting_for(&others, 5, Some("below"), 0);
    world
        .park(vec![below, world.waiting(6, Some("a"), 0)])
        .await;

    world.until_closed().await;
    world.until_delivered(2).await;
    let questions = asked() - before;
    assert!(
        questions as u64 <= 2 + since.elapsed().as_secs() / 3,
        "{questions} in {:?}",
        since.elapsed()
    );
    world.floor.is_down.store(false, Ordering::SeqCst);
    world.floor.value.store(20, Ordering::SeqCst);
    world.until_delivered(3).await;
}

#[tokio::test]
async fn tokens_that_a_long_request_kept_from_others_do_not_go_out_with_those_that_came_meanwhile()
{
    let world = World::new(|n| if n == 1 { Does::Hang } else { Does::Answer }).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let (requests, per) = (3, Duration::from_millis(1_500));
    let mut webhook = world.webhook.clone();
    for (name, value) in [
        ("ordering", serde_json::json!({ "key": "'a'" })),
        (
            "rateLimit",
            serde_json::json!({ "requests": 3, "per": "1500ms" }),
        ),
    ] {
        webhook.config.shown.insert(name.to_owned(), value);
    }
    let webhook = world.fixture.update(webhook).await;
    let mut work = world.fixture.begin().await;
    let rule = RateLimit::new(requests, per);
    work.put_rate_limit(webhook.id, Some(rule))
        .await
        .expect("it is kept");
    work.commit().await.expect("it is committed");
    let lane = [1, 2, 3, 4, 5, 6].map(|n| world.waiting(n, Some("a"), 0));
    world.park(lane.into()).await;
    let began = Instant::now();
    world.start();
    assert_eq!(world.until_got(1).await, [1]);
    until("the bucket is full again", || began.elapsed() > per * 2).await;

    let freed = Instant::now();
    world.endpoint.let_go.send_replace(true);

    // A full bucket, and two tokens that have yet to come.
    assert_eq!(world.until_got(6).await, [1, 2, 3, 4, 5, 6]);
    assert!(freed.elapsed() >= per / 2, "{:?}", freed.elapsed());
}

#[tokio::test]
async fn what_a_former_stream_has_left_goes_ahead_of_what_the_present_one_brings() {
    let world = World::new(|_| Does::Answer).await;
    world.floor.value.store(12, Ordering::SeqCst);
    world.floor.last.store(12, Ordering::SeqCst);
    let left = [5_000_000, 5_000_002, 5_000_001].map(|n| world.waiting(n, Some("a"), 0));
    let brought = [11, 12].map(|n| world.waiting(n, Some("a"), 0));
    // Until it is looked for them, the lane waits behind one that is not due.
    let mut front = world.waiting(1, Some("a"), 0);
    front.delivery.next_attempt_at = Some(world.clock.now() + Duration::from_hours(1));
    world.park(left.into()).await;
    world.park(brought.into()).await;
    world.park(vec![front]).await;

    world.start();

    let got = world.until_got(3).await;
    assert_eq!(got, [5_000_000, 5_000_001, 5_000_002]);
    world
        .sql("UPDATE deliveries SET due_at = 0, next_attempt_at = 0 WHERE lane_turn = 1")
        .await;
    let got = world.until_got(6).await;
    assert_eq!(got, [5_000_000, 5_000_001, 5_000_002, 1, 11, 12]);
}
