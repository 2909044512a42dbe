//! Event patterns: exact types, or NATS wildcards over dot-separated tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one token of a pattern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatternToken<'a> {
    /// This token only.
    Exact(&'a str),
    /// `*`: any one token.
    Any,
    /// `>`: one or more tokens, at the end.
    Rest,
}

/// An exact event type, or a pattern by the rules of NATS subjects.
/// `*` alone means every event, as `>` does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventPattern(String);

/// The text is no pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    /// Empty or too long.
    #[error("an event pattern has 1 to {} characters", EventPattern::MAX_LEN)]
    Length,
    /// `a..b`, `.a`, `a.`.
    #[error("a token between dots must not be empty")]
    EmptyToken,
    /// White space or a control character.
    #[error("an event pattern holds no white space or control character")]
    Character,
    /// `a*`, `>.b`, `a>`.
    #[error("'*' and '>' stand alone between dots, and '>' only at the end")]
    Wildcard,
}

impl EventPattern {
    /// Longest pattern, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Checks and wraps a pattern.
    ///
    /// # Errors
    /// [`PatternError`] says which rule it breaks.
    pub fn try_new(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return Err(PatternError::Length);
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(PatternError::Character);
        }
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                "" => return Err(PatternError::EmptyToken),
                ">" if tokens.peek().is_some() => return Err(PatternError::Wildcard),
                "*" | ">" => {}
                _ if token.contains(['*', '>']) => return Err(PatternError::Wildcard),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// What keeps a text from being the type of an event: a pattern without wildcards.
    pub fn type_problem(text: &str) -> Option<String> {
        match Self::try_new(text) {
            Err(error) => Some(error.to_string()),
            Ok(pattern) => pattern
                .tokens()
                .any(|token| !matches!(token, PatternToken::Exact(_)))
                .then(|| "must be an event's type, without wildcards".to_owned()),
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens; a lone `*` is [`PatternToken::Rest`].
    pub fn tokens(&self) -> impl Iterator<Item = PatternToken<'_>> {
        let lone_star = self.0 == "*";
        self.0.split('.').map(move |token| match token {
            ">" => PatternToken::Rest,
            "*" if lone_star => PatternToken::Rest,
            "*" => PatternToken::Any,
            exact => PatternToken::Exact(exact),
        })
    }

    /// Whether an event of this type is meant.
    pub fn matches(&self, event_type: &str) -> bool {
        let mut types = event_type.split('.');
        for token in self.tokens() {
            match (token, types.next()) {
                (PatternToken::Rest, Some(_)) => return true,
                (PatternToken::Any, Some(_)) => {}
                (PatternToken::Exact(text), Some(token)) if text == token => {}
                _ => return false,
            }
        }
        types.next().is_none()
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for EventPattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::try_new(&text)
    }
}

impl From<EventPattern> for String {
    fn from(pattern: EventPattern) -> Self {
        pattern.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_by_the_rules_of_nats() {
        for (pattern, event_type, expected) in [
            ("order.created", "order.created", true),
            ("order.created", "order.created.x", false),
            ("order.created", "order", false),
            ("*", "order.created", true),
            (">", "order", true),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.a.b", false),
            ("order.>", "order.a.b", true),
            ("order.>", "order", false),
            ("*.created", "order.created", true),
            ("a.*.c.>", "a.b.c.d", true),
            ("a.*.c.>", "a.b.c", false),
        ] {
            let pattern = EventPattern::try_new(pattern).unwrap();
            assert_eq!(
                pattern.matches(event_type),
                expected,
                "{pattern} {event_type}"
            );
        }
    }

    #[test]
    fn patterns_follow_the_rules_of_nats_subjects() {
        for good in [
            "order.created",
            "*",
            ">",
            "order.*",
            "*.created",
            "order.>",
            "a.*.c.>",
            "größe.x",
        ] {
            assert!(EventPattern::try_new(good).is_ok(), "{good}");
        }
        for (bad, error) in [
            ("", PatternError::Length),
            ("a..b", PatternError::EmptyToken),
            (".a", PatternError::EmptyToken),
            ("a.", PatternError::EmptyToken),
            ("a b", PatternError::Character),
            ("a\n", PatternError::Character),
            ("a*", PatternError::Wildcard),
            (">.b", PatternError::Wildcard),
            ("a>", PatternError::Wildcard),
        ] {
            assert_eq!(EventPattern::try_new(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_type_has_no_wildcards() {
        assert_eq!(EventPattern::type_problem("order.created"), None);
        for bad in ["", "a..b", "*", "order.*", "a.>"] {
            assert!(EventPattern::type_problem(bad).is_some(), "{bad}");
        }
    }
}
