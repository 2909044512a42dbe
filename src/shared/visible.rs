//! Which characters of a text can be seen, and which steer what is shown of it.

/// Whether the character steers a terminal or the order of the text, or is nothing to see where it
/// stands: controls, bidirectional controls, line and paragraph separators, zero-width characters, tags.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e00ff}'
        )
}

/// Whether anything of the text can be seen: blanks, fillers and what only changes its neighbour do not
/// count.
pub fn is_visible(text: &str) -> bool {
    let filler = |c| {
        matches!(
            c,
            '\u{34f}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{17b4}'
                | '\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{ffa0}'
                | '\u{e0100}'..='\u{e0fff}'
        )
    };
    let seen = |c: char| !c.is_whitespace() && !steers(c) && !filler(c);
    text.chars().any(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_controls_and_what_has_no_width_are_not_seen() {
        for text in [
            "",
            " \t\n\u{a0}\u{2003}\u{3000}",
            "\u{200b}",
            "\u{200d}\u{200c}\u{2060}\u{feff}",
            "\u{202e}\u{2066}\u{2069}\u{200e}\u{61c}",
            "\0\u{1b}\u{7f}\u{9b}",
            "\u{ad}\u{34f}\u{3164}\u{ffa0}\u{2800}\u{fe0f}\u{e0041}",
        ] {
            assert!(!is_visible(text), "{text:?}");
            assert!(is_visible(&format!("{text}a")), "{text:?}");
        }
        for text in ["0", "ä", "名", "👩\u{200d}🚀", "-"] {
            assert!(is_visible(text), "{text:?}");
        }
    }

    #[test]
    fn what_steers_is_told_from_what_is_written() {
        for c in [
            '\u{1b}',
            '\n',
            '\u{9b}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2067}',
            '\u{2028}',
            '\u{feff}',
            '\u{61c}',
            '\u{e0041}',
        ] {
            assert!(steers(c), "{c:?}");
        }
        // The last makes an emoji of the sign before it.
        for c in ['a', ' ', 'ß', '名', 'ع', '\u{301}', '\u{fe0f}'] {
            assert!(!steers(c), "{c:?}");
        }
    }
}
