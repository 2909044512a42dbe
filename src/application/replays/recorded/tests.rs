use uuid::Uuid;

use super::*;
use crate::domain::values::{DeliveryId, TenantId, Timestamp, WebhookId};

const NOW: Timestamp = chrono::DateTime::from_timestamp(1_772_350_000, 0).unwrap();

fn candidate(number: i64) -> Candidate {
    Candidate {
        delivery: Delivery {
            id: id(number),
            tenant: TenantId::try_new("nord").unwrap(),
            webhook_id: WebhookId(Uuid::nil()),
            event_id: format!("e-{number}"),
            event_type: "order.created".to_owned(),
            correlation_id: None,
            source_sequence: (number > 0).then_some(number),
            status: DeliveryStatus::Delivered,
            attempt_count: 1,
            event_version: 1,
            budget_base: 0,
            next_attempt_at: None,
            error: None,
            created_at: NOW,
            completed_at: Some(NOW),
            lane: None,
            batch: Batching::Alone,
        },
        epoch: 0,
        event: None,
    }
}

fn id(number: i64) -> DeliveryId {
    DeliveryId(Uuid::from_u128(u128::try_from(number).unwrap()))
}

#[test]
fn a_page_ends_before_the_first_whose_message_is_not_settled() {
    let whole = ReplayCursor::Sequence(99);
    let up_to = |number| Some(ReplayCursor::Delivery(NOW, id(number)));
    for (numbers, unsettled, left, cursor) in [
        (vec![1, 2, 3], 3..9, vec![1, 2, 3], Some(whole)),
        (vec![1, 4, 3], 3..9, vec![1], up_to(1)),
        (vec![4, 1], 3..9, vec![], None),
        // Of a former stream, and of none.
        (vec![10, 0, 2], 3..9, vec![10, 0, 2], Some(whole)),
        (vec![10, 9, 2], 3..9, vec![10], up_to(10)),
        (vec![], 3..9, vec![], Some(whole)),
    ] {
        let mut items: Vec<Candidate> = numbers.iter().map(|n| candidate(*n)).collect();
        let found = cut(&mut items, whole, unsettled.clone());
        let items: Vec<_> = items.iter().map(|one| one.delivery.id).collect();
        let left: Vec<_> = left.into_iter().map(id).collect();
        assert_eq!((items, found), (left, cursor), "{numbers:?} {unsettled:?}");
    }
}

#[test]
fn what_has_another_state_by_now_is_left_alone() {
    use DeliveryStatus::{Cancelled, Delivered, Exhausted, Pending};
    for (status, statuses, meant) in [
        (Delivered, vec![], true),
        (Pending, vec![], false),
        (Pending, vec![Exhausted], false),
        (Exhausted, vec![Cancelled, Exhausted], true),
        (Delivered, vec![Exhausted], false),
    ] {
        assert_eq!(
            is_meant(status, &statuses),
            meant,
            "{status:?} {statuses:?}"
        );
    }
}
