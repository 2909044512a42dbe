//! The functions of expressions.

use std::rc::Rc;

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};

use crate::domain::values::{Timestamp, format_time};

use super::{
    eval::{Budget, Fault},
    number::Decimal,
    value::{Text, Value},
};

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `f(x)`
    Global,
    /// `x.f()`
    Member,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Int,
    Decimal,
    String,
    Bool,
    Same,
    Timestamp,
    Duration,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    UpperAscii,
    Trim,
    Split,
    Join,
    Replace,
    Part(Part),
}

/// A part of a time (UTC) or of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Year,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

const FUNCTIONS: [(&str, Style, Function, usize); 30] = [
    ("size", Style::Global, Function::Size, 1),
    ("int", Style::Global, Function::Int, 1),
    ("uint", Style::Global, Function::Int, 1),
    ("double", Style::Global, Function::Decimal, 1),
    ("string", Style::Global, Function::String, 1),
    ("bool", Style::Global, Function::Bool, 1),
    ("dyn", Style::Global, Function::Same, 1),
    ("timestamp", Style::Global, Function::Timestamp, 1),
    ("duration", Style::Global, Function::Duration, 1),
    ("size", Style::Member, Function::Size, 0),
    ("contains", Style::Member, Function::Contains, 1),
    ("startsWith", Style::Member, Function::StartsWith, 1),
    ("endsWith", Style::Member, Function::EndsWith, 1),
    ("lowerAscii", Style::Member, Function::LowerAscii, 0),
    ("upperAscii", Style::Member, Function::UpperAscii, 0),
    ("trim", Style::Member, Function::Trim, 0),
    ("split", Style::Member, Function::Split, 1),
    ("join", Style::Member, Function::Join, 1),
    ("replace", Style::Member, Function::Replace, 2),
    ("getFullYear", Style::Member, Function::Part(Part::Year), 0),
    ("getMonth", Style::Member, Function::Part(Part::Month), 0),
    ("getDate", Style::Member, Function::Part(Part::Date), 0),
    (
        "getDayOfMonth",
        Style::Member,
        Function::Part(Part::DayOfMonth),
        0,
    ),
    (
        "getDayOfWeek",
        Style::Member,
        Function::Part(Part::DayOfWeek),
        0,
    ),
    (
        "getDayOfYear",
        Style::Member,
        Function::Part(Part::DayOfYear),
        0,
    ),
    ("getHours", Style::Member, Function::Part(Part::Hours), 0),
    (
        "getMinutes",
        Style::Member,
        Function::Part(Part::Minutes),
        0,
    ),
    (
        "getSeconds",
        Style::Member,
        Function::Part(Part::Seconds),
        0,
    ),
    (
        "getMilliseconds",
        Style::Member,
        Function::Part(Part::Milliseconds),
        0,
    ),
    ("join", Style::Global, Function::Join, 2),
];

impl Function {
    pub(super) fn find(name: &str, style: Style) -> Option<(Self, usize)> {
        let mut all = FUNCTIONS.iter();
        let found = all.find(|(known, its, ..)| *known == name && *its == style);
        found.map(|(_, _, function, takes)| (*function, *takes))
    }

