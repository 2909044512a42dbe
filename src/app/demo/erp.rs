//! The messages that the ERP publishes in the demo: real shapes of its services.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::missed::Missed;

/// The tenant that the events are of.
pub(super) const TENANT: &str = "genossenschaft-nord";

/// The id of the goods' event.
pub(super) const GOODS: &str = "0f8a0c4e-1c1d-4f2e-8a55-0b2f2f3f9d01";
/// The ids of the ledger's events; the first one is in the file.
pub(super) const BOOKINGS: [&str; 3] = [
    "9d6b1d1a-42a2-4a43-9c39-3a1f0c7e5b10",
    "9d6b1d1a-42a2-4a43-9c39-3a1f0c7e5b11",
    "9d6b1d1a-42a2-4a43-9c39-3a1f0c7e5b12",
];
/// The ids that the contract's and the quality event give themselves.
pub(super) const ARCHIVED: [&str; 2] = ["ce-1001", "ce-1002"];
/// The weighing has no id in its body; NATS has a header for it.
pub(super) const WEIGHING: &str = "w-5512";

/// A message as it is published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
    /// What the reader is told about its form.
    pub(super) form: &'static str,
}

#[derive(Deserialize)]
struct File {
    subject: String,
    headers: BTreeMap<String, String>,
    // As it is written: a number that is read and written again has lost its zeros.
    body: Box<RawValue>,
}

const BOOKING: &str = include_str!("events/fibu.booking.created.json");

const FILES: [(&str, &str); 7] = [
    (
        "ERP envelope",
        include_str!("events/sales.order.created.json"),
    ),
    (
        "an envelope in an envelope (Python)",
        include_str!("events/inventory.goods.received.json"),
    ),
    ("accounting envelope", BOOKING),
    (
        "ERP envelope without an eventId",
        include_str!("events/document.created.json"),
    ),
    (
        "CloudEvents, structured",
        include_str!("events/cloudevent.structured.json"),
    ),
    (
        "CloudEvents, binary (ce- headers)",
        include_str!("events/cloudevent.binary.json"),
    ),
    (
        "bare JSON",
        include_str!("events/logistics.weight.measured.json"),
    ),
];

/// One message of each form, and one that has none.
///
/// # Errors
/// When a file of the program is not what it should be.
pub(super) fn messages() -> Result<Vec<Message>, Missed> {
    let mut messages = Vec::new();
    for (form, file) in FILES {
        let mut message = read(form, file)?;
        if message.subject.starts_with("logistics.") {
            message
                .headers
                .insert("Nats-Msg-Id".to_owned(), WEIGHING.to_owned());
        }
        messages.push(message);
    }
    messages.push(Message {
        subject: "sales.order.created".to_owned(),
        headers: BTreeMap::from([("X-Tenant-Id".to_owned(), TENANT.to_owned())]),
        body: String::new(),
        form: "an empty body",
    });
    Ok(messages)
}

/// Two more bookings.
///
/// # Errors
/// When a file of the program is not what it should be.
pub(super) fn later_bookings() -> Result<Vec<Message>, Missed> {
    let [first, later @ ..] = BOOKINGS;
    let numbered = later.iter().zip(["bk-3302", "bk-3303"]);
    numbered
        .map(|(id, number)| {
            let file = BOOKING.replace(first, id).replace("bk-3301", number);
            read("accounting envelope", &file)
        })
        .collect()
}

fn read(form: &'static str, file: &str) -> Result<Message, Missed> {
    let file: File = serde_json::from_str(file).map_err(|error| {
        Missed(format!(
            "an event of the demo ({form}) is not readable: {error}"
        ))
    })?;
    Ok(Message {
        subject: file.subject,
        headers: file.headers,
        body: file.body.get().to_owned(),
        form,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_its_numbers_keep_their_form() {
        let messages = messages().unwrap();
        assert_eq!(messages.len(), FILES.len() + 1);
        let bodies: Vec<&str> = messages
            .iter()
            .map(|message| message.body.as_str())
            .collect();
        assert!(bodies[0].contains("18450.00"));
        assert!(bodies[1].contains(GOODS) && bodies[2].contains(BOOKINGS[0]));
        assert!(bodies[4].contains(ARCHIVED[0]));
        assert_eq!(messages[5].headers["ce-id"], ARCHIVED[1]);
        assert_eq!(messages[6].headers["Nats-Msg-Id"], WEIGHING);
        assert_eq!(bodies[7], "");
    }

    #[test]
    fn later_bookings_are_events_of_their_own() {
        let bookings = later_bookings().unwrap();
        assert_eq!(bookings.len(), 2);
        for (booking, id) in bookings.iter().zip(&BOOKINGS[1..]) {
            assert!(booking.body.contains(id));
            assert!(!booking.body.contains(BOOKINGS[0]) && !booking.body.contains("bk-3301"));
        }
    }
}
