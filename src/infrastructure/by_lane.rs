//! What both stores make of the ordered deliveries that they have claimed.

use crate::domain::interfaces::{ClaimedDelivery, StoreError};

/// Sorts what was claimed into its lanes; what belongs to one lane comes together, in the order of its
/// turns. One that cannot be understood ends its lane: it is leased as the others are, and comes back with
/// what is behind it when that lease ends.
///
/// # Errors
/// Where there is nothing else, why the last of these could not be understood.
pub(super) fn by_lane<L: PartialEq>(
    claimed: impl IntoIterator<Item = (L, Result<ClaimedDelivery, StoreError>)>,
) -> Result<Vec<Vec<ClaimedDelivery>>, StoreError> {
    let mut lanes: Vec<(L, Vec<ClaimedDelivery>)> = Vec::new();
    let mut broken: Option<(L, StoreError)> = None;
    for (lane, one) in claimed {
        if broken.as_ref().is_some_and(|(stopped, _)| *stopped == lane) {
            continue;
        }
        match one {
            Ok(one) => match lanes.last_mut() {
                Some((last, deliveries)) if *last == lane => deliveries.push(one),
                _ => lanes.push((lane, vec![one])),
            },
            Err(error) => {
                tracing::error!(%error, "an ordered delivery cannot be attempted");
                broken = Some((lane, error));
            }
        }
    }
    match broken {
        Some((_, error)) if lanes.is_empty() => Err(error),
        _ => Ok(lanes.into_iter().map(|(_, lane)| lane).collect()),
    }
}
