//! A typed reader of a JSON object, so that a command file reads as a declaration of its fields.
//!
//! Every reading method answers `None` both for an absent field and for a faulty one; the fault is
//! noted under its path. [`Fields::need`] notes what is missing, [`Fields::finish`] what is unknown.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    domain::values::{Faults, Timestamp, parse_duration, truncate_to_millis},
    shared::visible::is_visible,
};

/// What a text may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::application) enum Text {
    /// 1 to so many characters, one of them to be seen, no control characters.
    Line(usize),
    /// 0 to so many characters; line breaks and tabs are allowed, other control characters are not.
    Block(usize),
}

impl Text {
    /// What is wrong with the text, if anything is.
    pub(in crate::application) fn problem(self, text: &str) -> Option<String> {
        let characters = text.chars().count();
        match self {
            Self::Line(max) if characters > max || !is_visible(text) => Some(format!(
                "must be a text of 1 to {max} characters, at least one of them visible"
            )),
            Self::Line(_) if text.chars().any(char::is_control) => {
                Some("must not hold control characters".to_owned())
            }
            Self::Block(max) if characters > max => {
                Some(format!("must be a text of at most {max} characters"))
            }
            Self::Block(_)
                if text
                    .chars()
                    .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) =>
            {
                Some("must not hold control characters other than line breaks and tabs".to_owned())
            }
            _ => None,
        }
    }
}

/// Reads the fields of one object.
#[derive(Debug)]
pub(in crate::application) struct Fields {
    map: Map<String, Value>,
    path: String,
    known: Vec<&'static str>,
    faults: Faults,
}

impl Fields {
    /// A reader of an object at `path`; the body itself is at `""`.
    pub(in crate::application) fn new(map: Map<String, Value>, path: &str) -> Self {
        Self {
            map,
            path: path.to_owned(),
            known: Vec::new(),
            faults: Faults::default(),
        }
    }

    /// Notes which of these fields are absent.
    pub(in crate::application) fn need(&mut self, names: &[&str]) {
        for name in names {
            if !self.map.contains_key(*name) {
                self.fault(name, "is required");
            }
        }
    }

    /// Whether the field is given.
    pub(in crate::application) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Notes a fault of a field.
    pub(in crate::application) fn fault(&mut self, name: &str, message: impl Into<String>) {
        self.faults.add(join(&self.path, name), message);
    }

    /// Takes over faults that were found elsewhere.
    pub(in crate::application) fn absorb(&mut self, faults: Faults) {
        for fault in faults.into_vec() {
            self.faults.add(fault.path, fault.message);
        }
    }

