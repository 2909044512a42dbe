//! How an endpoint of the receiver answers.

use std::time::Duration;

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// How long it takes until it comes.
    pub(crate) delay: Duration,
}

impl Answer {
    /// Comes at once.
    pub(crate) const fn at_once(status: u16) -> Self {
        Self {
            status,
            delay: Duration::ZERO,
        }
    }

    /// Keeps who asks waiting.
    pub(crate) const fn after(status: u16, delay: Duration) -> Self {
        Self { status, delay }
    }
}

/// The answers of one endpoint: the first requests get the first ones, all others the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    first: Vec<Answer>,
    last: Answer,
    given: usize,
}

impl Script {
    /// The same answer to every request.
    pub(crate) fn always(answer: Answer) -> Self {
        Self::first_then(Vec::new(), answer)
    }

    /// Some answers in turn, and one for all requests after that.
    pub(crate) fn first_then(first: Vec<Answer>, last: Answer) -> Self {
        Self {
            first,
            last,
            given: 0,
        }
    }

    /// The answer to the next request.
    pub(crate) fn next(&mut self) -> Answer {
        let answer = self.first.get(self.given).copied();
        self.given = self.given.saturating_add(1);
        answer.unwrap_or(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_turn_and_the_last_one_stays() {
        let slow = Answer::after(200, Duration::from_millis(300));
        let busy = Answer::at_once(503);
        let mut script = Script::first_then(vec![busy, busy], slow);
        let answers: Vec<Answer> = (0..4).map(|_| script.next()).collect();
        assert_eq!(answers, [busy, busy, slow, slow]);

        let mut script = Script::always(busy);
        assert!((0..3).all(|_| script.next() == busy));
    }
}
