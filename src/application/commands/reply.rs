//! Replies to commands and queries (CONTRACT 3).

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::{
    entities::InvalidTransition,
    values::{Fault, Faults},
};

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
    /// All codes, in the order of the contract.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::InvalidTransition,
        Self::ValidationFailed,
        Self::Unavailable,
        Self::Internal,
    ];

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

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

    /// An error with one detail.
    pub fn at(code: ErrorCode, path: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let details = vec![Fault {
            path: path.to_owned(),
            message: message.clone(),
        }];
        Self {
            code,
            message,
            details,
        }
    }

    /// The `error` object on the wire.
    pub fn to_json(&self) -> Value {
        json!(ErrorBody {
            code: self.code.as_str(),
            message: &self.message,
            details: &self.details,
            retryable: self.code.is_retryable(),
        })
    }

    fn from_json(error: &Value) -> Option<Self> {
        let text = |value: &Value, field: &str| value.get(field)?.as_str().map(str::to_owned);
        let details = error.get("details")?.as_array()?.iter().map(|detail| {
            Some(Fault {
                path: text(detail, "path")?,
                message: text(detail, "message")?,
            })
        });
        Some(Self {
            code: ErrorCode::parse(error.get("code")?.as_str()?)?,
            message: text(error, "message")?,
            details: details.collect::<Option<_>>()?,
        })
    }
}

impl From<Faults> for Refusal {
    fn from(faults: Faults) -> Self {
        let details = faults.into_vec();
        let message = match details.len() {
            1 => "the input has a fault: see details".to_owned(),
            n => format!("the input has {n} faults: see details"),
        };
        Self {
            code: ErrorCode::ValidationFailed,
            message,
            details,
        }
    }
}

impl From<InvalidTransition> for Refusal {
    fn from(error: InvalidTransition) -> Self {
        Self::new(ErrorCode::InvalidTransition, error.to_string())
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
            Self::Failure(refusal) => json!({ "success": false, "error": refusal.to_json() }),
        }
    }

    /// Reads a body back; `None` when it is no reply.
    pub fn from_json(mut body: Value) -> Option<Self> {
        if body.get("success")?.as_bool()? {
            Some(Self::Success(body.get_mut("data")?.take()))
        } else {
            Refusal::from_json(body.get("error")?).map(Self::Failure)
        }
    }

    /// `success`, or the error's code: the label in logs and metrics.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Success(_) => "success",
            Self::Failure(refusal) => refusal.code.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_survives_being_kept() {
        let replies = ErrorCode::ALL.map(|code| Reply::Failure(Refusal::at(code, "a.b", "text")));
        for reply in replies
            .into_iter()
            .chain([Reply::Success(json!({ "a": [1] }))])
        {
            assert_eq!(Reply::from_json(reply.to_json()), Some(reply));
        }
        for other in [
            json!({}),
            json!({ "success": 1 }),
            json!({ "success": false }),
        ] {
            assert_eq!(Reply::from_json(other), None);
        }
    }

    #[test]
    fn an_error_has_the_shape_of_the_contract() {
        let reply = Reply::Failure(Refusal::at(ErrorCode::Unavailable, "x", "down"));
        assert_eq!(
            reply.to_json().to_string(),
            r#"{"success":false,"error":{"code":"unavailable","message":"down","details":[{"path":"x","message":"down"}],"retryable":true}}"#
        );
    }
}
