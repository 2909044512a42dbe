//! Commands about dead letters: to look at them, to send them again, to throw them away.
//!
//! The box lies outside of the database. So a letter leaves it last, after the reply and the line in the
//! audit log are committed: where a worker dies before, the same command does it again, and the bus
//! knows the message that it has already.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};

use crate::{
    application::dead_letter_box::{DeadLetterBox, KeptLetter, LetterId, SendAgainError},
    domain::values::Timestamp,
};

use super::{
    Ports,
    body::Body,
    command::Command,
    fields::{Fields, Text},
    list::page_by,
    reply::{ErrorCode, Refusal, Reply},
    views,
    work::{CommandError, Outcome, checked, not_found},
};

/// How much of a body is shown, in bytes, so that the answer is one that NATS takes.
const MAX_SHOWN: usize = 128 * 1024;
/// So many slices of the box are looked through for a page; then it ends, even when it is empty.
const MAX_SLICES: usize = 64;
/// So many bytes of letters are read for a page.
const MAX_READ: usize = 64 * 1024 * 1024;
/// A page ends after so many bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// What stands for the value of a header that may be a secret.
const HIDDEN: &str = "(hidden)";
/// What the name of a header that may be a secret has in it, in lower case.
const SECRET: [&str; 9] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "api-key",
    "apikey",
    "credential",
    "signature",
];