    /// Any value.
    pub(in crate::application) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.shift_remove(name)
    }

    /// Takes a field away that is not to be named among the allowed ones.
    pub(in crate::application) fn discard(&mut self, name: &str) -> bool {
        self.map.shift_remove(name).is_some()
    }

    /// A text.
    pub(in crate::application) fn text(
        &mut self,
        name: &'static str,
        rule: Text,
    ) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => self.checked(name, rule.problem(&text), text),
            _ => self.wrong(name, "must be a string"),
        }
    }

    /// A text that `null` removes: `Some(None)` then.
    #[expect(
        clippy::option_option,
        reason = "absent, removed and given are three things"
    )]
    pub(in crate::application) fn removable_text(
        &mut self,
        name: &'static str,
        rule: Text,
    ) -> Option<Option<String>> {
        if self.map.get(name) == Some(&Value::Null) {
            self.value(name)?;
            return Some(None);
        }
        self.text(name, rule).map(Some)
    }

    /// A list of texts, each of them once.
    pub(in crate::application) fn texts(
        &mut self,
        name: &'static str,
        count: RangeInclusive<usize>,
        problem: impl Fn(&str) -> Option<String>,
    ) -> Option<Vec<String>> {
        let Value::Array(items) = self.value(name)? else {
            return self.wrong(name, "must be a list of strings");
        };
        if !count.contains(&items.len()) {
            let message = format!("must list {} to {} entries", count.start(), count.end());
            return self.wrong(name, &message);
        }
        let mut texts: Vec<String> = Vec::with_capacity(items.len());
        let mut good = true;
        for (index, item) in items.into_iter().enumerate() {
            let fault = match &item {
                Value::String(text) if texts.contains(text) => Some("is listed twice".to_owned()),
                Value::String(text) => problem(text),
                _ => Some("must be a string".to_owned()),
            };
            if let Some(message) = fault {
                self.fault(&format!("{name}[{index}]"), message);
                good = false;
            } else if let Value::String(text) = item {
                texts.push(text);
            }
        }
        good.then_some(texts)
    }

    /// One of these values.
    pub(in crate::application) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        as_str: impl Fn(&T) -> &'static str,
    ) -> Option<T> {
        let value = self.value(name)?;
        let found = all.iter().find(|one| value.as_str() == Some(as_str(one)));
        if found.is_none() {
            let names: Vec<&str> = all.iter().map(as_str).collect();
            self.fault(name, format!("must be one of: {}", names.join(", ")));
        }
        found.copied()
    }

    /// A whole number.
    pub(in crate::application) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<i64> {
        let value = self.value(name)?;
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => self.wrong(
                name,
                &format!("must be a whole number from {}", span(&range)),
            ),
        }
    }

    /// `true` or `false`.
    pub(in crate::application) fn boolean(&mut self, name: &'static str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(value) => Some(value),
            _ => self.wrong(name, "must be true or false"),
        }
    }

    /// A duration: milliseconds as a number, or a text with a unit.
    pub(in crate::application) fn duration(
        &mut self,
        name: &'static str,
        millis: RangeInclusive<u64>,
    ) -> Option<Duration> {
        let value = self.value(name)?;
        let found = duration(&value, &millis);
        self.resolved(name, found)
    }

    /// A UUID.
    pub(in crate::application) fn uuid(&mut self, name: &'static str) -> Option<Uuid> {
        let value = self.value(name)?;
        match value.as_str().and_then(|text| Uuid::try_parse(text).ok()) {
            Some(id) => Some(id),
            None => self.wrong(name, "must be a UUID"),
        }
    }

    /// A time: RFC 3339.
    pub(in crate::application) fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        let value = self.value(name)?;
        let parsed = value
            .as_str()
            .and_then(|t| DateTime::parse_from_rfc3339(t).ok());
        match parsed {
            Some(time) => Some(truncate_to_millis(time.with_timezone(&Utc))),
            None => self.wrong(
                name,
                "must be a time as 2026-11-02T08:14:09.120Z (RFC 3339)",
            ),
        }
    }

    /// An object, kept as it is.
    pub(in crate::application) fn map(&mut self, name: &'static str) -> Option<Map<String, Value>> {
        match self.value(name)? {
            Value::Object(map) => Some(map),
            _ => self.wrong(name, "must be an object"),
        }
    }

    /// A list, kept as it is.
    pub(in crate::application) fn list(&mut self, name: &'static str) -> Option<Vec<Value>> {
        match self.value(name)? {
            Value::Array(items) => Some(items),
            _ => self.wrong(name, "must be a list"),
        }
    }

    /// An object with known fields, read by `read`; its unknown fields are faults.
    pub(in crate::application) fn object<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let map = self.map(name)?;
        let mut inner = Self::new(map, &join(&self.path, name));
        let value = read(&mut inner);
        let faults = inner.finish();
        let good = faults.is_empty();
        self.absorb(faults);
        value.filter(|_| good)
    }

    /// Notes the unknown fields and answers all faults.
    pub(in crate::application) fn finish(mut self) -> Faults {
        let unknown: Vec<String> = self.map.keys().take(Faults::MAX).cloned().collect();
        let message = format!("unknown field; allowed: {}", self.known.join(", "));
        for name in unknown {
            self.fault(&name, message.clone());
        }
        self.faults
    }

    /// Answers all faults; unknown fields are allowed.
    pub(in crate::application) fn finish_open(self) -> Faults {
        self.faults
    }

    fn wrong<T>(&mut self, name: &str, message: &str) -> Option<T> {
        self.fault(name, message);
        None
    }

    fn checked<T>(&mut self, name: &str, problem: Option<String>, value: T) -> Option<T> {
        match problem {
            Some(message) => self.wrong(name, &message),
            None => Some(value),
        }
    }

    fn resolved<T>(&mut self, name: &str, value: Result<T, String>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(message) => self.wrong(name, &message),
        }
    }
}

/// Reads a duration within `millis`.
pub(in crate::application) fn duration(
    value: &Value,
    millis: &RangeInclusive<u64>,
) -> Result<Duration, String> {
    let read = match value {
        Value::Number(number) => number.as_u64().map(Duration::from_millis),
        Value::String(text) => parse_duration(text).ok(),
        _ => None,
    };
    let fits = |d: &Duration| u64::try_from(d.as_millis()).is_ok_and(|ms| millis.contains(&ms));
    read.filter(fits).ok_or_else(|| {
        format!(
            "must be a duration from {} ms: milliseconds as a number, or a text as 500ms, 5s, 10m, 2h or 5d",
            span(millis)
        )
    })
}

fn span<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("{} to {}", range.start(), range.end())
}

/// A path for people; a name of any length was sent, so it is cut. An empty name is the object itself.
pub(in crate::application) fn join(path: &str, name: &str) -> String {
    const LONGEST: usize = 100;
    let mut name: String = name.chars().take(LONGEST).collect();
    name.retain(|c| !c.is_control());
    if path.is_empty() {
        name
    } else if name.is_empty() {
        path.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests;
