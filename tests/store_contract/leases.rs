//! Leases: whoever holds one may record, and nobody else.

use chrono::TimeDelta;
use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus},
    interfaces::{ClaimRequest, Lease},
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, delivery, ours, parked, under_lease},
};

both!(
    a_lease_keeps_others_out_until_it_ends,
    an_expired_lease_is_claimed_again_and_the_old_one_is_fenced,
    a_lost_lease_changes_nothing,
    an_outcome_ends_its_lease,
    a_renewed_lease_holds_longer_and_is_still_the_same,
    renewing_a_lost_lease_changes_nothing,
    a_released_delivery_is_due_again_when_it_is_said,
    releasing_a_lost_lease_does_not_touch_the_new_one,
    a_user_who_retries_ends_a_lease,
    a_user_who_cancels_ends_a_lease,
);

fn request(now: i64, lease_until: i64) -> ClaimRequest {
    ClaimRequest {
        lease_until: at(lease_until),
        ..everything_due(at(now))
    }
}

async fn a_lease_keeps_others_out_until_it_ends(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;

    let first = database.claim(&request(1, 1_000)).await;

    assert_eq!(first.len(), 1);
    assert_eq!(first[0].delivery, one);
    assert_eq!(first[0].lease.delivery_id, one.id);
    assert_eq!(database.claim(&request(1, 1_000)).await, []);
    assert_eq!(database.claim(&request(999, 2_000)).await, []);
    assert_eq!(database.claim(&request(1_001, 2_000)).await.len(), 1);
    // A claim changes nothing that a reader sees.
    assert_eq!(database.stored(&one).await, Some(one));
}

async fn an_expired_lease_is_claimed_again_and_the_old_one_is_fenced(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;
    let mut leases: Vec<Lease> = Vec::new();
    for round in 0..3 {
        let now = 1 + round * 1_001;
        let claimed = database.claim(&request(now, now + 1_000)).await;
        assert_eq!(claimed[0].delivery, one);
        assert_eq!(claimed[0].event, parked(&one).event.expect("it waits"));
        leases.push(claimed[0].lease);
    }
    assert!(leases.is_sorted_by(|a, b| a.epoch < b.epoch), "{leases:?}");

    for lost in &leases[..2] {
        let late = under_lease(*lost, &one, DeliveryStatus::Delivered, at(5_000));
        assert_eq!(database.record_leased(vec![late]).await, []);
    }
    assert_eq!(database.stored(&one).await.as_ref(), Some(&one));
    let good = under_lease(leases[2], &one, DeliveryStatus::Delivered, at(5_000));
    assert_eq!(database.record_leased(vec![good.clone()]).await, [one.id]);
    assert_eq!(database.stored(&one).await, Some(good.delivery));
}

async fn a_lost_lease_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let (one, other) = (delivery(&hook, 1), delivery(&hook, 2));
    database
        .record_first(vec![parked(&one), parked(&other)])
        .await;
    let claimed = database.claim(&request(2, 1_000)).await;
    let lease = |id| {
        let found = claimed.iter().find(|claimed| claimed.delivery.id == id);
        found.expect("it is due").lease
    };
    let lost = Lease {
        epoch: lease(one.id).epoch - 1,
        ..lease(one.id)
    };
    let unborn = Lease {
        epoch: lease(one.id).epoch + 1,
        ..lease(one.id)
    };
    let held = under_lease(lease(other.id), &other, DeliveryStatus::Delivered, at(3));
    let batch = vec![
        under_lease(lost, &one, DeliveryStatus::Delivered, at(3)),
        under_lease(unborn, &one, DeliveryStatus::Exhausted, at(3)),
        held.clone(),
    ];

    assert_eq!(database.record_leased(batch).await, [other.id]);

    let read = database.store.delivery(&ours(), one.id).await;
    assert_eq!(read.expect("it reads"), Some((one.clone(), Vec::new())));
    assert!(database.keeps_event(&one).await);
    let outbox = database.outbox().await;
    assert_eq!(outbox.len(), 1);
    assert_eq!(outbox[0].id, held.events[0].id);
    // The holder of the lease is not disturbed either.
    let good = under_lease(lease(one.id), &one, DeliveryStatus::Delivered, at(3));
    assert_eq!(database.record_leased(vec![good]).await, [one.id]);
}

