//! The floor of the ordered lanes as it was last told: how far the source stream is settled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::shared::error_chain::Chain;

use super::ports::SourceFloor;

/// How long a floor is taken for true. It falls when the source stream was deleted and made anew. Also how
/// long the bus is left alone after it gave no answer: the last floor will do while it is down.
const FLOOR_HOLDS: Duration = Duration::from_secs(3);

/// The floor as it was last told.
pub(super) struct KnownFloor {
    source: Arc<dyn SourceFloor>,
    sequence: i64,
    asked: Option<Asked>,
}

/// The last question.
#[derive(Clone, Copy)]
struct Asked {
    /// When the answer came: a bus that is down takes its time, and is not asked again at once.
    at: Instant,
    is_answered: bool,
}

impl KnownFloor {
    /// Nothing is settled as far as is known.
    pub(super) fn new(source: &Arc<dyn SourceFloor>) -> Self {
        Self {
            source: Arc::clone(source),
            sequence: 0,
            asked: None,
        }
    }

    /// Up to where the source stream is settled.
    pub(super) fn sequence(&self) -> i64 {
        self.sequence
    }

    /// Asks where the last answer is too old; whether it is told anew.
    pub(super) async fn keep_fresh(&mut self) -> bool {
        match self.asked {
            Some(asked) if asked.at.elapsed() < FLOOR_HOLDS => false,
            _ => self.ask().await,
        }
    }

    /// Asks because something waits above it; whether it is told anew.
    pub(super) async fn ask_again(&mut self) -> bool {
        match self.asked {
            Some(asked) if !asked.is_answered && asked.at.elapsed() < FLOOR_HOLDS => false,
            _ => self.ask().await,
        }
    }

    async fn ask(&mut self) -> bool {
        let told = self.source.floor().await;
        let is_answered = told.is_ok();
        self.asked = Some(Asked {
            at: Instant::now(),
            is_answered,
        });
        match told {
            Ok(sequence) => self.sequence = sequence,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the floor of the source stream is not known");
            }
        }
        is_answered
    }
}