/// What letters are filtered by; `None` is no filter.
struct Filter {
    kind: Option<&'static str>,
    reason: Option<String>,
    subject: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Filter {
    fn read(fields: &mut Fields) -> Self {
        Self {
            kind: fields.choice("kind", &["commands", "events"], |kind| *kind),
            reason: fields.text("reason", Text::Line(64)),
            subject: fields.text("subject", Text::Line(1024)),
            since: fields.time("since"),
            until: fields.time("until"),
        }
    }

    fn passes(&self, letter: &KeptLetter) -> bool {
        let reason = self.reason.as_deref();
        let subject = self.subject.as_deref();
        self.kind.is_none_or(|kind| kind == letter.kind)
            && reason.is_none_or(|reason| reason == letter.reason().0)
            && subject.is_none_or(|subject| subject == letter.subject)
            && self.until.is_none_or(|until| letter.added_at < until)
    }
}

/// `list {kind?, reason?, subject?, since?, until?, limit?, cursor?}`, newest first. A page may have
/// less than `limit` items, or none, and a cursor all the same: it ends after so much was looked through.
pub(super) async fn list(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    let filter = Filter::read(&mut fields);
    let page = page_by(&mut fields, read_cursor);
    let (limit, after) = checked(fields, page)?;
    let (items, next) = page_of(ports, command, &filter, limit as usize, after).await?;
    Ok(json!({ "items": items, "nextCursor": next.map(write_cursor) }))
}

async fn page_of(
    ports: &Ports,
    command: &Command,
    filter: &Filter,
    limit: usize,
    after: Option<u64>,
) -> Result<(Vec<Value>, Option<u64>), CommandError> {
    let letters = the_box(ports)?;
    let (mut from, mut items) = (after, Vec::new());
    let (mut read, mut answered) = (0, 0);
    for _ in 0..MAX_SLICES {
        let slice = letters.newest(from).await?;
        let mut rest = slice.letters.iter().peekable();
        while let Some(letter) = rest.next() {
            read += letter.size;
            if filter.since.is_some_and(|since| letter.added_at < since) {
                return Ok((items, None));
            }
            if tenant_of(ports, letter) != command.context.tenant.as_str() || !filter.passes(letter)
            {
                continue;
            }
            let item = view(ports, letter);
            answered += item.to_string().len();
            items.push(item);
            if items.len() >= limit || answered >= MAX_ANSWER {
                return Ok((items, rest.peek().map(|next| next.sequence).or(slice.next)));
            }
        }
        from = slice.next;
        if from.is_none() || read >= MAX_READ {
            break;
        }
    }
    Ok((items, from))
}

/// `get {id}`: a letter with its body.
pub(super) async fn get(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let letter = found(ports, command, body).await?;
    let mut view = view(ports, &letter);
    let shown = letter.body.get(..MAX_SHOWN).unwrap_or(&letter.body);
    match std::str::from_utf8(&letter.body) {
        // Cut between two characters.
        Ok(_) => view["body"] = String::from_utf8_lossy(whole_characters(shown)).into(),
        Err(_) => view["bodyBase64"] = STANDARD.encode(shown).into(),
    }
    if shown.len() < letter.body.len() {
        view["bodyCut"] = true.into();
    }
    Ok(view)
}

/// `replay {id}`: the original goes out on its subject again. The letter is removed by [`afterwards`].
pub(super) async fn replay(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let letter = found(ports, command, body).await?;
    let refused = |why: &str| {
        let message = format!("the dead letter {} cannot be replayed: {why}", letter.id());
        CommandError::from(Refusal::new(ErrorCode::InvalidTransition, message))
    };
    if letter.is_cut() {
        return Err(refused(
            "its body did not fit and was cut; publish the original again, and discard it",
        ));
    }
    match the_box(ports)?.send_again(&letter).await {
        Ok(()) => Ok(view(ports, &letter)),
        Err(SendAgainError::Refused(why)) => Err(refused(&why)),
        Err(SendAgainError::Bus(error)) => Err(error.into()),
    }
}

/// `discard {id}`: the letter is removed by [`afterwards`].
pub(super) async fn discard(ports: &Ports, command: &Command, body: Body) -> Outcome {
    let letter = found(ports, command, body).await?;
    Ok(view(ports, &letter))
}

/// Removes the letter of a command that has succeeded, also when it is repeated: what was cut short
/// the first time is finished.
pub(super) async fn afterwards(ports: &Ports, reply: &Reply) -> Result<(), CommandError> {
    let Reply::Success(data) = reply else {
        return Ok(());
    };
    let id = data.get("id").and_then(Value::as_str);
    match id.and_then(|id| id.parse().ok()) {
        Some(id) => Ok(the_box(ports)?.remove(id).await?),
        None => Ok(()),
    }
}

/// The letter that the body names, where it is the tenant's.
async fn found(ports: &Ports, command: &Command, body: Body) -> Result<KeptLetter, CommandError> {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let text = fields.text("id", Text::Line(64));
    let id = text.as_deref().map(str::parse::<LetterId>);
    if let Some(Err(error)) = &id {
        fields.fault("id", error.to_string());
    }
    let id = checked(fields, id.and_then(Result::ok))?;
    let letter = the_box(ports)?.letter(id).await?;
    let letter =
        letter.filter(|letter| tenant_of(ports, letter) == command.context.tenant.as_str());
    Ok(letter.ok_or_else(|| not_found("dead letter", "id", id))?)
}

fn the_box(ports: &Ports) -> Result<&dyn DeadLetterBox, Refusal> {
    let missing = || Refusal::new(ErrorCode::Internal, "this handler has no dead letters");
    ports.dead_letters.as_deref().ok_or_else(missing)
}

fn tenant_of<'a>(ports: &'a Ports, letter: &'a KeptLetter) -> &'a str {
    let default = ports.settings.default_tenant.as_str();
    letter.tenant.as_deref().unwrap_or(default)
}

fn view(ports: &Ports, letter: &KeptLetter) -> Value {
    let (code, text) = letter.reason();
    json!({
        "id": letter.id().to_string(),
        "kind": letter.kind,
        "reason": { "code": code, "text": text },
        "subject": letter.subject,
        "stream": letter.stream,
        "sequence": letter.origin_sequence,
        "publishedAt": letter.published_at.map(views::time),
        "addedAt": views::time(letter.added_at),
        "tenantId": tenant_of(ports, letter),
        "size": letter.size,
        "headers": headers(&letter.headers),
    })
}

/// By name; one that is there several times has a list of values.
fn headers(all: &[(String, String)]) -> Value {
    let mut view = Map::new();
    for (name, value) in all {
        let value = Value::from(if is_secret(name) { HIDDEN } else { value });
        match view.get_mut(name) {
            None => {
                view.insert(name.clone(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    Value::Object(view)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|part| name.contains(part))
}

/// UTF-8 that was cut somewhere, up to its last whole character.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes,
        Err(error) => bytes.get(..error.valid_up_to()).unwrap_or_default(),
    }
}

/// The sequence at which the next page begins, in base64url.
fn write_cursor(sequence: u64) -> String {
    URL_SAFE_NO_PAD.encode(sequence.to_be_bytes())
}

fn read_cursor(text: &str) -> Option<u64> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_hidden() {
        let given = [
            ("Authorization", "Bearer x"),
            ("X-Api-Key", "x"),
            ("x-auth-token", "x"),
            ("Idempotency-Key", "k-1"),
            ("A", "1"),
            ("A", "2"),
            ("A", "3"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            headers(&given),
            json!({
                "Authorization": HIDDEN, "X-Api-Key": HIDDEN, "x-auth-token": HIDDEN,
                "Idempotency-Key": "k-1", "A": ["1", "2", "3"],
            })
        );
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        for (bytes, expected) in [
            ("aä".as_bytes(), "aä"),
            (b"a\xc3", "a"),
            (b"\xf0\x9f\x8c", ""),
        ] {
            assert_eq!(whole_characters(bytes), expected.as_bytes());
        }
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_and_nothing_else_is_one() {
        for sequence in [0, 1, u64::MAX] {
            assert_eq!(read_cursor(&write_cursor(sequence)), Some(sequence));
        }
        for other in ["", "1", "!!", "AAAA", &"A".repeat(32)] {
            assert_eq!(read_cursor(other), None, "{other}");
        }
    }
}
