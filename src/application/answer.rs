//! What came of a request, as an attempt to keep.

use crate::domain::{entities::Attempt, policies::Answer, values::Timestamp};

use super::{
    deliver::{NO_NAMES, NO_TOKEN},
    ports::{HttpAnswer, SendError, TokenFault},
};

/// What the sender's result says, as an attempt to keep and an answer to decide by.
pub(super) fn attempt_of(
    number: i32,
    started_at: Timestamp,
    duration_ms: i64,
    result: Result<HttpAnswer, SendError>,
) -> (Attempt, Answer) {
    let (answer, status_code, error, response) = match result {
        Ok(http) => {
            let answer = Answer::Status(http.status, http.retry_after);
            let error = (!answer.is_success()).then(|| format!("HTTP {}", http.status));
            // PostgreSQL keeps no NUL in texts.
            let response = (!http.body.is_empty()).then(|| http.body.replace('\0', "\u{fffd}"));
            (answer, Some(http.status), error, response)
        }
        Err(error) => (Answer::None, None, Some(error.to_string()), None),
    };
    let attempt = Attempt {
        number,
        started_at,
        duration_ms,
        status_code,
        error,
        response,
    };
    (attempt, answer)
}

/// Whose doing it is that an attempt is no success.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Endpoint,
    /// The address is one that nothing is sent to.
    Address,
}

impl Fault {
    /// `Err` when it is nobody's or this worker's surroundings': why the delivery waits.
    pub(super) fn of(error: &SendError) -> Result<Self, &'static str> {
        let reason = match error {
            SendError::Lookup(_) => NO_NAMES,
            SendError::Token { fault, .. } => match fault {
                TokenFault::None => NO_TOKEN,
                TokenFault::Address => return Ok(Self::Address),
                TokenFault::Partner => return Ok(Self::Endpoint),
            },
            SendError::Refused(_) => return Ok(Self::Address),
            _ => return Ok(Self::Endpoint),
        };
        tracing::debug!(%error, reason, "nothing was sent");
        Err(reason)
    }
}
