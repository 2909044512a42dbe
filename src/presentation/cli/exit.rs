//! How a command ended.

/// How a command ended; the number is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Refused, or failed.
    Failed = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// NATS or the worker does not answer.
    Unreachable = 69,
    /// The configuration has faults.
    Configuration = 78,
}

/// Why a command was not done: how the process ends, and the text for standard error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    /// How the process ends.
    pub exit: Exit,
    /// What is wrong, and what may help.
    pub text: String,
}

impl Trouble {
    /// Refused, or failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    /// The command line cannot be understood.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// NATS or the worker does not answer.
    pub fn unreachable(text: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, text)
    }

    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }
}
