//! PostgreSQL's tokens, as far as metako needs them: where strings, names and comments begin and end.

use crate::plugin::Span;

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub span: Span,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or a name without quotes.
    Word,
    /// `"name"`, quotes included.
    QuotedName,
    /// `U&"name"`: its text is not decoded.
    EscapedName,
    /// A string constant of any form.
    Text,
    /// A number or a parameter such as `$1`.
    Number,
    /// `::`
    Cast,
    /// Any other byte: punctuation or part of an operator.
    Symbol(u8),
    /// From here on it cannot be told what the server reads. Always the last token.
    Broken(&'static str),
}

const UNTERMINATED_TEXT: &str = "a string does not end";
const UNTERMINATED_NAME: &str = "a quoted name does not end";
const UNTERMINATED_COMMENT: &str = "a comment does not end";
const BACKSLASH: &str =
    "where a string ends depends on standard_conforming_strings: a backslash stands before a quote";
const ENCODING: &str = "what is punctuation depends on client_encoding: the text is not UTF-8";
const NUL: &str = "the text holds a NUL byte";

/// Reads tokens off a query text; skips white space and comments. Cheap to copy, so that a copy can look ahead.
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    utf8: bool,
    broken: bool,
}

impl<'a> Lexer<'a> {
    /// Before the first token of a text.
    pub fn new(sql: &'a [u8]) -> Self {
        Self { sql, at: 0, utf8: std::str::from_utf8(sql).is_ok(), broken: false }
    }

    /// Whether there is certainly no further token.
    pub fn is_at_end(&self) -> bool {
        self.at >= self.sql.len()
    }

