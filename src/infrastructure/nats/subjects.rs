//! All subjects, stream names, consumer names and the service's name, from one prefix.

/// The prefix of everything that is ours on NATS: tokens of `[A-Za-z0-9_-]`, separated by dots.
///
/// Stream, consumer and service names may hold no dots: there they are written as `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPrefix(String);

/// The text is no prefix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no subject prefix: tokens of letters, digits, '_' and '-', separated by dots")]
pub struct SubjectPrefixError(String);

impl SubjectPrefix {
    /// Longest prefix in bytes, so that a stream's name stays a file name.
    pub const MAX_LEN: usize = 128;

    /// Checks and wraps a prefix.
    ///
    /// # Errors
    /// [`SubjectPrefixError`] for an empty or too long text, an empty token or another character.
    pub fn try_new(text: &str) -> Result<Self, SubjectPrefixError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let is_token = |token: &str| !token.is_empty() && token.bytes().all(allowed);
        if text.len() > Self::MAX_LEN || !text.split('.').all(is_token) {
            return Err(SubjectPrefixError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The prefix as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Above all durable commands: `<prefix>.commands`.
    pub fn commands(&self) -> String {
        self.below("commands")
    }

    /// Above all domain events: `<prefix>.events`.
    pub fn events(&self) -> String {
        self.below("events")
    }

    /// The subject of a domain event.
    pub fn event(&self, event_type: &str) -> String {
        format!("{}.events.{event_type}", self.0)
    }

    /// The subject of a kind of dead letters: `commands` or `events`.
    pub fn dead_letter(&self, kind: &str) -> String {
        format!("{}.dead_letters.{kind}", self.0)
    }

    /// Above all requests: `<prefix>.api`.
    pub fn api(&self) -> String {
        self.below("api")
    }

    /// The stream of commands.
    pub fn commands_stream(&self) -> String {
        self.stream("COMMANDS")
    }

    /// The stream of domain events.
    pub fn events_stream(&self) -> String {
        self.stream("EVENTS")
    }

    /// The stream of dead letters.
    pub fn dead_letters_stream(&self) -> String {
        self.stream("DEAD_LETTERS")
    }

    /// The durable consumer on the command stream.
    pub fn commands_consumer(&self) -> String {
        format!("{}_commands", self.service())
    }

    /// The durable consumer on the ERP's stream; installations with different prefixes share the
    /// stream, each through its own.
    pub fn erp_consumer(&self) -> String {
        format!("{}_erp", self.service())
    }

    /// The name of the request–reply service.
    pub fn service(&self) -> String {
        self.0.replace('.', "_")
    }

    /// Whether the subject is one of ours: nothing but the worker and its users publishes there.
    pub fn covers(&self, subject: &str) -> bool {
        let below = subject.strip_prefix(&self.0);
        below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
    }

    fn below(&self, token: &str) -> String {
        format!("{}.{token}", self.0)
    }

    fn stream(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.service().to_ascii_uppercase())
    }
}

/// Whether a message can be published on the subject: no wildcards, no empty token, no white
/// space, at most 255 bytes, and not the server's own (`$…`).
pub fn is_publishable(subject: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && !matches!(token, "*" | ">")
            && !token.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    subject.len() <= 255 && !subject.starts_with('$') && subject.split('.').all(is_token)
}

/// Whether a stream or consumer with this subject, which may have wildcards, takes a message.
pub fn is_taken_by(subject: &str, pattern: &str) -> bool {
    let (mut patterns, mut tokens) = (pattern.split('.'), subject.split('.'));
    loop {
        match (patterns.next(), tokens.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(pattern), Some(token)) if pattern == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_follows_the_prefix() {
        let prefix = SubjectPrefix::try_new("site-1.integration").unwrap();
        assert_eq!(prefix.commands(), "site-1.integration.commands");
        assert_eq!(
            prefix.event("webhook.created"),
            "site-1.integration.events.webhook.created"
        );
        assert_eq!(
            prefix.dead_letter("events"),
            "site-1.integration.dead_letters.events"
        );
        assert_eq!(prefix.api(), "site-1.integration.api");
        assert_eq!(prefix.commands_stream(), "SITE-1_INTEGRATION_COMMANDS");
        assert_eq!(prefix.events_stream(), "SITE-1_INTEGRATION_EVENTS");
        assert_eq!(
            prefix.dead_letters_stream(),
            "SITE-1_INTEGRATION_DEAD_LETTERS"
        );
        assert_eq!(prefix.commands_consumer(), "site-1_integration_commands");
        assert_eq!(prefix.erp_consumer(), "site-1_integration_erp");
        assert_eq!(prefix.service(), "site-1_integration");
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "ä", "$SYS", "a\n",
        ] {
            assert!(SubjectPrefix::try_new(text).is_err(), "{text:?}");
        }
        assert!(SubjectPrefix::try_new(&"a".repeat(129)).is_err());
    }

    #[test]
    fn only_what_lies_below_the_prefix_is_ours() {
        let prefix = SubjectPrefix::try_new("integration").unwrap();
        for (subject, expected) in [
            ("integration.commands.a.b", true),
            ("integration", true),
            ("integrations.commands", false),
            ("sales.>", false),
        ] {
            assert_eq!(prefix.covers(subject), expected, "{subject}");
        }
    }

    #[test]
    fn wildcards_take_what_nats_lets_them_take() {
        for (subject, pattern, expected) in [
            ("sales.order", "sales.order", true),
            ("sales.order", "sales.>", true),
            ("sales.order.created", "sales.>", true),
            ("sales.order", "sales.*", true),
            ("sales.order", "*.order", true),
            ("sales", "sales.>", false),
            ("sales.order.created", "sales.*", false),
            ("sales.order", "sales", false),
            ("sales", "sales.order", false),
            ("salesman.order", "sales.>", false),
            ("", "sales.>", false),
        ] {
            assert_eq!(
                is_taken_by(subject, pattern),
                expected,
                "{subject} {pattern}"
            );
        }
    }

    #[test]
    fn replies_go_to_plain_subjects_alone() {
        for (subject, expected) in [
            ("_INBOX.a.b", true),
            ("my.replies", true),
            ("", false),
            ("a..b", false),
            ("a.*", false),
            ("a.>", false),
            ("a b", false),
            ("a\r\nPUB x", false),
            ("$JS.API.STREAM.DELETE.X", false),
        ] {
            assert_eq!(is_publishable(subject), expected, "{subject:?}");
        }
    }
}
