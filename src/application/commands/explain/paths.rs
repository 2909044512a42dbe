//! What of an event an expression speaks of, with the values that it found there.

use crate::application::{
    event_view::EventView,
    ports::{Expressions, Scope},
};

/// How many are shown.
const MAX_PATHS: usize = 8;
/// How much of a value is shown, in characters.
const MAX_VALUE: usize = 128;
/// Where paths begin.
const ROOTS: [&str; 8] = [
    "id", "type", "source", "subject", "time", "tenantId", "data", "metadata",
];

/// `data.totalNet is 18.50` for each path that the expression names, in their order.
pub(super) fn values(
    text: &str,
    view: &EventView<'_>,
    expressions: &dyn Expressions,
) -> Vec<String> {
    let paths = paths(text).into_iter().take(MAX_PATHS);
    paths
        .filter_map(|path| value(&path, view, expressions))
        .collect()
}

/// `None` where the path is none to the language.
fn value(path: &str, view: &EventView<'_>, expressions: &dyn Expressions) -> Option<String> {
    let is_there = |path: &str| {
        let test = expressions.compile(&format!("has({path})"), Scope::Event);
        test.is_ok_and(|test| test.is_true(view) == Ok(true))
    };
    let expression = expressions.compile(path, Scope::Event).ok()?;
    if path.contains('.') && !is_there(path) {
        return Some(format!("{path} is not there"));
    }
    let value = expression.json(view).ok()?;
    let value = String::from_utf8_lossy(&value);
    let mut shown: String = value.chars().take(MAX_VALUE).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    Some(format!("{path} is {shown}"))
}

/// The fields that the text names, each once. It need not be understood: what is shown is evaluated by
/// the language itself.
fn paths(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = text;
    let mut is_field = false;
    while let Some(c) = rest.chars().next() {
        if c == '\'' || c == '"' {
            rest = after_text(rest, c);
            is_field = false;
        } else if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if is_word(c) {
            let (path, after) = path(rest);
            let root = path.split('.').next().unwrap_or_default();
            if !is_field && ROOTS.contains(&root) && !found.contains(&path) {
                found.push(path);
            }
            rest = after;
            is_field = false;
        } else {
            is_field = c == '.' || (is_field && c.is_whitespace());
            rest = rest.strip_prefix(c).unwrap_or_default();
        }
    }
    found
}

/// The words with dots between at the beginning, without the function that is called on them.
fn path(text: &str) -> (String, &str) {
    let (first, mut rest) = word(text);
    let mut words = vec![first];
    while let Some(after) = rest.strip_prefix('.') {
        let (next, after) = word(after);
        if next.is_empty() {
            break;
        }
        words.push(next);
        rest = after;
    }
    if rest.trim_start().starts_with('(') {
        words.pop();
    }
    (words.join("."), rest)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What follows a text in quotes.
fn after_text(text: &str, quote: char) -> &str {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == '\\' {
            characters.next();
        } else if c == quote {
            return text.get(at + 1..).unwrap_or_default();
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_that_an_expression_names_are_found_once_each() {
        for (text, expected) in [
            ("data.totalNet > 1000", &["data.totalNet"][..]),
            (
                "type.startsWith('sales.') && data.a.b == data.a.b",
                &["type", "data.a.b"],
            ),
            (
                "has(data.x) || size(data.list) > 1",
                &["data.x", "data.list"],
            ),
            ("data.lines.exists(l, l.data.id > 1)", &["data.lines"]),
            ("'data.no' == \"id \\\" data.no\"", &[]),
            (
                "data['key'].more > 1 // data.no\n&& id == ''",
                &["data", "id"],
            ),
            ("x.data.no + y . id", &[]),
            ("grid.id + ideal", &[]),
            ("data", &["data"]),
            ("", &[]),
            ("'open", &[]),
            ("data.", &["data"]),
            ("ä data.ö", &["data"]),
        ] {
            assert_eq!(paths(text), expected, "{text}");
        }
    }
}
