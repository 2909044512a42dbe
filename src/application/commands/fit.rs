//! Replies that are larger than the bus takes: a page of a list is cut, anything else is an error.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::domain::values::Timestamp;

use super::{
    list::write_cursor,
    reply::{ErrorCode, Refusal, Reply},
};

/// What a page has besides its items, in bytes: far less than this.
const FRAME: usize = 256;

impl Reply {
    /// A reply whose body has at most `max` bytes: of a list the first items that fit, with the cursor
    /// that goes on after them; in the place of anything else, and of an item that alone is too large, an
    /// error. For replies that are larger, and have been found to be.
    #[must_use]
    pub fn shortened(mut self, max: usize) -> Self {
        let page = match &mut self {
            Self::Success(page) if page.get("nextCursor").is_some() => page,
            other => return too_large("the answer", other.to_json().to_string().len(), max),
        };
        let Some(items) = page.get_mut("items").and_then(Value::as_array_mut) else {
            return too_large("the answer", page.to_string().len(), max);
        };
        let mut left = max.saturating_sub(FRAME);
        let mut fitting = 0;
        for item in &*items {
            // With the comma that follows it.
            let size = item.to_string().len() + 1;
            let Some(rest) = left.checked_sub(size) else {
                break;
            };
            left = rest;
            fitting += 1;
        }
        if fitting == 0 {
            let first = items.first().unwrap_or(&Value::Null);
            let id = first.get("id").and_then(Value::as_str).unwrap_or_default();
            return too_large(
                &format!("the item {id} alone"),
                first.to_string().len(),
                max,
            );
        }
        if fitting < items.len() {
            items.truncate(fitting);
            let last = items.last().and_then(place);
            page["nextCursor"] = last.map(write_cursor).into();
        }
        self
    }
}

/// Where an item stands in its list.
fn place(item: &Value) -> Option<(Timestamp, Uuid)> {
    let text = |field| item.get(field).and_then(Value::as_str);
    let created_at = DateTime::parse_from_rfc3339(text("createdAt")?).ok()?;
    let id = Uuid::try_parse(text("id")?).ok()?;
    Some((created_at.with_timezone(&Utc), id))
}

fn too_large(what: &str, size: usize, max: usize) -> Reply {
    let message = format!(
        "{what} has {size} bytes, more than the {max} that the NATS server takes (max_payload): raise \
         that; since and until leave an item out of a list"
    );
    Reply::Failure(Refusal::new(ErrorCode::Internal, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(sizes: &[usize], next: Option<&str>) -> Reply {
        let item = |(n, size): (usize, &usize)| {
            json!({
                "id": Uuid::from_u128(n as u128), "createdAt": "2026-11-02T08:14:09.120Z",
                "text": "ä".repeat(size / 2),
            })
        };
        let items: Vec<Value> = sizes.iter().enumerate().map(item).collect();
        Reply::Success(json!({ "items": items, "nextCursor": next }))
    }

    #[test]
    fn a_page_is_cut_to_what_fits_and_goes_on_after_it() {
        for (sizes, max, fitting) in [
            (&[1_000; 10][..], 5_000, 4),
            (&[1_000, 1_000], 1_500, 1),
            (&[10, 5_000, 10], 4_000, 1),
            (&[1_000; 3], 100_000, 3),
        ] {
            let reply = page(sizes, Some("further")).shortened(max);
            assert!(reply.to_json().to_string().len() <= max);
            let Reply::Success(page) = reply else {
                panic!("{sizes:?} in {max}")
            };
            let items = page["items"].as_array().unwrap();
            assert_eq!(items.len(), fitting, "{sizes:?} in {max}");
            let next = if fitting < sizes.len() {
                Some(write_cursor(place(&items[fitting - 1]).unwrap()))
            } else {
                Some("further".to_owned())
            };
            assert_eq!(page["nextCursor"], json!(next));
        }
    }

    #[test]
    fn what_alone_is_too_large_is_a_clear_error() {
        let large = "x".repeat(2_000);
        for (reply, told) in [
            (
                page(&[2_000, 1], None),
                "the item 00000000-0000-0000-0000-000000000000 alone has 2",
            ),
            (
                Reply::Success(json!({ "id": "a", "text": large })),
                "the answer has 2",
            ),
            (
                Reply::Success(json!({ "nextCursor": large })),
                "the answer has 2",
            ),
            (
                Reply::Failure(Refusal::new(ErrorCode::NotFound, large)),
                "the answer has 2",
            ),
        ] {
            let Reply::Failure(refusal) = reply.shortened(1_000) else {
                panic!("{told}")
            };
            assert_eq!(refusal.code, ErrorCode::Internal);
            assert!(refusal.message.starts_with(told), "{}", refusal.message);
        }
    }
}
