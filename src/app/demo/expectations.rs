//! What is to be seen in the demo, and what was.

/// One thing to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expectation {
    Requests,
    DurableCommand,
    Delivered,
    NumbersKept,
    Envelopes,
    Recovered,
    Disabled,
    Parked,
    Drained,
    Unmatched,
    DeadLetter,
    DomainEvents,
    Health,
    Metrics,
}

impl Expectation {
    /// All, in the order in which they are to be seen.
    pub(super) const ALL: [Self; 14] = [
        Self::Requests,
        Self::DurableCommand,
        Self::Delivered,
        Self::NumbersKept,
        Self::Envelopes,
        Self::Recovered,
        Self::Disabled,
        Self::Parked,
        Self::Drained,
        Self::Unmatched,
        Self::DeadLetter,
        Self::DomainEvents,
        Self::Health,
        Self::Metrics,
    ];

    /// What it is, in a line.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Requests => "requests over NATS create an integration and webhooks",
            Self::DurableCommand => {
                "a durable command does the same and answers where it is asked to"
            }
            Self::Delivered => "an event is delivered, and its signature is right",
            Self::NumbersKept => "numbers arrive as the ERP wrote them",
            Self::Envelopes => "events arrive as CloudEvents, whatever envelope they came in",
            Self::Recovered => "a failing endpoint is tried again until it takes the event",
            Self::Disabled => "an endpoint that answers 410 is disabled",
            Self::Parked => "its events wait meanwhile, without a single request",
            Self::Drained => "they are all delivered once it is activated",
            Self::Unmatched => "an event that no webhook wants leaves nothing behind",
            Self::DeadLetter => "a message without meaning becomes a dead letter, with the reason",
            Self::DomainEvents => "every change was published as a domain event, without gaps",
            Self::Health => "the worker is healthy",
            Self::Metrics => "its metrics have counted all of it",
        }
    }
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<Expectation>);

impl Seen {
    pub(super) fn add(&mut self, expectation: Expectation) {
        if !self.contains(expectation) {
            self.0.push(expectation);
        }
    }

    pub(super) fn contains(&self, expectation: Expectation) -> bool {
        self.0.contains(&expectation)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_everything(&self) -> bool {
        Expectation::ALL.into_iter().all(|one| self.contains(one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_was_seen_only_when_each_thing_was() {
        let mut seen = Seen::default();
        for (index, one) in Expectation::ALL.into_iter().enumerate() {
            assert!(!seen.is_everything());
            seen.add(one);
            seen.add(one);
            assert_eq!(seen.count(), index + 1);
        }
        assert!(seen.is_everything());
    }

    #[test]
    fn no_two_expectations_read_the_same() {
        let mut texts = Expectation::ALL.map(Expectation::text).to_vec();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Expectation::ALL.len());
    }
}
