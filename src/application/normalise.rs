//! Reads a business event out of a message, whatever envelope it came in (CONTRACT 6).

use crate::domain::{events::BusinessEvent, values::TenantId};

use super::ports::SourceMessage;

/// What the messages of one stream are read with.
#[derive(Debug, Clone)]
pub struct Normaliser {
    /// The source stream's name; part of derived ids.
    pub stream: String,
    /// For events that name no tenant.
    pub default_tenant: TenantId,
    /// Longest body, in bytes.
    pub max_bytes: usize,
}

/// Why a message is no event: `<code>: <text>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Unreadable {
    /// `empty` or `too_large`.
    pub code: &'static str,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl Normaliser {
    /// Reads one message.
    ///
    /// # Errors
    /// [`Unreadable`] when its body is empty or too large; every other message is an event.
    pub fn event(&self, message: &SourceMessage) -> Result<BusinessEvent, Unreadable> {
        let _ = message;
        Err(Unreadable {
            code: "empty",
            text: "not read yet".to_owned(),
        })
    }
}
