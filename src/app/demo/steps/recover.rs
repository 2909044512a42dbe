//! Step 4: an endpoint fails, and recovers.

use chrono::{DateTime, FixedOffset};
use serde_json::{Value, json};

use super::{
    super::{
        erp,
        expectations::Expectation,
        missed::{Missed, check},
        walk::Walk,
    },
    paths,
};

/// The goods are refused twice, and taken at the third try.
pub(in super::super) async fn recovered(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("An endpoint that answers 503 is tried again, ever later");
    let told = walk.events.wait_one("webhook.triggered", |event| {
        event["data"]["eventId"] == erp::GOODS
    });
    let told = told.await?;
    let id = &told["data"]["deliveryId"];
    let delivery = walk.user.ask("delivery.get", &json!({ "id": id })).await?;
    walk.out()
        .say("Its delivery, as integration.api.delivery.get shows it:");
    for line in attempts(&delivery) {
        walk.out().show(&line);
    }
    let statuses = statuses(&delivery);
    check(
        delivery["status"] == "delivered" && statuses == [503, 503, 200],
        format!("the delivery was {} after {statuses:?}", delivery["status"]),
    )?;
    let requests = walk.ground.inbox.of(paths::GOODS);
    walk.verify_same(&requests)?;
    check(
        requests.len() == 3,
        format!("{} requests for 3 attempts", requests.len()),
    )?;
    walk.saw(Expectation::Recovered);
    Ok(())
}

fn statuses(delivery: &Value) -> Vec<i64> {
    let attempts = delivery["attempts"].as_array().into_iter().flatten();
    attempts
        .filter_map(|attempt| attempt["statusCode"].as_i64())
        .collect()
}

/// A line for each attempt, with its distance from the one before.
fn attempts(delivery: &Value) -> Vec<String> {
    let mut former: Option<DateTime<FixedOffset>> = None;
    let attempts = delivery["attempts"].as_array().into_iter().flatten();
    let line = |attempt: &Value| {
        let begun = attempt["startedAt"].as_str();
        let begun = begun.and_then(|text| DateTime::parse_from_rfc3339(text).ok());
        let waited = match (former, begun) {
            (Some(former), Some(begun)) => {
                format!(
                    ", {} ms after the one before",
                    (begun - former).num_milliseconds()
                )
            }
            _ => String::new(),
        };
        former = begun;
        let answer = match attempt["error"].as_str() {
            Some(error) => error.to_owned(),
            None => format!("HTTP {}", attempt["statusCode"]),
        };
        format!("attempt {}: {answer}{waited}", attempt["number"])
    };
    attempts.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_shown_with_what_lay_between_them() {
        let delivery = json!({ "attempts": [
            { "number": 1, "startedAt": "2026-11-02T08:14:09.120Z", "statusCode": 503, "error": "HTTP 503" },
            { "number": 2, "startedAt": "2026-11-02T08:14:09.231Z", "error": "timeout" },
            { "number": 3, "startedAt": "2026-11-02T08:14:10.231Z", "statusCode": 200 },
        ]});
        assert_eq!(
            attempts(&delivery),
            [
                "attempt 1: HTTP 503",
                "attempt 2: timeout, 111 ms after the one before",
                "attempt 3: HTTP 200, 1000 ms after the one before",
            ]
        );
        assert_eq!(statuses(&delivery), [503, 200]);
        assert!(attempts(&json!({})).is_empty());
    }
}
