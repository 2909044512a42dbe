//! Reads the tokens of an expression.

/// Where in the text something is wrong, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxFault {
    pub(super) at: usize,
    pub(super) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'s> {
    Name(&'s str),
    /// A name in backticks, which only stands for a field.
    Quoted(&'s str),
    Number(&'s str),
    Text(String),
    Bytes(Vec<u8>),
    Symbol(&'static str),
    End,
}

/// Longer ones first.
const SYMBOLS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "?", ":", "+", "-", "*", "/", "%", ".", ",",
    "(", ")", "[", "]", "{", "}",
];

pub(super) struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, at: 0 }
    }

    /// The next token, and where it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'s>), SyntaxFault> {
        self.skip_blanks();
        let start = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok((start, Token::End));
        };
        let token = match first {
            '0'..='9' => self.number(),
            '.' if rest.chars().nth(1).is_some_and(|c| c.is_ascii_digit()) => self.number(),
            '\'' | '"' => self.quoted(start, "")?,
            '`' => self.field(start)?,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
                match name {
                    "r" | "R" | "b" | "B" | "rb" | "Rb" | "rB" | "RB" | "br" | "bR" | "Br"
                    | "BR"
                        if self.rest().starts_with(['\'', '"']) =>
                    {
                        self.quoted(start, name)?
                    }
                    _ => Token::Name(name),
                }
            }
            _ => self.symbol(start)?,
        };
        Ok((start, token))
    }

    fn rest(&self) -> &'s str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'s str {
        let rest = self.rest();
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn number(&mut self) -> Token<'s> {
        let start = self.at;
        let rest = self.rest();
        if rest.starts_with("0x") || rest.starts_with("0X") {
            self.at += 2;
            self.take_while(|c| c.is_ascii_hexdigit());
        } else {
            self.take_while(|c| c.is_ascii_digit());
            let fraction = self.rest().strip_prefix('.').unwrap_or_default();
            if fraction.starts_with(|c: char| c.is_ascii_digit()) {
                self.at += 1;
                self.take_while(|c| c.is_ascii_digit());
            }
            if self.rest().starts_with(['e', 'E']) {
                self.at += 1;
                if self.rest().starts_with(['+', '-']) {
                    self.at += 1;
                }
                self.take_while(|c| c.is_ascii_digit());
            }
        }
        // What follows without a gap belongs to it: `1u`, and what is no number at all.
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        Token::Number(self.source.get(start..self.at).unwrap_or_default())
    }

    fn field(&mut self, start: usize) -> Result<Token<'s>, SyntaxFault> {
        self.at += 1;
        let name = self.take_while(|c| c != '`' && c != '\n');
        if name.is_empty() || !self.rest().starts_with('`') {
            return Err(fault(start, "a name in backticks has no end"));
        }
        self.at += 1;
        Ok(Token::Quoted(name))
    }

    fn symbol(&mut self, start: usize) -> Result<Token<'s>, SyntaxFault> {
        let rest = self.rest();
        match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            Some(symbol) => {
                self.at += symbol.len();
                Ok(Token::Symbol(symbol))
            }
            None => Err(fault(start, "a character that means nothing here")),
        }
    }

    /// A text or bytes, after its prefix.
    fn quoted(&mut self, start: usize, prefix: &str) -> Result<Token<'s>, SyntaxFault> {
        let is_raw = prefix.contains(['r', 'R']);
        let is_bytes = prefix.contains(['b', 'B']);
        let rest = self.rest();
        let quotes = ["'''", "\"\"\"", "'", "\""];
        let quote = quotes.into_iter().find(|quote| rest.starts_with(quote));
        let quote = quote.unwrap_or("'");
        self.at += quote.len();
        let mut bytes = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            match rest.chars().next() {
                None => return Err(fault(start, "a text has no end")),
                Some('\n' | '\r') if quote.len() == 1 => {
                    return Err(fault(start, "a text has no end on its line"));
                }
                Some('\\') if !is_raw => self.escape(is_bytes, &mut bytes)?,
                Some(c) => {
                    self.at += c.len_utf8();
                    push(&mut bytes, c);
                }
            }
        }
        if is_bytes {
            return Ok(Token::Bytes(bytes));
        }
        String::from_utf8(bytes)
            .map(Token::Text)
            .map_err(|_| fault(start, "a text that is no Unicode"))
    }

    fn escape(&mut self, is_bytes: bool, bytes: &mut Vec<u8>) -> Result<(), SyntaxFault> {
        let start = self.at;
        self.at += 1;
        let kind = self.rest().chars().next();
        self.at += kind.map_or(0, char::len_utf8);
        let plain = match kind {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(c @ ('\\' | '\'' | '"' | '`' | '?')) => c,
            Some('x' | 'X') => return self.code(start, (2, 16), is_bytes, bytes),
            Some('u') if !is_bytes => return self.code(start, (4, 16), false, bytes),
            Some('U') if !is_bytes => return self.code(start, (8, 16), false, bytes),
            Some('0'..='3') => {
                self.at -= 1;
                return self.code(start, (3, 8), is_bytes, bytes);
            }
            _ => return Err(fault(start, "an escape that means nothing")),
        };
        push(bytes, plain);
        Ok(())
    }

    /// A character (or a byte) by its number.
    fn code(
        &mut self,
        start: usize,
        (length, radix): (usize, u32),
        is_byte: bool,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SyntaxFault> {
        let digits = self.rest().get(..length);
        let all_digits = digits.filter(|d| d.chars().all(|c| c.is_digit(radix)));
        let number = all_digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let number = number.ok_or_else(|| fault(start, "an escape without its digits"))?;
        self.at += length;
        if is_byte {
            let byte =
                u8::try_from(number).map_err(|_| fault(start, "an escape that is no byte"))?;
            bytes.push(byte);
        } else {
            let c = char::from_u32(number);
            push(
                bytes,
                c.ok_or_else(|| fault(start, "an escape that is no character"))?,
            );
        }
        Ok(())
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

pub(super) fn fault(at: usize, message: impl Into<String>) -> SyntaxFault {
    SyntaxFault {
        at,
        message: message.into(),
    }
}
