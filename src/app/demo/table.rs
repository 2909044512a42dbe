//! Domain events as lines of a table.

use std::collections::BTreeMap;

use serde_json::Value;

/// What ids are called for the reader.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    pub(super) fn add(&mut self, id: &str, name: &str) {
        self.0.insert(id.to_owned(), name.to_owned());
    }

    fn of<'a>(&'a self, id: &'a str) -> &'a str {
        self.0.get(id).map_or(id, String::as_str)
    }
}

/// One event: when, what, which version, about whom, and what there is to say.
pub(super) fn line(event: &Value, names: &Names) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = text(&event["time"]);
    let clock = time.get(11..23).unwrap_or_default();
    let (kind, data) = (text(&event["type"]), &event["data"]);
    let about = match data["eventType"].as_str() {
        Some(event_type) => format!("{event_type} → {}", names.of(&text(&data["webhookId"]))),
        None => named(event, names),
    };
    let version = event["aggregateversion"].as_i64().unwrap_or_default();
    let line = format!(
        "{clock}  {kind:<20} v{version:<2} {about:<46} {}",
        details(data)
    );
    line.trim_end().to_owned()
}

fn named(event: &Value, names: &Names) -> String {
    let data = &event["data"];
    let name = data["name"].as_str().or_else(|| data["action"].as_str());
    let name = name.or_else(|| data["originSubject"].as_str());
    let subject = event["subject"].as_str().unwrap_or_default();
    name.unwrap_or_else(|| names.of(subject)).to_owned()
}

fn details(data: &Value) -> String {
    let mut details = Vec::new();
    if let Some(attempt) = data["attempt"].as_i64() {
        details.push(format!("attempt {attempt}"));
    }
    match (data["error"].as_str(), data["statusCode"].as_i64()) {
        (Some(error), _) => details.push(error.to_owned()),
        (None, Some(status)) => details.push(format!("HTTP {status}")),
        (None, None) => {}
    }
    if let Some(reason) = data["reason"].as_str() {
        details.push(reason.to_owned());
    }
    details.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut names = Names::default();
        names.add("w-1", "Ledger");
        for (kind, subject, data, expected) in [
            (
                "webhook.failed",
                "d-1",
                json!({ "eventType": "a.b", "webhookId": "w-1", "attempt": 2, "statusCode": 503, "error": "HTTP 503" }),
                "08:14:09.120  webhook.failed       v3  a.b → Ledger                                   attempt 2, HTTP 503",
            ),
            (
                "webhook.created",
                "w-1",
                json!({ "name": "Ledger" }),
                "08:14:09.120  webhook.created      v3  Ledger",
            ),
            (
                "deadletter.added",
                "l-1",
                json!({ "originSubject": "a.b", "reason": "empty: x" }),
                "08:14:09.120  deadletter.added     v3  a.b                                            empty: x",
            ),
            (
                "other",
                "w-1",
                json!({}),
                "08:14:09.120  other                v3  Ledger",
            ),
        ] {
            let event = json!({
                "time": "2026-11-02T08:14:09.120Z", "type": kind, "subject": subject,
                "aggregateversion": 3, "data": data,
            });
            assert_eq!(line(&event, &names), expected);
        }
        assert_eq!(line(&json!({}), &names), "                       v0");
    }
}
