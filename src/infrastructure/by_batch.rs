//! What both stores make of the deliveries that they have claimed to go out together.

use std::collections::BTreeMap;

use crate::domain::{
    interfaces::{ClaimedBatch, ClaimedDelivery, StoreError},
    values::BatchId,
};

/// Sorts what was claimed into its batches, each in an order that is the same at every claim. One that
/// cannot be understood is left out: it is leased as the others are, and comes back when that lease ends.
///
/// # Errors
/// Where there is nothing else, why the last of these could not be understood.
pub(super) fn by_batch(
    claimed: impl IntoIterator<Item = Result<ClaimedDelivery, StoreError>>,
) -> Result<Vec<ClaimedBatch>, StoreError> {
    let mut batches: BTreeMap<BatchId, Vec<ClaimedDelivery>> = BTreeMap::new();
    let mut broken = None;
    for one in claimed {
        match one {
            Ok(one) => {
                if let Some(id) = one.delivery.batch.id() {
                    batches.entry(id).or_default().push(one);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a delivery of a batch cannot be attempted");
                broken = Some(error);
            }
        }
    }
    match broken {
        Some(error) if batches.is_empty() => Err(error),
        _ => Ok(batches.into_iter().map(in_order).collect()),
    }
}

fn in_order((id, mut deliveries): (BatchId, Vec<ClaimedDelivery>)) -> ClaimedBatch {
    deliveries.sort_by_key(|one| {
        let delivery = &one.delivery;
        (delivery.created_at, delivery.source_sequence, delivery.id)
    });
    ClaimedBatch { id, deliveries }
}
