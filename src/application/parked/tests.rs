use bytes::Bytes;
use uuid::Uuid;

use crate::domain::{
    entities::{Batching, Delivery, DeliveryStatus},
    interfaces::StoredEvent,
    values::{DeliveryId, TenantId},
};

use super::*;

const MS: Duration = Duration::from_millis(1);
const NEVER: Duration = Duration::MAX;

fn claimed(bytes: usize) -> ClaimedDelivery {
    let now = chrono::DateTime::UNIX_EPOCH;
    let id = DeliveryId(Uuid::nil());
    ClaimedDelivery {
        lease: Lease {
            delivery_id: id,
            epoch: 1,
        },
        delivery: Delivery {
            id,
            tenant: TenantId::try_new("valeo").unwrap(),
            webhook_id: WebhookId(Uuid::nil()),
            event_id: "1".to_owned(),
            event_type: "order.created".to_owned(),
            correlation_id: None,
            source_sequence: None,
            status: DeliveryStatus::Pending,
            attempt_count: 0,
            event_version: 0,
            budget_base: 0,
            next_attempt_at: Some(now),
            error: None,
            created_at: now,
            completed_at: None,
            lane: None,
            batch: Batching::Alone,
        },
        event: StoredEvent {
            meta: String::new(),
            raw: Bytes::from(vec![0; bytes]),
        },
    }
}

#[test]
fn a_claim_that_got_less_than_it_asked_for_met_no_crowd() {
    let half = MAX_BYTES_IN_HAND as usize / 2;
    for (bytes, limit, expected) in [
        (vec![1], 1, Found::Crowd),
        (vec![1, 1], 2, Found::Crowd),
        (vec![1, 1], 3, Found::All),
        (vec![half, half], 1_000, Found::Crowd),
        (vec![half, half - 1], 1_000, Found::All),
    ] {
        let rows: Vec<ClaimedDelivery> = bytes.iter().map(|bytes| claimed(*bytes)).collect();
        assert_eq!(Found::by(&rows, limit), expected, "{bytes:?} of {limit}");
    }
}

#[test]
fn the_next_token_is_waited_for_no_longer_than_it_takes_and_without_a_crowd_not_for_room() {
    for (found, is_idle, token_in, pause) in [
        (Found::Nothing, true, NEVER, POLL_EVERY),
        (Found::Nothing, false, NEVER, POLL_BUSY),
        (Found::Nothing, true, 30 * MS, 30 * MS),
        // Slow endpoints may hold all that is in hand.
        (Found::All, false, NEVER, POLL_BUSY),
        (Found::All, false, 7 * MS, 7 * MS),
        (Found::Crowd, false, NEVER, CROWDED_PAUSE),
        (Found::Crowd, false, 7 * MS, 7 * MS),
        (Found::NoRoom, false, NEVER, NO_ROOM_PAUSE),
        // It is worth little where there is no room.
        (Found::NoRoom, false, 7 * MS, POLL_EVERY),
    ] {
        let what = format!("{found:?}, idle {is_idle}, token in {token_in:?}");
        assert_eq!(found.pause(is_idle, token_in), pause, "{what}");
    }
}

#[test]
fn no_token_is_so_near_that_it_is_not_waited_for() {
    let now: Timestamp = chrono::DateTime::UNIX_EPOCH;
    for (in_ms, wait) in [(-5, PACE), (0, PACE), (1, PACE), (20, 20 * MS)] {
        let at = now + chrono::TimeDelta::milliseconds(in_ms);
        assert_eq!(until(Some(at), now), wait, "{in_ms}");
    }
    assert_eq!(until(None, now), NEVER);
}

#[tokio::test]
async fn neither_bell_nor_token_makes_a_claim_follow_at_once_on_one_that_found_nothing() {
    let bell = Notify::new();
    for at_most in [Duration::ZERO, MS, Duration::from_hours(1)] {
        bell.notify_one();
        let began = Instant::now();
        paced(&bell, at_most).await;
        assert!(began.elapsed() >= PACE, "{at_most:?}");
    }
}

#[tokio::test]
async fn a_bell_ends_the_wait() {
    let bell = Notify::new();
    let wait = paced(&bell, Duration::from_hours(1));
    let ring = async {
        sleep(PACE).await;
        bell.notify_one();
    };
    let both = async { tokio::join!(wait, ring) };
    let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
    assert!(ended.is_ok());
}
