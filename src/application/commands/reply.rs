//! Replies to commands and queries (CONTRACT 3).

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::values::Fault;

/// Why a command was refused, or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Not JSON, trailing data, not an object, over the size limit.
    Malformed,
    /// Token missing, wrong, too large or expired.
    Unauthenticated,
    /// The role or tenant does not allow it.
    Forbidden,
    /// Not there, or another tenant's.
    NotFound,
    /// Name taken, `expectedVersion` differs, children, another body under the same key.
    Conflict,
    /// The entity's state forbids it.
    InvalidTransition,
    /// Faults in the input.
    ValidationFailed,
    /// A dependency is down; the only retryable one.
    Unavailable,
    /// Ours.
    Internal,
}

impl ErrorCode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::InvalidTransition => "invalid_transition",
            Self::ValidationFailed => "validation_failed",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The status, after HTTP.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::InvalidTransition => 409,
            Self::ValidationFailed => 422,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// Whether the same command may succeed later.
    pub fn is_retryable(self) -> bool {
        self == Self::Unavailable
    }
}

/// An error reply. Its texts hold no secret and no SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind.
    pub code: ErrorCode,
    /// What is wrong and what to do.
    pub message: String,
    /// Where, for inputs.
    pub details: Vec<Fault>,
}

impl Refusal {
    /// An error without details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: &'a str,
    details: &'a [Fault],
    retryable: bool,
}

/// What came of a command or query.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The data.
    Success(Value),
    /// The error.
    Failure(Refusal),
}

impl Reply {
    /// The body on the wire.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Success(data) => json!({ "success": true, "data": data }),
            Self::Failure(refusal) => {
                let Refusal {
                    code,
                    message,
                    details,
                } = refusal;
                let error = ErrorBody {
                    code: code.as_str(),
                    message,
                    details,
                    retryable: code.is_retryable(),
                };
                json!({ "success": false, "error": error })
            }
        }
    }
}