async fn an_outcome_ends_its_lease(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;
    let claimed = database.claim(&request(1, 1_000_000)).await;
    let failed = under_lease(claimed[0].lease, &one, DeliveryStatus::Pending, at(3));
    let due = failed.delivery.next_attempt_at.expect("it waits");
    assert!(due < at(1_000_000));
    assert_eq!(database.record_leased(vec![failed.clone()]).await, [one.id]);

    // A second outcome under the same lease is lost.
    let second = under_lease(
        claimed[0].lease,
        &failed.delivery,
        DeliveryStatus::Delivered,
        at(4),
    );
    assert_eq!(database.record_leased(vec![second]).await, []);
    assert_eq!(database.stored(&one).await.as_ref(), Some(&failed.delivery));
    // It is due when the outcome says, whatever the lease had said.
    let early = everything_due(due - TimeDelta::milliseconds(1));
    assert_eq!(database.claim(&early).await, []);
    let again = database.claim(&everything_due(due)).await;
    assert_eq!(again.len(), 1);
    assert!(again[0].lease.epoch > claimed[0].lease.epoch);
}

/// Answers the leases that are held.
async fn renew(database: &Database, leases: &[Lease], until: i64) -> Vec<Lease> {
    let renewed = database.store.renew(leases, at(until)).await;
    let mut held = renewed.expect("a lost lease is no error");
    held.sort_by_key(|lease| lease.delivery_id);
    held
}

async fn a_renewed_lease_holds_longer_and_is_still_the_same(database: &Database) {
    let hook = our_webhook(database).await;
    let all = [delivery(&hook, 1), delivery(&hook, 2)];
    database
        .record_first(all.iter().map(parked).collect())
        .await;
    let claimed = database.claim(&request(2, 1_000)).await;
    let mut leases: Vec<Lease> = claimed.iter().map(|one| one.lease).collect();
    leases.sort_by_key(|lease| lease.delivery_id);

    assert_eq!(renew(database, &[], 2_000).await, []);
    assert_eq!(renew(database, &leases, 2_000).await, leases);

    assert_eq!(database.claim(&request(1_999, 3_000)).await, []);
    for one in &all {
        assert_eq!(database.stored(one).await.as_ref(), Some(one));
    }
    let good = under_lease(
        claimed[0].lease,
        &claimed[0].delivery,
        DeliveryStatus::Delivered,
        at(1_999),
    );
    let id = claimed[0].delivery.id;
    assert_eq!(database.record_leased(vec![good]).await, [id]);
    let other = database.claim(&request(2_001, 3_000)).await;
    assert_eq!(other.len(), 1);
    assert_eq!(other[0].delivery, claimed[1].delivery);
}

async fn renewing_a_lost_lease_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let [taken, released, failed, done] = [1, 2, 3, 4].map(|number| delivery(&hook, number));
    let lease_on = async |one: &Delivery, now| {
        let claimed = database.claim(&request(now, now + 1_000)).await;
        let claimed = claimed
            .into_iter()
            .find(|other| other.delivery.id == one.id);
        claimed.expect("it is due").lease
    };
    // Each loses its lease in another way.
    database.record_first(vec![parked(&taken)]).await;
    let mut lost = vec![lease_on(&taken, 10).await];
    let held = lease_on(&taken, 1_011).await;
    database.record_first(vec![parked(&released)]).await;
    lost.push(lease_on(&released, 20).await);
    let given_back = database.store.release(&lost[1..], at(30)).await;
    given_back.expect("it is given back");
    let mut ended = Vec::new();
    for (one, status) in [
        (&failed, DeliveryStatus::Pending),
        (&done, DeliveryStatus::Delivered),
    ] {
        database.record_first(vec![parked(one)]).await;
        let lease = lease_on(one, 10).await;
        let record = under_lease(lease, one, status, at(11));
        assert_eq!(database.record_leased(vec![record.clone()]).await, [one.id]);
        lost.push(lease);
        ended.push(record.delivery);
    }

    let asked = [lost, vec![held]].concat();
    assert_eq!(renew(database, &asked, 1_100).await, [held]);

    for one in &ended {
        assert_eq!(database.stored(one).await.as_ref(), Some(one));
    }
    let due = database.claim(&request(100_000, 200_000)).await;
    assert_eq!(due.len(), 3, "all that wait are due as before");
    let again = due.iter().find(|one| one.delivery.id == taken.id);
    assert!(again.expect("its lease ended").lease.epoch > held.epoch);
}

