//! The leases that this worker holds on parked deliveries. They are short, so that the deliveries of a
//! worker that died are soon somebody else's, and renewed while the work goes on.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::domain::{interfaces::Lease, values::DeliveryId};

/// How long a lease holds: after the death of a worker its deliveries wait this long.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often leases are renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Leases by delivery.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<DeliveryId, Lease>>);

impl Leases {
    /// From now on it is renewed.
    pub fn hold(&self, lease: Lease) {
        self.lock().insert(lease.delivery_id, lease);
    }

    /// They are renewed no longer; a newer lease on the same delivery is.
    pub fn forget<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        let mut held = self.lock();
        for lease in leases {
            if held.get(&lease.delivery_id) == Some(lease) {
                held.remove(&lease.delivery_id);
            }
        }
    }

    /// All that are held.
    pub fn all(&self) -> Vec<Lease> {
        self.lock().values().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeliveryId, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
