//! What came of a request, as an attempt to keep.

use crate::domain::{entities::Attempt, policies::Answer, values::Timestamp};

use super::ports::{HttpAnswer, SendError};

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
