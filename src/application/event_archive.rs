//! The source stream as a port, read back: what it still holds, settled or not.

use async_trait::async_trait;

use crate::domain::values::Timestamp;

use super::ports::{BusError, SourceMessage};

/// One place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivePlace {
    /// The sequence of a message.
    pub sequence: u64,
    /// When the stream took it.
    pub published_at: Timestamp,
}

/// From where to where the stream holds messages; there may be gaps between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveBounds {
    /// The oldest message.
    pub first: ArchivePlace,
    /// The newest one.
    pub last: ArchivePlace,
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveStart {
    /// With the first message of at least this sequence.
    Sequence(u64),
    /// With the first message that the stream took at or after this time.
    Time(Timestamp),
}

/// How much a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimit {
    /// Messages at most; more than [`ArchiveLimit::MAX_MESSAGES`] are never read at a time.
    pub messages: usize,
    /// Bytes of bodies at most; one message is read even if it alone is larger.
    pub bytes: usize,
}

impl ArchiveLimit {
    /// Messages of a page at most.
    pub const MAX_MESSAGES: usize = 1_000;
}

impl Default for ArchiveLimit {
    fn default() -> Self {
        Self {
            messages: Self::MAX_MESSAGES,
            bytes: 8 * 1024 * 1024,
        }
    }
}

/// Some messages, oldest first.
#[derive(Debug, Clone, Default)]
pub struct ArchivePage {
    /// As they were published; their `deliveries` is 0. Those that can be no event because their
    /// headers cannot be read are left out, as they are dead letters.
    pub messages: Vec<SourceMessage>,
    /// The sequence with which the next page begins.
    pub next: u64,
    /// Whether the stream held nothing from `next` on.
    pub is_end: bool,
}

/// Reads the source stream back. Nothing is settled by it, taken from any consumer, or left behind on
/// the server.
#[async_trait]
pub trait EventArchive: Send + Sync {
    /// From where to where there are messages; `None` when there are none.
    async fn bounds(&self) -> Result<Option<ArchiveBounds>, BusError>;
    /// One message; `None` when it is there no more, or can be no event.
    async fn message(&self, sequence: u64) -> Result<Option<SourceMessage>, BusError>;
    /// The messages from a place on. May be shorter than the limit, and empty before the end.
    async fn page(&self, from: ArchiveStart, limit: ArchiveLimit) -> Result<ArchivePage, BusError>;
}