async fn a_released_delivery_is_due_again_when_it_is_said(database: &Database) {
    let hook = our_webhook(database).await;
    let all = [delivery(&hook, 1), delivery(&hook, 2)];
    database
        .record_first(all.iter().map(parked).collect())
        .await;
    let claimed = database.claim(&request(2, 1_000_000)).await;
    let leases: Vec<Lease> = claimed.iter().map(|one| one.lease).collect();

    database
        .store
        .release(&leases, at(50))
        .await
        .expect("they are given back");

    assert_eq!(database.claim(&request(49, 100)).await, []);
    for one in &claimed {
        let late = under_lease(one.lease, &one.delivery, DeliveryStatus::Delivered, at(3));
        assert_eq!(database.record_leased(vec![late]).await, []);
    }
    let again = database.claim(&request(50, 100)).await;
    assert_eq!(again.len(), 2);
    for one in &again {
        let expected = all.iter().find(|other| other.id == one.delivery.id);
        let mut expected = expected.expect("it is ours").clone();
        expected.next_attempt_at = Some(at(50));
        assert_eq!(one.delivery, expected, "nothing else has changed");
    }
}

async fn releasing_a_lost_lease_does_not_touch_the_new_one(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;
    let old = database.claim(&request(1, 1_000)).await;
    let new = database.claim(&request(1_001, 2_000)).await;

    database
        .store
        .release(&[old[0].lease], at(7))
        .await
        .expect("a lost lease is no error");

    assert_eq!(database.stored(&one).await.as_ref(), Some(&one));
    assert_eq!(database.claim(&request(1_500, 9_000)).await, []);
    let good = under_lease(new[0].lease, &one, DeliveryStatus::Delivered, at(1_600));
    assert_eq!(database.record_leased(vec![good.clone()]).await, [one.id]);
    // Nor does it bring back what has ended.
    let released = database.store.release(&[new[0].lease], at(7)).await;
    released.expect("a lost lease is no error");
    assert_eq!(database.stored(&one).await, Some(good.delivery));
}

async fn a_user_who_retries_ends_a_lease(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;
    let claimed = database.claim(&request(1, 1_000_000)).await;
    let mut retried = one.clone();
    retried.retry(at(5)).expect("it waits");

    database
        .work(async |work| work.update_delivery(&retried).await.expect("it writes"))
        .await;

    let late = under_lease(claimed[0].lease, &one, DeliveryStatus::Delivered, at(6));
    assert_eq!(database.record_leased(vec![late]).await, []);
    let again = database.claim(&request(5, 100)).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].delivery, retried);
    assert!(again[0].lease.epoch > claimed[0].lease.epoch);
}

async fn a_user_who_cancels_ends_a_lease(database: &Database) {
    let one = delivery(&our_webhook(database).await, 1);
    database.record_first(vec![parked(&one)]).await;
    let claimed = database.claim(&request(1, 1_000)).await;
    let mut cancelled = one.clone();
    assert!(cancelled.cancel(at(5)).expect("it waits"));

    database
        .work(async |work| {
            let locked = work.delivery(&ours(), one.id).await;
            assert_eq!(locked.expect("it reads"), Some((one.clone(), true)));
            work.update_delivery(&cancelled).await.expect("it writes");
        })
        .await;

    let late = under_lease(claimed[0].lease, &one, DeliveryStatus::Pending, at(6));
    assert_eq!(database.record_leased(vec![late]).await, []);
    let released = database.store.release(&[claimed[0].lease], at(7)).await;
    released.expect("a lost lease is no error");
    assert_eq!(database.stored(&one).await, Some(cancelled));
    assert_eq!(database.claim(&request(5_000, 9_000)).await, []);
}
