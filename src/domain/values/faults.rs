//! The faults of an input, collected so that all of them are told at once.

use serde::Serialize;

/// One fault: where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The field, as `config.url` or `events[0]`; empty for the body as a whole.
    pub path: String,
    /// What is wrong and what is allowed. Never holds the value of a secret.
    pub message: String,
}

/// A growing list of faults, at most [`Faults::MAX`] of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// How many faults are told at most.
    pub const MAX: usize = 100;

    /// Adds a fault.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        if self.0.len() < Self::MAX {
            self.0.push(Fault {
                path: path.into(),
                message: message.into(),
            });
        }
    }

    /// Whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok(value)` when nothing was wrong.
    ///
    /// # Errors
    /// The faults, when there are any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }

    /// The faults in the order in which they were found.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}
