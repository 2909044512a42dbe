//! The box of dead letters: what it holds, and what can be done with a letter.

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::values::Timestamp;

use super::ports::BusError;

/// What the reason says of a letter whose body did not fit: half a message is not sent again.
pub const CUT_BODY: &str = "the body was cut from ";

/// The id of a letter in the box: its sequence there and the millisecond at which it was added, as
/// `42-1790230470084`. So it never means another letter, even after the stream was made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LetterId {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was added, in milliseconds since 1970.
    pub added_ms: i64,
}

/// The text is no id of a dead letter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be the id of a dead letter, as deadletter.list answers it")]
pub struct LetterIdError;

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.sequence, self.added_ms)
    }
}

impl FromStr for LetterId {
    type Err = LetterIdError;

    fn from_str(text: &str) -> Result<Self, LetterIdError> {
        let parts = text.split_once('-');
        let id = parts.and_then(|(sequence, added_ms)| {
            Some(Self {
                sequence: sequence.parse().ok()?,
                added_ms: added_ms.parse().ok()?,
            })
        });
        // One letter, one id: no signs, no leading zeros.
        id.filter(|id| id.to_string() == text).ok_or(LetterIdError)
    }
}

/// A letter as the box holds it.
#[derive(Clone)]
pub struct KeptLetter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was added.
    pub added_at: Timestamp,
    /// `commands` or `events`.
    pub kind: &'static str,
    /// `<code>: <text>`.
    pub reason: String,
    /// The tenant, where one is named.
    pub tenant: Option<String>,
    /// Where it came from.
    pub subject: String,
    /// The stream that it came from.
    pub stream: String,
    /// Its sequence there, where it is known.
    pub origin_sequence: Option<u64>,
    /// When that stream took it, where it is known.
    pub published_at: Option<Timestamp>,
    /// The original's headers, in order.
    pub headers: Vec<(String, String)>,
    /// The length of the body in bytes.
    pub size: usize,
    /// The original's body; empty in a [`Slice`].
    pub body: Bytes,
}

/// Headers and body may hold secrets.
impl fmt::Debug for KeptLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptLetter")
            .field("id", &self.id())
            .field("kind", &self.kind)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

impl KeptLetter {
    /// Its id.
    pub fn id(&self) -> LetterId {
        LetterId {
            sequence: self.sequence,
            added_ms: self.added_at.timestamp_millis(),
        }
    }

    /// Code and text of the reason.
    pub fn reason(&self) -> (&str, &str) {
        self.reason
            .split_once(": ")
            .unwrap_or(("unknown", &self.reason))
    }

    /// Whether a part of the body is lost.
    pub fn is_cut(&self) -> bool {
        self.reason.ends_with(')') && self.reason.contains(CUT_BODY)
    }
}

/// Some neighbouring letters, without their bodies.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// The letters.
    pub letters: Vec<KeptLetter>,
    /// Where to go on; `None` when there is nothing more.
    pub next: Option<u64>,
}

/// Figures of the box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BoxState {
    /// How many letters it holds.
    pub count: u64,
    /// When the oldest of them was added.
    pub oldest: Option<Timestamp>,
    /// How long it keeps a letter; `None` is for ever.
    pub max_age: Option<Duration>,
}

/// Why a letter was not sent again.
#[derive(Debug, thiserror::Error)]
pub enum SendAgainError {
    /// It will never be taken; says why.
    #[error("{0}")]
    Refused(String),
    /// The bus did not take it.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The box of dead letters. What it answers may be as old as the last letter that somebody added.
#[async_trait]
pub trait DeadLetterBox: Send + Sync {
    /// Figures of the box.
    async fn state(&self) -> Result<BoxState, BusError>;
    /// One letter, with its body.
    async fn letter(&self, id: LetterId) -> Result<Option<KeptLetter>, BusError>;
    /// A few of the newest letters with a sequence of at most `from`, newest first.
    async fn newest(&self, from: Option<u64>) -> Result<Slice, BusError>;
    /// A few of the oldest letters with a sequence of at least `from`, oldest first.
    async fn oldest(&self, from: u64) -> Result<Slice, BusError>;
    /// Publishes the original on its subject again; repeated within ten minutes it is one message.
    async fn send_again(&self, letter: &KeptLetter) -> Result<(), SendAgainError>;
    /// Deletes a letter; one that is gone already is no error.
    async fn remove(&self, id: LetterId) -> Result<(), BusError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way() {
        let id = LetterId {
            sequence: 42,
            added_ms: 1_790_230_470_084,
        };
        assert_eq!("42-1790230470084".parse(), Ok(id));
        assert_eq!(id.to_string(), "42-1790230470084");
        for other in [
            "",
            "42",
            "42-",
            "-1",
            "042-1",
            "+42-1",
            "42-+1",
            "42-01",
            "42-1 ",
            "a-1",
            "99999999999999999999-1",
        ] {
            assert_eq!(other.parse::<LetterId>(), Err(LetterIdError), "{other}");
        }
    }
}
