//! The steps of the walk. Each says what happens, shows it, and tells what was not as it should be.

mod deliver;
mod disable;
mod leftovers;
mod recover;
mod register;
mod tell;

pub(super) use deliver::delivered;
pub(super) use disable::disabled;
pub(super) use leftovers::{dead_letter, without_match};
pub(super) use recover::recovered;
pub(super) use register::{publish, register};
pub(super) use tell::{domain_events, ops_server};

/// The endpoints of the receiver.
mod paths {
    /// Takes everything.
    pub(in super::super) const ORDERS: &str = "/orders";
    /// Fails twice.
    pub(in super::super) const GOODS: &str = "/goods";
    /// Says that it is gone.
    pub(in super::super) const LEDGER: &str = "/ledger";
    /// Is slow.
    pub(in super::super) const ARCHIVE: &str = "/archive";
}

/// The beginning of a text, in one line.
fn shortened(text: &str, most: usize) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().count() > most {
        words = words.chars().take(most).collect();
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("{\n \"a\": 1\n}", 20), "{ \"a\": 1 }");
        assert_eq!(shortened("Überweisung", 4), "Über…");
        assert_eq!(shortened("", 4), "");
    }
}
