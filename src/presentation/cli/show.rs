//! JSON for people: lists as tables, everything else as aligned `key  value` lines.

use serde_json::{Map, Value};

use crate::shared::visible::steers;

/// Which fields of a list's items become columns, where an item has them.
const COLUMNS: [&str; 17] = [
    "id",
    "kind",
    "reason",
    "subject",
    "name",
    "type",
    "eventType",
    "webhookId",
    "integrationId",
    "events",
    "status",
    "attemptCount",
    "nextAttemptAt",
    "error",
    "createdAt",
    "addedAt",
    "size",
];
/// The longest cell of a table, in characters.
const WIDEST: usize = 60;

/// What to print of a reply's `data`.
pub(super) fn show(data: &Value) -> String {
    let items = data.get("items").and_then(Value::as_array);
    let Some(items) = items else {
        return lines(data);
    };
    let mut text = table(items);
    if let Some(cursor) = data.get("nextCursor").and_then(Value::as_str) {
        text.push_str("\nmore with \"cursor\": \"");
        text.push_str(&printable(cursor));
        text.push('"');
    }
    text
}

/// A table with a heading.
pub(super) fn table(items: &[Value]) -> String {
    let present = |column: &&str| items.iter().any(|item| item.get(column).is_some());
    let columns: Vec<&str> = COLUMNS.into_iter().filter(present).collect();
    if columns.is_empty() {
        return "nothing".to_owned();
    }
    let heading = columns.iter().map(|column| (*column).to_owned()).collect();
    let row = |item: &Value| {
        let value = |column: &&str| {
            let value = item.get(column)?;
            Some(scalar(value.get("code").unwrap_or(value)))
        };
        let cell = |column: &&str| short(value(column).unwrap_or_default());
        columns.iter().map(cell).collect()
    };
    let rows: Vec<_> = std::iter::once(heading)
        .chain(items.iter().map(row))
        .collect();
    aligned(&rows)
}

/// One field a line, nested ones with dots.
fn lines(data: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", data, &mut rows);
    if rows.is_empty() {
        return "done".to_owned();
    }
    aligned(&rows)
}

fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flatten(&below(key), value, rows);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), item, rows);
            }
        }
        _ => rows.push(vec![printable(path), scalar(value)]),
    }
}

/// Pads every cell but a row's last.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(width)
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items)
            if items
                .iter()
                .all(|item| !item.is_object() && !item.is_array()) =>
        {
            items.iter().map(scalar).collect::<Vec<_>>().join(", ")
        }
        other => printable(&other.to_string()),
    }
}

/// The text with escapes in the place of what would steer the terminal, turn the order of the text or not
/// be seen.
pub(super) fn printable(text: &str) -> String {
    let escape = |c: char| {
        if steers(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

fn short(text: String) -> String {
    if text.chars().count() <= WIDEST {
        return text;
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

/// What to print of a refusal: its code and message, and a line for each detail.
pub(super) fn refusal(error: &Map<String, Value>) -> String {
    let text = |fields: &Map<String, Value>, key| {
        let text = fields.get(key).and_then(Value::as_str);
        printable(text.unwrap_or_default())
    };
    let details = error.get("details").and_then(Value::as_array);
    let details = details.into_iter().flatten().filter_map(Value::as_object);
    let detail = |detail| format!("\n  {}: {}", text(detail, "path"), text(detail, "message"));
    let retryable = error.get("retryable") == Some(&Value::Bool(true));
    format!(
        "{}: {}{}{}",
        text(error, "code"),
        text(error, "message"),
        details.map(detail).collect::<String>(),
        if retryable {
            "\ntrying again may help"
        } else {
            ""
        }
    )
}
