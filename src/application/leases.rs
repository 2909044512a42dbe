//! The leases that this worker holds on parked deliveries. They are short, so that the deliveries of a
//! worker that died are soon somebody else's, and renewed while the work goes on.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::domain::{interfaces::Lease, values::DeliveryId};

/// How long a lease holds: after the death of a worker its deliveries wait this long.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often leases are renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Leases by delivery, each with the end that is known for sure.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<DeliveryId, (Lease, Instant)>>);

impl Leases {
    /// From now on it is renewed. It was taken by a call that began at `began`.
    pub fn hold(&self, lease: Lease, began: Instant) {
        self.lock()
            .insert(lease.delivery_id, (lease, began + LEASE));
    }

    /// Of `asked`, which a call that began at `began` was to prolong, `held` are; the others are lost.
    pub fn renewed(&self, asked: &[Lease], held: &[Lease], began: Instant) {
        let mut kept = self.lock();
        for lease in held {
            if let Some((known, end)) = kept.get_mut(&lease.delivery_id)
                && known == lease
            {
                *end = began + LEASE;
            }
        }
        drop(kept);
        let held: HashMap<DeliveryId, i64> = held
            .iter()
            .map(|lease| (lease.delivery_id, lease.epoch))
            .collect();
        let is_lost = |lease: &&Lease| held.get(&lease.delivery_id) != Some(&lease.epoch);
        self.forget(asked.iter().filter(is_lost));
    }

    /// Whether it is held and has not run out, as far as this worker knows.
    pub fn is_in_force(&self, lease: &Lease) -> bool {
        self.lock()
            .get(&lease.delivery_id)
            .is_some_and(|(held, end)| held == lease && Instant::now() < *end)
    }

    /// They are renewed no longer; a newer lease on the same delivery is.
    pub fn forget<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        let mut held = self.lock();
        for lease in leases {
            if held.get(&lease.delivery_id).map(|(held, _)| held) == Some(lease) {
                held.remove(&lease.delivery_id);
            }
        }
    }

    /// All that are held.
    pub fn all(&self) -> Vec<Lease> {
        self.lock().values().map(|(lease, _)| *lease).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeliveryId, (Lease, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn lease(number: u128, epoch: i64) -> Lease {
        Lease {
            delivery_id: DeliveryId(Uuid::from_u128(number)),
            epoch,
        }
    }

    #[test]
    fn what_the_store_does_not_prolong_is_held_no_longer() {
        let leases = Leases::default();
        let (held, lost, newer) = (lease(1, 1), lease(2, 1), lease(3, 2));
        let asked = [held, lost, lease(3, 1)];
        let began = Instant::now();
        for one in [held, lost, newer] {
            leases.hold(one, began);
        }

        leases.renewed(&asked, &[held], began + LEASE);

        assert!(leases.is_in_force(&held));
        assert!(!leases.is_in_force(&lost));
        assert!(leases.is_in_force(&newer), "it was taken meanwhile");
        let mut all = leases.all();
        all.sort_by_key(|one| one.delivery_id);
        assert_eq!(all, [held, newer]);
    }
}
