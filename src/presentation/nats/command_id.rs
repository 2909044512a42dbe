//! The id of a durable command that brings none.

use uuid::{Builder, Uuid};

use crate::domain::values::Timestamp;

/// A `UUIDv7` of the time that the stream took the command, and, in place of randomness, of where it
/// lies there: a redelivery is the same command.
pub(super) fn derived_id(published_at: Timestamp, stream: &str, sequence: u64) -> Uuid {
    let place = format!("command:{stream}:{sequence}");
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, place.as_bytes());
    let mut random = [0; 10];
    // The last ten bytes; two of their bits are fixed, and so they are in a `UUIDv7`.
    for (to, from) in random.iter_mut().zip(hash.as_bytes().iter().skip(6)) {
        *to = *from;
    }
    let millis = u64::try_from(published_at.timestamp_millis()).unwrap_or_default();
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redelivery_has_the_same_id_and_another_message_another() {
        let at = chrono::DateTime::from_timestamp_millis(1_790_230_470_084).unwrap();
        let id = derived_id(at, "INTEGRATION_COMMANDS", 7);
        assert_eq!(id, derived_id(at, "INTEGRATION_COMMANDS", 7));
        assert_ne!(id, derived_id(at, "INTEGRATION_COMMANDS", 8));
        assert_ne!(id, derived_id(at, "SITE_COMMANDS", 7));
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanos), (1_790_230_470, 84_000_000));
    }
}
