//! JSON as a tree over its text: numbers, lists and maps keep their written form.

use std::borrow::Cow;

/// A JSON value. What can be borrowed from the text is.
#[derive(Debug, Clone, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number, as written.
    Number(&'a str),
    /// A text, without escapes.
    Text(Cow<'a, str>),
    /// A list.
    List {
        /// As written.
        raw: &'a str,
        /// Its entries.
        items: Vec<Self>,
    },
    /// An object.
    Map {
        /// As written.
        raw: &'a str,
        /// Its fields, in their order. Of a field that is there twice the last one counts.
        fields: Vec<(Cow<'a, str>, Self)>,
    },
}

impl<'a> Json<'a> {
    /// How deep lists and objects may nest.
    pub const MAX_DEPTH: usize = 128;

    /// Reads one JSON value.
    ///
    /// # Errors
    /// Says why it cannot be read: it is no JSON, nests deeper than [`Self::MAX_DEPTH`], or holds a text
    /// that is no Unicode (a lone surrogate).
    pub fn read(text: &'a str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_blanks();
        if reader.at < text.len() {
            return Err(reader.unexpected());
        }
        Ok(value)
    }

    /// A field of an object.
    pub fn field(&self, name: &str) -> Option<&Self> {
        let Self::Map { fields, .. } = self else {
            return None;
        };
        let found = fields.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Json<'a>, String> {
        if depth > Json::MAX_DEPTH {
            return Err(format!("it nests deeper than {}", Json::MAX_DEPTH));
        }
        self.skip_blanks();
        match self.peek() {
            Some(b'{') => self.map(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Json::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Json<'a>, String> {
        let start = self.at;
        let mut fields = Vec::new();
        self.at += 1;
        self.skip_blanks();
        if !self.eat(b'}') {
            loop {
                self.skip_blanks();
                let name = self.string()?;
                self.skip_blanks();
                if !self.eat(b':') {
                    return Err(self.unexpected());
                }
                fields.push((name, self.value(depth + 1)?));
                if self.is_end(b'}')? {
                    break;
                }
            }
        }
        let raw = self.since(start);
        Ok(Json::Map { raw, fields })
    }

    fn list(&mut self, depth: usize) -> Result<Json<'a>, String> {
        let start = self.at;
        let mut items = Vec::new();
        self.at += 1;
        self.skip_blanks();
        if !self.eat(b']') {
            loop {
                items.push(self.value(depth + 1)?);
                if self.is_end(b']')? {
                    break;
                }
            }
        }
        let raw = self.since(start);
        Ok(Json::List { raw, items })
    }

    /// After an entry: whether it was the last one.
    fn is_end(&mut self, end: u8) -> Result<bool, String> {
        self.skip_blanks();
        if self.eat(b',') {
            Ok(false)
        } else if self.eat(end) {
            Ok(true)
        } else {
            Err(self.unexpected())
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, String> {
        let start = self.at;
        if !self.eat(b'"') {
            return Err(self.unexpected());
        }
        let mut has_escapes = false;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    has_escapes = true;
                    self.at += 2;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.unexpected()),
            }
        }
        let inner = self.text.get(start + 1..self.at).unwrap_or_default();
        self.at += 1;
        if has_escapes {
            let read = serde_json::from_str(self.since(start));
            read.map(Cow::Owned)
                .map_err(|_| "it holds a text that is no Unicode".to_owned())
        } else {
            Ok(Cow::Borrowed(inner))
        }
    }

    fn number(&mut self) -> Result<Json<'a>, String> {
        let start = self.at;
        let is_part = |byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        while self.peek().is_some_and(is_part) {
            self.at += 1;
        }
        let written = self.since(start);
        // Whatever its size is: it has the form of a number.
        serde_json::from_str::<serde::de::IgnoredAny>(written).map_err(|_| self.unexpected())?;
        Ok(Json::Number(written))
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Result<Json<'a>, String> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.unexpected());
        }
        self.at += word.len();
        Ok(value)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn unexpected(&self) -> String {
        format!("it is no JSON from byte {} on", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_through_keeps_its_written_form() {
        let text = r#"{"a": 18450.00, "b":[1e2,{"c":"x\ny"}], "d":"ä","a":2.50}"#;
        let json = Json::read(text).unwrap();
        assert_eq!(json.field("a"), Some(&Json::Number("2.50")));
        let Some(Json::List { raw, items }) = json.field("b") else {
            panic!("no list");
        };
        assert_eq!(*raw, r#"[1e2,{"c":"x\ny"}]"#);
        let text = Json::Text("x\ny".into());
        assert_eq!(items.get(1).and_then(|item| item.field("c")), Some(&text));
        assert_eq!(json.field("e"), None);
        for word in ["null", "true", " [ ] ", "{ }", "-0", r#""""#] {
            assert!(Json::read(word).is_ok(), "{word}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_without_a_panic() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "\"",
            "\"\\",
            "\"\\\"",
            "tru",
            "-",
            "01",
            "1.",
            "1e",
            "1 2",
            "{a:1}",
            "\"\u{1}\"",
            "[1}",
            r#""\ud800""#,
            "+1",
            "é",
        ] {
            assert!(Json::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_costs_no_stack() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::read(&nested(Json::MAX_DEPTH)).is_ok());
        for depth in [Json::MAX_DEPTH + 2, 1_000_000] {
            let fault = Json::read(&nested(depth)).unwrap_err();
            assert_eq!(fault, "it nests deeper than 128");
        }
    }
}