    /// Calls it; the first argument is the one before the point.
    pub(super) fn call<'v>(
        self,
        at: usize,
        arguments: &[Value<'v>],
        budget: &mut Budget,
    ) -> Result<Value<'v>, Fault> {
        for argument in arguments {
            budget.step(at, argument.weight())?;
        }
        let wrong = || {
            let kinds: Vec<_> = arguments.iter().map(Value::kind).collect();
            Fault::new(
                at,
                format!("{} cannot be applied to {}", self.name(), kinds.join(", ")),
            )
        };
        let Some(first) = arguments.first() else {
            return Err(wrong());
        };
        if let Some(value) = self.of_texts(at, arguments, budget)? {
            return Ok(value);
        }
        let value = match (self, first) {
            (Self::Size, _) => first
                .len()
                .and_then(|size| i64::try_from(size).ok())
                .map(Value::Int),
            (Self::Int, Value::Time(time)) => Some(Value::Int(time.timestamp())),
            (Self::Int, Value::Text(text)) => text.parse().ok().map(Value::Int),
            (Self::Int, _) => first.decimal().and_then(Decimal::truncate).map(Value::Int),
            (Self::Decimal, Value::Text(text)) => Decimal::parse(text).map(Value::Decimal),
            (Self::Decimal, _) if first.is_number() => Some(first.clone()),
            (Self::Same, _)
            | (Self::Bool, Value::Bool(_))
            | (Self::String, Value::Text(_))
            | (Self::Timestamp, Value::Time(_))
            | (Self::Duration, Value::Duration(_)) => Some(first.clone()),
            (Self::Bool, Value::Text(text)) => text.parse().ok().map(Value::Bool),
            (Self::String, _) => as_text(first).map(Value::built),
            (Self::Timestamp, Value::Text(text)) => time(text).map(Value::Time),
            (Self::Timestamp, _) => first
                .decimal()
                .and_then(Decimal::whole)
                .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
                .map(Value::Time),
            (Self::Duration, Value::Text(text)) => duration(text).map(Value::Duration),
            (Self::Part(part), Value::Time(time)) => Some(Value::Int(part.of_time(*time))),
            (Self::Part(part), Value::Duration(span)) => part.of_span(*span).map(Value::Int),
            _ => None,
        };
        value.ok_or_else(wrong)
    }

    fn name(self) -> &'static str {
        let found = FUNCTIONS
            .iter()
            .find(|(_, _, function, _)| *function == self);
        found.map_or("the function", |(name, ..)| name)
    }

    /// The functions of texts; `None` when it is none of them.
    fn of_texts<'v>(
        self,
        at: usize,
        arguments: &[Value<'v>],
        budget: &mut Budget,
    ) -> Result<Option<Value<'v>>, Fault> {
        let text = |index: usize| match arguments.get(index) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let Some(second) = text(1) else {
            let Some(first) = text(0) else {
                return Ok(None);
            };
            budget.build(at, first.len())?;
            return Ok(match self {
                Self::LowerAscii => Some(Value::built(first.to_ascii_lowercase())),
                Self::UpperAscii => Some(Value::built(first.to_ascii_uppercase())),
                Self::Trim => Some(Value::built(first.trim())),
                _ => None,
            });
        };
        if self == Self::Join {
            return joined(at, arguments, second, budget);
        }
        let Some(first) = text(0) else {
            return Ok(None);
        };
        Ok(match self {
            Self::Contains => Some(Value::Bool(first.contains(&**second))),
            Self::StartsWith => Some(Value::Bool(first.starts_with(&**second))),
            Self::EndsWith => Some(Value::Bool(first.ends_with(&**second))),
            Self::Split => {
                let mut parts = Vec::new();
                for part in first.split(&**second) {
                    budget.entry(at, part.len())?;
                    parts.push(Value::built(part));
                }
                Some(Value::List(Rc::new(parts)))
            }
            Self::Replace => {
                let Some(third) = text(2) else {
                    return Ok(None);
                };
                let count = first.matches(&**second).count();
                budget.build(
                    at,
                    first
                        .len()
                        .saturating_add(count.saturating_mul(third.len())),
                )?;
                Some(Value::built(first.replace(&**second, third)))
            }
            _ => None,
        })
    }
}

fn joined<'v>(
    at: usize,
    arguments: &[Value<'v>],
    separator: &Text<'v>,
    budget: &mut Budget,
) -> Result<Option<Value<'v>>, Fault> {
    let Some(list) = arguments.first().filter(|list| list.is_list()) else {
        return Ok(None);
    };
    let mut all = String::new();
    for index in 0..list.len().unwrap_or(0) {
        let Some(Value::Text(part)) = list.item(index) else {
            return Ok(None);
        };
        budget.build(at, part.len() + separator.len())?;
        if index > 0 {
            all.push_str(separator);
        }
        all.push_str(&part);
    }
    Ok(Some(Value::built(all)))
}

/// A scalar as text; numbers as written.
pub(super) fn as_text(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Text(text) => Some((**text).to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Time(time) => Some(format_time(*time)),
        Value::Duration(span) => Some(span_text(*span)),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        _ => value.number_text(),
    }
}

/// A duration as seconds, as CEL writes it: `90s`, `0.5s`.
pub(super) fn span_text(span: TimeDelta) -> String {
    let millis = Decimal::from(span.num_milliseconds());
    let seconds = millis.divide(Decimal::from(1000));
    seconds.map_or_else(
        || format!("{}s", span.num_seconds()),
        |seconds| format!("{seconds}s"),
    )
}

fn time(text: &str) -> Option<Timestamp> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.with_timezone(&Utc))
}

/// `1h30m`, `-1.5s`, `20ms`
fn duration(text: &str) -> Option<TimeDelta> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total = Decimal::from(0);
    while !rest.is_empty() {
        let (number, after) =
            rest.split_at_checked(rest.find(|c: char| c.is_ascii_alphabetic())?)?;
        let end = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at_checked(end.unwrap_or(after.len()))?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        if number.is_empty() || number.starts_with('-') {
            return None;
        }
        total = total.add(Decimal::parse(number)?.multiply(millis.into())?)?;
        rest = after;
    }
    let millis = total.truncate()?;
    TimeDelta::try_milliseconds(if is_negative { -millis } else { millis })
}

impl Part {
    fn of_time(self, time: Timestamp) -> i64 {
        match self {
            Self::Year => time.year().into(),
            Self::Month => time.month0().into(),
            Self::Date => time.day().into(),
            Self::DayOfMonth => time.day0().into(),
            Self::DayOfWeek => time.weekday().num_days_from_sunday().into(),
            Self::DayOfYear => time.ordinal0().into(),
            Self::Hours => time.hour().into(),
            Self::Minutes => time.minute().into(),
            Self::Seconds => time.second().into(),
            Self::Milliseconds => time.timestamp_subsec_millis().into(),
        }
    }

    fn of_span(self, span: TimeDelta) -> Option<i64> {
        match self {
            Self::Hours => Some(span.num_hours()),
            Self::Minutes => Some(span.num_minutes()),
            Self::Seconds => Some(span.num_seconds()),
            Self::Milliseconds => Some(span.num_milliseconds() % 1000),
            _ => None,
        }
    }
}
