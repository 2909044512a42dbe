//! Rules for NATS subjects and names.

/// Longest subject or prefix, in bytes.
const MAX_SUBJECT: usize = 255;
const MAX_PREFIX: usize = 100;
const MAX_STREAM: usize = 100;

/// What the worker's own subjects begin with, after the prefix.
const OWN: [&str; 5] = ["api", "commands", "connector", "dead_letters", "events"];

fn is_plain(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    !text.is_empty() && text.bytes().all(allowed)
}

/// Checks a subject prefix.
pub(super) fn check_prefix(text: &str) -> Result<(), String> {
    if text.len() > MAX_PREFIX || !text.split('.').all(is_plain) {
        return Err(format!(
            "{text:?} is no prefix: dot-separated tokens of letters, digits, '_' and '-', at most {MAX_PREFIX} characters"
        ));
    }
    Ok(())
}

/// Checks a stream's name.
pub(super) fn check_stream(text: &str) -> Result<(), String> {
    if text.len() > MAX_STREAM || !is_plain(text) {
        return Err(format!(
            "{text:?} is no stream name: 1 to {MAX_STREAM} letters, digits, '_' and '-'"
        ));
    }
    Ok(())
}

/// Checks a subject that may hold wildcards.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_subject(text: &str) -> Result<(), String> {
    let broken = |rule: &str| Err(format!("{text:?} is no subject: {rule}"));
    if text.is_empty() || text.len() > MAX_SUBJECT {
        return broken("it has 1 to 255 characters");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return broken("it holds no white space");
    }
    if text.starts_with('$') || text.starts_with("_INBOX") {
        return broken("what begins with '$' or '_INBOX' belongs to the server and its clients");
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return broken("a token between dots must not be empty"),
            ">" if tokens.peek().is_some() => return broken("'>' stands only at the end"),
            "*" | ">" => {}
            _ if token.contains(['*', '>']) => {
                return broken("'*' and '>' stand alone between dots");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a subject exists that both capture.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Whether the subject `all` captures everything that `part`, which ends in `>`, does.
pub(super) fn includes(all: &str, part: &str) -> bool {
    let (mut all, mut part) = (all.split('.'), part.split('.'));
    loop {
        match (all.next(), part.next()) {
            (Some(">"), Some(_)) => return true,
            (Some(_), Some(">")) => return false,
            (Some(a), Some(b)) if a == b || a == "*" => {}
            (all, part) => return all.is_none() && part.is_none(),
        }
    }
}

/// Checks what the events that are made of answers are published on: `erp.`. No type behind it may make
/// one of the worker's own subjects of it.
pub(super) fn check_response_subject(text: &str, prefix: &str) -> Result<(), String> {
    let tokens = text.strip_suffix('.');
    let tokens = tokens.ok_or_else(|| format!("{text:?} ends without a dot: a type follows it"))?;
    check_prefix(tokens)?;
    if overlap(&format!("{text}>"), &format!("{prefix}.>")) {
        return Err(format!(
            "{text:?} with a type behind it may be one of the worker's own subjects ({prefix}.>)"
        ));
    }
    Ok(())
}

/// Checks the subjects of the source stream: each by itself, against each other, and against the
/// worker's own.
pub(super) fn check_source_subjects(subjects: &[String], prefix: &str) -> Result<(), String> {
    let mut problems: Vec<String> = subjects
        .iter()
        .filter_map(|subject| check_subject(subject).err())
        .collect();
    for (index, one) in subjects.iter().enumerate() {
        for other in subjects.iter().skip(index + 1) {
            if overlap(one, other) {
                problems.push(format!(
                    "{one:?} and {other:?} overlap: a stream takes neither twice"
                ));
            }
        }
        let own = OWN.iter().map(|own| format!("{prefix}.{own}.>"));
        for own in own.filter(|own| overlap(one, own)) {
            problems.push(format!("{one:?} overlaps the worker's own {own:?}"));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}
