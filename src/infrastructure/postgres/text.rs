//! Text that PostgreSQL can keep: it knows no character NUL, and one in a foreign answer or event must
//! not make a whole batch fail.

use std::borrow::Cow;

/// The text with every NUL replaced by U+FFFD.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// As [`clean`], where there is any.
pub(super) fn clean_opt<T: AsRef<str>>(text: Option<&T>) -> Option<Cow<'_, str>> {
    text.map(|text| clean(text.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_replaced_and_everything_else_kept() {
        assert_eq!(clean("a\0b\0"), "a\u{fffd}b\u{fffd}");
        assert!(matches!(clean("größe\u{1}"), Cow::Borrowed("größe\u{1}")));
        assert_eq!(clean_opt::<String>(None), None);
    }
}
