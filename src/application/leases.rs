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

    /// They were prolonged by a call that began at `began`.
    pub fn renewed(&self, leases: &[Lease], began: Instant) {
        let mut held = self.lock();
        for lease in leases {
            if let Some((known, end)) = held.get_mut(&lease.delivery_id)
                && known == lease
            {
                *end = began + LEASE;
            }
        }
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
