//! Enough of Rust's grammar to list the paths that a file names.
//!
//! [`code`] blanks comments and literals, [`paths`] lists every path that is left, the groups of
//! `use` spelled out. Macros and aliases are not seen through; clippy's lists see those.

/// The text with comments and literals blanked; lines and the positions in them stay.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let length = blank_length(chars.get(at..).unwrap_or_default(), out.chars().next_back());
        for _ in 0..length {
            out.push(if chars[at] == '\n' { '\n' } else { ' ' });
            at += 1;
        }
        if length == 0 {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// How many characters from here on are a comment or a literal; 0 where code goes on.
fn blank_length(rest: &[char], before: Option<char>) -> usize {
    let after_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment_length(rest),
        ['"', ..] => quoted_length(rest, '"'),
        ['r', '"' | '#', ..] if !after_word => raw_string_length(rest, 1),
        ['b' | 'c', 'r', '"' | '#', ..] if !after_word => raw_string_length(rest, 2),
        // A character, not a lifetime: `'a'`, `'\n'`.
        ['\'', '\\', ..] => quoted_length(rest, '\''),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

fn block_comment_length(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match rest.get(at..at + 2) {
            Some(['/', '*']) => (depth, at) = (depth + 1, at + 2),
            Some(['*', '/']) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_length(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while let Some(c) = rest.get(at) {
        match c {
            '\\' => at += 2,
            c if *c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// 0 for a raw identifier (`r#type`).
fn raw_string_length(rest: &[char], prefix: usize) -> usize {
    let hashes = rest.iter().skip(prefix).take_while(|c| **c == '#').count();
    let open = prefix + hashes + 1;
    if rest.get(open - 1) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let body = rest.get(open..).unwrap_or_default();
    let end = body.windows(close.len()).position(|window| window == close);
    end.map_or(rest.len(), |end| open + end + close.len())
}

#[derive(Debug, PartialEq)]
pub(crate) struct CodePath {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

/// Every path in the code, with the groups of `use` spelled out.
pub(crate) fn paths(code: &str) -> Vec<CodePath> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let member = at > 0 && tokens[at - 1].1 == ".";
        if is_word(&tokens[at].1) && !member {
            at = path_from(&tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads the path that begins at a word; answers where the code goes on.
fn path_from(
    tokens: &[(usize, String)],
    start: usize,
    prefix: &[String],
    found: &mut Vec<CodePath>,
) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    let mut segments = prefix.to_vec();
    segments.push(word(start).to_owned());
    let mut at = start + 1;
    while word(at) == "::" && is_word(word(at + 1)) {
        segments.push(word(at + 1).to_owned());
        at += 2;
    }
    if word(at) != "::" || word(at + 1) != "{" {
        found.push(CodePath {
            line: tokens[start].0,
            segments,
        });
        return at;
    }
    at += 2;
    while at < tokens.len() && word(at) != "}" {
        at = if is_word(word(at)) {
            path_from(tokens, at, &segments, found)
        } else {
            at + 1
        };
    }
    at + 1
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single characters, each with its line.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut glue = false;
        for c in line.chars() {
            let part = c.is_alphanumeric() || c == '_';
            match found.last_mut() {
                Some((_, last)) if glue && part && is_word_or_number(last) => last.push(c),
                Some((_, last)) if glue && c == ':' && last == ":" => last.push(c),
                _ if c.is_whitespace() => {}
                _ => found.push((number + 1, c.to_string())),
            }
            glue = !c.is_whitespace();
        }
    }
    found
}

fn is_word_or_number(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

#[test]
fn comments_and_literals_are_blanked_and_code_is_kept() {
    for (text, expected) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        (r#"a("b \" c") d"#, "a(        ) d"),
        (r##"a(r#"b " c"#) d"##, "a(          ) d"),
        (r#"a(br"b\") d"#, "a(      ) d"),
        (r"a('b', '\'', '\\')", "a(   ,     ,     )"),
        ("fn a<'b>(r#type: &'b C)", "fn a<'b>(r#type: &'b C)"),
        ("var\"x\"", "var   "),
    ] {
        assert_eq!(code(text), expected, "{text}");
    }
}

#[test]
fn paths_are_listed_with_their_lines() {
    let text = "use a::{b::{self, C}, d as e};\nf.g::<h::I>(j)\n::k::l::*";
    let found: Vec<(usize, String)> = paths(text)
        .into_iter()
        .map(|path| (path.line, path.segments.join("::")))
        .collect();
    let expected = [
        (1, "use"),
        (1, "a::b::self"),
        (1, "a::b::C"),
        (1, "a::d"),
        (1, "a::as"),
        (1, "a::e"),
        (2, "f"),
        (2, "h::I"),
        (2, "j"),
        (3, "k::l"),
    ];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}
