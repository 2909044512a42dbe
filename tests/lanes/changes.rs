//! Webhooks that change while one of their lanes is in hand.

use std::sync::atomic::Ordering;

use integration_worker::domain::entities::{DeliveryStatus, Webhook, WebhookStatus};
use serde_json::json;

use crate::world::{Does, World, until};

/// Events 1 to 3 wait in one lane, the request of the first one is under way, and hangs.
async fn first_under_way(first: Does, on_exhausted: &str) -> (World, Webhook) {
    let world = World::new(move |n| if n == 1 { first } else { Does::Answer }).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let webhook = with(
        world.webhook.clone(),
        &[
            (
                "ordering",
                json!({ "key": "'a'", "onExhausted": on_exhausted }),
            ),
            ("retryPolicy", json!({ "maxRetries": 0 })),
        ],
    );
    let webhook = world.fixture.update(webhook).await;
    let lane = [1, 2, 3].map(|n| world.waiting(n, Some("a"), 0));
    world.park(lane.into()).await;
    world.start();
    assert_eq!(world.until_got(1).await, [1]);
    (world, webhook)
}

fn with(mut webhook: Webhook, settings: &[(&str, serde_json::Value)]) -> Webhook {
    for (name, value) in settings {
        let shown = &mut webhook.config.shown;
        shown.insert((*name).to_owned(), value.clone());
    }
    webhook
}

fn let_go(world: &World) {
    world.endpoint.let_go.send_replace(true);
}

#[tokio::test]
async fn a_lane_goes_on_that_blocks_no_more_when_its_front_is_exhausted() {
    let (world, webhook) = first_under_way(Does::HangAndFail, "block").await;

    let continues = json!({ "key": "'a'", "onExhausted": "continue" });
    let webhook = with(webhook, &[("ordering", continues)]);
    world.fixture.update(webhook).await;
    let_go(&world);

    assert_eq!(world.until_got(3).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_lane_stops_whose_webhook_came_to_block_while_its_front_was_under_way() {
    let (world, webhook) = first_under_way(Does::HangAndFail, "continue").await;

    let blocks = json!({ "key": "'a'", "onExhausted": "block" });
    let webhook = with(webhook, &[("ordering", blocks)]);
    world.fixture.update(webhook).await;
    let_go(&world);

    until("no lease is left", || world.leases.all().is_empty()).await;
    assert_eq!(world.endpoint.got(), [1]);
    assert_eq!(world.blocking().await, [1]);
}

#[tokio::test]
async fn what_is_in_hand_of_a_lane_goes_out_by_the_webhook_as_it_is_by_then() {
    let (world, webhook) = first_under_way(Does::Hang, "continue").await;

    let transform = json!("{'n': data.n + 100}");
    let webhook = with(webhook, &[("transform", transform)]);
    world.fixture.update(webhook).await;
    let_go(&world);

    assert_eq!(world.until_got(3).await, [1, 102, 103]);
}

#[tokio::test]
async fn what_is_in_hand_of_a_lane_waits_for_a_webhook_that_was_stopped() {
    let error = "410".to_owned();
    for stopped in [WebhookStatus::Inactive, WebhookStatus::Error { error }] {
        let (world, mut webhook) = first_under_way(Does::Hang, "continue").await;
        webhook.status = stopped;
        let mut webhook = world.fixture.update(webhook).await;
        let_go(&world);
        until("no lease is left", || world.leases.all().is_empty()).await;
        assert_eq!(world.endpoint.got(), [1]);

        webhook.status = WebhookStatus::Active;
        world.fixture.update(webhook).await;
        assert_eq!(world.until_got(3).await, [1, 2, 3]);
    }
}

#[tokio::test]
async fn lanes_go_on_that_are_blocked_and_whose_webhook_does_not_ask_for_it() {
    let world = World::new(|_| Does::Answer).await;
    world.floor.value.store(10, Ordering::SeqCst);
    let asks = world.fixture.create(8, &["order.*"]).await;
    let blocks = json!({ "key": "'a'", "onExhausted": "block" });
    let asks = world
        .fixture
        .update(with(asks, &[("ordering", blocks)]))
        .await;
    let mut blocker = world.waiting(1, Some("a"), 0);
    let mut other = world.waiting_for(&asks, 3, Some("a"), 0);
    for record in [&mut blocker, &mut other] {
        record.delivery.status = DeliveryStatus::Exhausted;
        record.delivery.completed_at = record.delivery.next_attempt_at.take();
        record.delivery.block_lane();
    }
    let behind = world.waiting(2, Some("a"), 0);
    let behind_other = world.waiting_for(&asks, 4, Some("a"), 0);
    world.park(vec![blocker, behind, other, behind_other]).await;
    assert_eq!(world.blocking().await, [1, 3]);

    world.start();

    assert_eq!(world.until_got(1).await, [2]);
    assert_eq!(world.blocking().await, [3]);
}
