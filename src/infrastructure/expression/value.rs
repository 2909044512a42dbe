//! What an expression works with: values that borrow from the event, and those that it builds.

use std::{cmp::Ordering, ops::Deref, rc::Rc};

use chrono::TimeDelta;

use crate::{application::event_view::Json, domain::values::Timestamp};

use super::number::{Decimal, compare};

/// A text of the event, of the expression, or one that was built.
#[derive(Debug, Clone)]
pub(super) enum Text<'v> {
    Borrowed(&'v str),
    Built(Rc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Built(text) => text,
        }
    }
}

/// A value; cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Value<'v> {
    Null,
    Bool(bool),
    /// A whole number of the expression.
    Int(i64),
    /// A number of the event, as written.
    Written(&'v str),
    /// A number that was calculated, or written in the expression with a point.
    Decimal(Decimal),
    Text(Text<'v>),
    Bytes(&'v [u8]),
    Time(Timestamp),
    Duration(TimeDelta),
    /// A list or an object of the event.
    Json(&'v Json<'v>),
    List(Rc<Vec<Self>>),
    Map(Rc<Vec<(Text<'v>, Self)>>),
}

impl<'v> Value<'v> {
    pub(super) fn of(json: &'v Json<'v>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(written) => Self::Written(written),
            Json::Text(text) => Self::Text(Text::Borrowed(text)),
            Json::List { .. } | Json::Map { .. } => Self::Json(json),
        }
    }

    pub(super) fn built(text: impl Into<Rc<str>>) -> Self {
        Self::Text(Text::Built(text.into()))
    }

    pub(super) fn borrowed(text: &'v str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Written(_) | Self::Decimal(_) => "a number",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Time(_) => "a time",
            Self::Duration(_) => "a duration",
            Self::Json(Json::List { .. }) | Self::List(_) => "a list",
            Self::Json(_) | Self::Map(_) => "a map",
        }
    }

    /// The number; `None` when it is none, or has too many digits.
    pub(super) fn decimal(&self) -> Option<Decimal> {
        match self {
            Self::Int(number) => Some((*number).into()),
            Self::Written(text) => Decimal::parse(text),
            Self::Decimal(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Int(_) | Self::Written(_) | Self::Decimal(_))
    }

    /// The number as text: as written in the event, if it comes from there.
    pub(super) fn number_text(&self) -> Option<String> {
        match self {
            Self::Int(number) => Some(number.to_string()),
            Self::Written(text) => Some((*text).to_owned()),
            Self::Decimal(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// How many entries, characters or bytes there are.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Self::Text(text) => Some(text.chars().count()),
            Self::Bytes(bytes) => Some(bytes.len()),
            Self::List(items) => Some(items.len()),
            Self::Map(entries) => Some(entries.len()),
            Self::Json(Json::List { items, .. }) => Some(items.len()),
            Self::Json(Json::Map { fields, .. }) => Some(fields.len()),
            _ => None,
        }
    }

    /// How much work it is to walk through it once.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len() / 64,
            Self::Bytes(bytes) => bytes.len() / 64,
            Self::Written(text) => text.len() / 64,
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
            Self::Json(Json::List { items, .. }) => items.len(),
            Self::Json(Json::Map { fields, .. }) => fields.len(),
            _ => 0,
        }
    }

    /// An entry of a list.
    pub(super) fn item(&self, index: usize) -> Option<Self> {
        match self {
            Self::List(items) => items.get(index).cloned(),
            Self::Json(Json::List { items, .. }) => items.get(index).map(Self::of),
            _ => None,
        }
    }

    /// An entry of a map.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        match self {
            Self::Map(entries) => {
                let found = entries.iter().find(|(key, _)| **key == *name);
                found.map(|(_, value)| value.clone())
            }
            Self::Json(json) => json.field(name).map(Self::of),
            _ => None,
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Json(Json::List { .. }))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_) | Self::Json(Json::Map { .. }))
    }

    /// The key of a map at a place.
    pub(super) fn key(&self, index: usize) -> Option<Self> {
        match self {
            Self::Map(entries) => entries.get(index).map(|(key, _)| Self::Text(key.clone())),
            Self::Json(Json::Map { fields, .. }) => {
                fields.get(index).map(|(key, _)| Self::borrowed(key))
            }
            _ => None,
        }
    }

    /// Which of two scalars comes first; `None` when they have no order.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Int(left), Self::Int(right)) => left.cmp(right),
            (Self::Text(left), Self::Text(right)) => left.cmp(right),
            (Self::Bool(left), Self::Bool(right)) => left.cmp(right),
            (Self::Bytes(left), Self::Bytes(right)) => left.cmp(right),
            (Self::Time(left), Self::Time(right)) => left.cmp(right),
            (Self::Duration(left), Self::Duration(right)) => left.cmp(right),
            _ => compare(&self.number_text()?, &other.number_text()?),
        })
    }

    /// The entries of a list or the values of a map, to be compared.
    pub(super) fn parts(&self) -> Vec<(Option<Text<'v>>, Self)> {
        match self {
            Self::List(items) => items.iter().map(|item| (None, item.clone())).collect(),
            Self::Map(entries) => entries
                .iter()
                .map(|(key, value)| (Some(key.clone()), value.clone()))
                .collect(),
            Self::Json(Json::List { items, .. }) => {
                items.iter().map(|item| (None, Self::of(item))).collect()
            }
            Self::Json(Json::Map { fields, .. }) => fields
                .iter()
                .map(|(key, value)| (Some(Text::Borrowed(key)), Self::of(value)))
                .collect(),
            _ => Vec::new(),
        }
    }
}
