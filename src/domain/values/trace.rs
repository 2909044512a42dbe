//! W3C trace context: which trace something belongs to.

use serde::{Deserialize, Serialize};

/// Longest text of either part, in bytes.
const MAX_LEN: usize = 512;
/// Members of a trace state at most.
const MAX_MEMBERS: usize = 32;
/// Longest key and longest value of a member, in bytes.
const MAX_PART: usize = 256;

/// A valid `traceparent`, with the `tracestate` that stood beside it. Both are plain ASCII, at most 512
/// bytes, and fit into a header. Being carried, they are never a fault: what is invalid is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct TraceContext {
    parent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
}

/// Its stored form.
#[derive(Deserialize)]
struct Parts {
    parent: String,
    #[serde(default)]
    state: Option<String>,
}

impl TryFrom<Parts> for TraceContext {
    type Error = &'static str;

    fn try_from(parts: Parts) -> Result<Self, Self::Error> {
        Self::read(Some(&parts.parent), parts.state.as_deref()).ok_or("no W3C trace context")
    }
}

impl TraceContext {
    /// Reads the two headers. Without a valid `traceparent` there is none, whatever the state; an invalid
    /// `tracestate` (over 512 characters or 32 members, or not of the standard's form) is left out.
    pub fn read(parent: Option<&str>, state: Option<&str>) -> Option<Self> {
        let parent = parent.filter(|text| known_part(text).is_some())?.to_owned();
        let state = state.map(|text| text.trim_matches([' ', '\t']));
        let state = state.filter(|text| is_tracestate(text)).map(str::to_owned);
        Some(Self { parent, state })
    }

    /// The `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Trace id and flags, in hex.
    pub fn trace_and_flags(&self) -> Option<(&str, &str)> {
        known_part(&self.parent)
    }
}

/// Trace id and flags of a valid `traceparent`; a later version may say more after the flags.
fn known_part(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.split('-');
    let mut part = |length| parts.next().filter(|part| is_lower_hex(part, length));
    let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let longer = parts.next().is_some();
    let is_zero = |id: &str| id.bytes().all(|b| b == b'0');
    let fits = text.len() <= MAX_LEN && text.bytes().all(|b| b.is_ascii_graphic());
    let is_known = version != "ff" && (version != "00" || !longer);
    (fits && is_known && !is_zero(trace) && !is_zero(parent)).then_some((trace, flags))
}

fn is_lower_hex(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `key=value` members between commas, with optional blanks around them; empty ones are allowed.
fn is_tracestate(text: &str) -> bool {
    let members = || {
        let members = text
            .split(',')
            .map(|member| member.trim_matches([' ', '\t']));
        members.filter(|member| !member.is_empty())
    };
    text.len() <= MAX_LEN
        && (1..=MAX_MEMBERS).contains(&members().count())
        && members().all(is_member)
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let starts = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let goes_on = |b: u8| starts(b) || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@');
    let in_value = |b: u8| matches!(b, b' '..=b'~') && b != b',' && b != b'=';
    (1..=MAX_PART).contains(&key.len())
        && key.bytes().next().is_some_and(starts)
        && key.bytes().all(goes_on)
        && (1..=MAX_PART).contains(&value.len())
        && value.bytes().all(in_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_is_read_and_any_other_is_none_whatever_the_state() {
        let rest = format!("{TRACE}-b7ad6b7169203331-01");
        for (text, flags) in [
            (format!("00-{rest}"), "01"),
            (format!("00-{TRACE}-b7ad6b7169203331-00"), "00"),
            (format!("cc-{rest}"), "01"),
            (format!("cc-{rest}-what-comes-later"), "01"),
        ] {
            let found = TraceContext::read(Some(&text), None).expect(&text);
            assert_eq!(found.parent(), text);
            assert_eq!(found.trace_and_flags(), Some((TRACE, flags)), "{text}");
        }
        for text in [
            String::new(),
            rest.clone(),
            format!("ff-{rest}"),
            format!("00-{rest}-more"),
            format!("00-{rest}-"),
            format!("0-{rest}"),
            format!("00-{}", rest.to_uppercase()),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01\r\nx: y"),
            format!("cc-{rest}-a\r\nb"),
            format!("cc-{rest}-ä"),
            format!("cc-{rest}-{}", "x".repeat(512)),
        ] {
            assert_eq!(TraceContext::read(Some(&text), Some("a=b")), None, "{text}");
        }
        assert_eq!(TraceContext::read(None, Some("a=b")), None);
    }

    #[test]
    fn a_tracestate_has_up_to_512_characters_and_32_members_and_is_else_left_out() {
        let members = |count| vec!["a=1"; count].join(",");
        let long = |length: usize| format!("a={},b={}", "x".repeat(256), "y".repeat(length - 261));
        for good in [
            "a=b",
            "vendor=1,other@system=t61rcWkgMzE",
            "a=b , c=d\t,\te=f",
            "a=b,,c=d,",
            "1a-_*/@x=!\"#$%&'()*+-./:;<>?@[\\]^_`{|}~ x",
            &members(32),
            &long(512),
        ] {
            let found = TraceContext::read(Some(GOOD), Some(good)).expect(good);
            assert_eq!(found.state(), Some(good));
        }
        let padded = TraceContext::read(Some(GOOD), Some(" a=b\t"));
        assert_eq!(padded.expect("it is valid").state(), Some("a=b"));
        for bad in [
            "",
            " , ",
            "a",
            "a=",
            "=b",
            "A=b",
            "_a=b",
            "a b=c",
            "a=b=c",
            "a=ä",
            "a=b\r\nx: y",
            "a=b\0",
            "a=b;c,d",
            &members(33),
            &long(513),
            &format!("{}=b", "k".repeat(257)),
            &format!("a={}", "v".repeat(257)),
        ] {
            let found = TraceContext::read(Some(GOOD), Some(bad));
            let found = found.expect("the parent is kept");
            assert_eq!((found.parent(), found.state()), (GOOD, None), "{bad:?}");
        }
    }

    #[test]
    fn it_survives_being_stored_and_a_broken_one_is_an_error() {
        for state in [None, Some("a=b")] {
            let context = TraceContext::read(Some(GOOD), state).expect("it is valid");
            let stored = serde_json::to_string(&context).expect("it is written");
            let read: TraceContext = serde_json::from_str(&stored).expect("it is read");
            assert_eq!(read, context);
        }
        assert!(serde_json::from_str::<TraceContext>(r#"{"parent":"x"}"#).is_err());
    }
}