    /// The bytes of a token.
    pub fn text(&self, token: Token) -> &'a [u8] {
        self.sql.get(token.span.start..token.span.end).unwrap_or_default()
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.sql.get(self.at + ahead).copied()
    }

    /// Moves to the first byte, from here on, that `stop` holds for; or to the end.
    fn skip_until(&mut self, stop: impl Fn(u8) -> bool) {
        let rest = self.sql.get(self.at..).unwrap_or_default();
        self.at += rest.iter().position(|&byte| stop(byte)).unwrap_or(rest.len());
    }

    /// White space and comments. `Err` if a comment does not end.
    fn skip_blank(&mut self) -> Result<(), &'static str> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c'), _) => self.at += 1,
                (Some(b'-'), Some(b'-')) => self.skip_until(|byte| byte == b'\n' || byte == b'\r'),
                (Some(b'/'), Some(b'*')) => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    /// A `/* comment */`; they nest.
    fn skip_comment(&mut self) -> Result<(), &'static str> {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(UNTERMINATED_COMMENT),
            }
        }
    }

    fn token(&mut self, first: u8) -> Result<Kind, &'static str> {
        match (first, self.peek(1), self.peek(2)) {
            (0, ..) => Err(NUL),
            (b'e' | b'E', Some(b'\''), _) => {
                self.at += 2;
                self.escape_string()
            }
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\''), _) => {
                self.at += 2;
                self.plain_string()
            }
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => {
                self.at += 3;
                self.plain_string()
            }
            (b'u' | b'U', Some(b'&'), Some(b'"')) => {
                self.at += 3;
                self.quoted_name().map(|_| Kind::EscapedName)
            }
            (b'\'', ..) => {
                self.at += 1;
                self.plain_string()
            }
            (b'"', ..) => {
                self.at += 1;
                self.quoted_name()
            }
            (b'$', ..) => self.dollar(),
            (b'0'..=b'9', ..) => {
                self.skip_until(|byte| !(byte.is_ascii_digit() || byte == b'.'));
                Ok(Kind::Number)
            }
            (b':', Some(b':'), _) => {
                self.at += 2;
                Ok(Kind::Cast)
            }
            _ if starts_word(first) => self.word(),
            _ => {
                self.at += 1;
                Ok(Kind::Symbol(first))
            }
        }
    }

    fn word(&mut self) -> Result<Kind, &'static str> {
        self.skip_until(|byte| !IN_WORD[usize::from(byte)]);
        self.check_encoding()?;
        Ok(Kind::Word)
    }

    /// After a byte above 127: in some client encodings (`SJIS`, `BIG5`, `GBK`, `JOHAB`, ...) what looks like punctuation is
    /// the second half of a character. UTF-8 has no such bytes.
    fn check_encoding(&self) -> Result<(), &'static str> {
        let before = self.at.checked_sub(1).and_then(|at| self.sql.get(at));
        let doubtful = !self.utf8
            && before.is_some_and(|byte| !byte.is_ascii())
            && self.peek(0).is_some_and(|byte| (0x30..0x7f).contains(&byte));
        if doubtful { Err(ENCODING) } else { Ok(()) }
    }

    /// The rest of a string in which only `''` is special. Where `standard_conforming_strings` is off a backslash is
    /// special too; where that would change the end of the string, nothing is known any more.
    fn plain_string(&mut self) -> Result<Kind, &'static str> {
        loop {
            self.skip_until(|byte| byte == b'\'');
            if self.peek(0).is_none() {
                return Err(UNTERMINATED_TEXT);
            }
            if self.sql.get(self.at - 1) == Some(&b'\\') {
                return Err(BACKSLASH);
            }
            if self.peek(1) != Some(b'\'') {
                self.at += 1;
                return Ok(Kind::Text);
            }
            self.at += 2;
        }
    }

    /// The rest of a string in which a backslash takes the next byte with it.
    fn escape_string(&mut self) -> Result<Kind, &'static str> {
        loop {
            self.skip_until(|byte| byte == b'\'' || byte == b'\\');
            match (self.peek(0), self.peek(1)) {
                (None, _) | (Some(b'\\'), None) => return Err(UNTERMINATED_TEXT),
                (Some(b'\\'), Some(_)) => {
                    self.check_encoding()?;
                    self.at += 2;
                }
                (Some(_), Some(b'\'')) => self.at += 2,
                (Some(_), _) => {
                    self.at += 1;
                    return Ok(Kind::Text);
                }
            }
        }
    }

    fn quoted_name(&mut self) -> Result<Kind, &'static str> {
        loop {
            self.skip_until(|byte| byte == b'"');
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Err(UNTERMINATED_NAME),
                (Some(_), Some(b'"')) => self.at += 2,
                (Some(_), _) => {
                    self.at += 1;
                    return Ok(Kind::QuotedName);
                }
            }
        }
    }

    /// `$1`, `$$text$$`, `$tag$text$tag$`, or a lone `$`.
    fn dollar(&mut self) -> Result<Kind, &'static str> {
        let start = self.at;
        self.at += 1;
        if self.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
            self.skip_until(|byte| !byte.is_ascii_digit());
            return Ok(Kind::Number);
        }
        if self.peek(0).is_some_and(starts_word) {
            self.skip_until(|byte| !(starts_word(byte) || byte.is_ascii_digit()));
            self.check_encoding()?;
        }
        if self.peek(0) != Some(b'$') {
            self.at = start + 1;
            return Ok(Kind::Symbol(b'$'));
        }
        self.at += 1;
        let (_, rest) = self.sql.split_at(self.at);
        let delimiter = self.sql.get(start..self.at).unwrap_or_default();
        match find(rest, delimiter) {
            Some(end) => {
                self.at += end + delimiter.len();
                Ok(Kind::Text)
            }
            None => Err(UNTERMINATED_TEXT),
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.broken {
            return None;
        }
        let blank = self.skip_blank();
        let start = self.at;
        let kind = match blank {
            Ok(()) => {
                let first = self.peek(0)?;
                self.token(first)
            }
            Err(problem) => Err(problem),
        };
        let kind = kind.unwrap_or_else(|problem| {
            self.broken = true;
            self.at = self.sql.len();
            Kind::Broken(problem)
        });
        Some(Token { kind, span: Span { start: start.min(self.at), end: self.at } })
    }
}

const fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

/// Which bytes go on with a word.
const IN_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        #[expect(clippy::cast_possible_truncation, reason = "there are 256 bytes")]
        let this = byte as u8;
        table[byte] = starts_word(this) || this.is_ascii_digit() || this == b'$';
        byte += 1;
    }
    table
};

/// Where `needle` first stands in `text`. The needle begins with `$` and holds no other but its last byte, so a search by
/// that byte does not go back.
fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.iter()
        .enumerate()
        .filter(|&(_, &byte)| byte == b'$')
        .map(|(at, _)| at)
        .find(|&at| text.get(at..).is_some_and(|rest| rest.starts_with(needle)))
}
