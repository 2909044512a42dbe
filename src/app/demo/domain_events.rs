//! The domain events that the worker publishes, read from their stream as they come.

use std::{collections::BTreeMap, fmt};

use async_nats::jetstream::{
    consumer::pull::{Ordered, OrderedConfig},
    stream::Stream,
};
use futures_util::StreamExt as _;
use serde_json::Value;

use super::missed::{Missed, in_time};

/// All events so far, and those to come.
pub(super) struct DomainEvents {
    messages: Ordered,
    seen: Vec<Value>,
}

impl fmt::Debug for DomainEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainEvents")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl DomainEvents {
    /// Reads the stream from its beginning.
    pub(super) async fn read(stream: &Stream) -> Result<Self, Missed> {
        let unreadable = |error: String| Missed(format!("reading the domain events: {error}"));
        let consumer = stream.create_consumer(OrderedConfig::default()).await;
        let consumer = consumer.map_err(|error| unreadable(error.to_string()))?;
        let messages = consumer.messages().await;
        Ok(Self {
            messages: messages.map_err(|error| unreadable(error.to_string()))?,
            seen: Vec::new(),
        })
    }

    /// Those that have been read, oldest first.
    pub(super) fn seen(&self) -> &[Value] {
        &self.seen
    }

    /// Waits until so many events of the type, old or new, are such.
    pub(super) async fn wait(
        &mut self,
        kind: &str,
        count: usize,
        is_such: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>, Missed> {
        in_time(&format!("{count} × {kind}"), async {
            loop {
                let fits = |event: &&Value| event["type"] == kind && is_such(event);
                let found: Vec<Value> = self.seen.iter().filter(fits).cloned().collect();
                if found.len() >= count {
                    return Ok(found);
                }
                self.read_next().await?;
            }
        })
        .await
    }

    /// Waits for one event.
    pub(super) async fn wait_one(
        &mut self,
        kind: &str,
        is_such: impl Fn(&Value) -> bool,
    ) -> Result<Value, Missed> {
        let found = self.wait(kind, 1, is_such).await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    async fn read_next(&mut self) -> Result<(), Missed> {
        let ended = || Missed("the domain events have ended".to_owned());
        let message = self.messages.next().await.ok_or_else(ended)?;
        let message = message.map_err(|error| Missed(format!("a domain event: {error}")))?;
        let event = serde_json::from_slice(&message.payload);
        let event = event.map_err(|error| Missed(format!("a domain event is no JSON: {error}")))?;
        self.seen.push(event);
        Ok(())
    }
}

/// The subjects whose versions do not grow by one, from their first event on.
pub(super) fn subjects_with_gaps(events: &[Value]) -> Vec<String> {
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    let mut with_gaps = Vec::new();
    for event in events {
        let subject = event["subject"].as_str().unwrap_or_default();
        let version = event["aggregateversion"].as_i64().unwrap_or_default();
        let former = last.insert(subject, version).unwrap_or_default();
        if version != former + 1 {
            with_gaps.push(subject.to_owned());
        }
    }
    with_gaps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gap_is_found_in_each_subject_by_itself() {
        let events = |versions: &[(&str, i64)]| -> Vec<Value> {
            let event = |&(subject, version): &(&str, i64)| json!({ "subject": subject, "aggregateversion": version });
            versions.iter().map(event).collect()
        };
        let whole = events(&[("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)]);
        assert!(subjects_with_gaps(&whole).is_empty());
        for versions in [
            &[("a", 2)][..],
            &[("b", 1), ("a", 1), ("a", 3)],
            &[("a", 1), ("a", 1)],
            &[("a", 1), ("a", 2), ("a", 1)],
        ] {
            assert_eq!(subjects_with_gaps(&events(versions)), ["a"], "{versions:?}");
        }
        assert_eq!(subjects_with_gaps(&[json!({})]).len(), 1);
    }
}
