//! Reading the few message bodies that metako has to understand. Input is hostile: nothing here panics, and `None`
//! means that a body is not well formed.

/// The text before the first zero byte, and what follows it.
#[inline]
pub fn text(input: &[u8]) -> Option<(&[u8], &[u8])> {
    // Names are short.
    let end = match input.first_chunk().copied().and_then(zero_in) {
        Some(end) => end,
        None => memchr::memchr(0, input)?,
    };
    Some((&input[..end], &input[end + 1..]))
}

/// Where the first zero byte is among eight.
fn zero_in(bytes: [u8; 8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(bytes);
    // Borrows reach only bytes behind the first zero.
    let zeros = word.wrapping_sub(ONES) & !word & (ONES << 7);
    (zeros != 0).then_some(zeros.trailing_zeros() as usize / 8)
}

/// The fields of an ErrorResponse or NoticeResponse that decide something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorFields<'a> {
    /// Severity, never translated: `ERROR`, `FATAL`, `PANIC`, `WARNING`, ...
    pub severity: &'a [u8],
    /// SQLSTATE.
    pub code: &'a [u8],
    /// The message.
    pub message: &'a [u8],
    /// Where in the text, in characters from one, in decimal.
    pub position: &'a [u8],
    /// The function in PostgreSQL's source that raised it.
    pub routine: &'a [u8],
}

impl ErrorFields<'_> {
    /// Whether the server ends the connection with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// Reads an ErrorResponse or NoticeResponse. A body that is cut off gives the fields that are whole.
pub fn error(body: &[u8]) -> ErrorFields<'_> {
    let mut fields = ErrorFields::default();
    let mut rest = body;
    while let Some((&kind, after)) = rest.split_first() {
        if kind == 0 {
            break;
        }
        let Some((value, after)) = text(after) else { break };
        match kind {
            b'S' if fields.severity.is_empty() => fields.severity = value,
            b'V' => fields.severity = value,
            b'C' => fields.code = value,
            b'M' => fields.message = value,
            b'P' => fields.position = value,
            b'R' => fields.routine = value,
            _ => {}
        }
        rest = after;
    }
    fields
}

/// Name and value of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = text(body)?;
    let (value, rest) = text(rest)?;
    rest.is_empty().then_some((name, value))
}

/// The text of a Query.
pub fn query(body: &[u8]) -> Option<&[u8]> {
    let (sql, rest) = text(body)?;
    rest.is_empty().then_some(sql)
}

/// A Parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty is the unnamed one.
    pub name: &'a [u8],
    /// The text.
    pub sql: &'a [u8],
    /// All of the body that follows the name: text, its terminator, the parameter types.
    pub tail: &'a [u8],
}

/// Reads a Parse.
pub fn parse(body: &[u8]) -> Option<Parse<'_>> {
    let (name, tail) = text(body)?;
    let (sql, types) = text(tail)?;
    let (count, types) = types.split_first_chunk::<2>()?;
    (types.len() == 4 * usize::from(u16::from_be_bytes(*count))).then_some(Parse { name, sql, tail })
}

/// The names at the start of a Bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal.
    pub portal: &'a [u8],
    /// The statement.
    pub statement: &'a [u8],
    /// All of the body that follows the names, as far as it is there.
    pub tail: &'a [u8],
}

/// Reads the names of a Bind, of whose body only the beginning need be there.
pub fn bind(body: &[u8]) -> Option<Bind<'_>> {
    let (portal, rest) = text(body)?;
    let (statement, tail) = text(rest)?;
    Some(Bind { portal, statement, tail })
}

/// What Describe and Close name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

/// Reads a Describe or a Close.
pub fn target(body: &[u8]) -> Option<Target<'_>> {
    let (&kind, rest) = body.split_first()?;
    let (name, rest) = text(rest)?;
    match kind {
        b'S' if rest.is_empty() => Some(Target::Statement(name)),
        b'P' if rest.is_empty() => Some(Target::Portal(name)),
        _ => None,
    }
}

/// Whether a query string may hold more than one statement: something other than white space follows a semicolon. A
/// semicolon inside a literal counts too; the answer errs towards yes.
pub fn may_be_several(sql: &[u8]) -> bool {
    let Some(end) = sql.iter().rposition(|byte| !byte.is_ascii_whitespace() && *byte != b';') else {
        return false;
    };
    memchr::memchr(b';', &sql[..end]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_ends_at_the_first_zero_byte(
            input in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(0x80), any::<u8>()], 0..24),
        ) {
            let end = input.iter().position(|byte| *byte == 0);
            prop_assert_eq!(text(&input), end.map(|end| (&input[..end], &input[end + 1..])));
        }
    }

    #[test]
    fn error_fields_are_found_and_a_cut_body_gives_what_is_whole() {
        let body = b"SFEHLER\0VERROR\0C25006\0Mcannot execute INSERT\0Fx.c\0Rprevent\0\0";
        let fields = error(body);
        assert_eq!(
            (fields.severity, fields.code, fields.routine),
            (&b"ERROR"[..], &b"25006"[..], &b"prevent"[..])
        );
        assert!(!fields.is_fatal());
        assert_eq!(error(&body[..20]).code, b"");
        assert!(error(b"SFATAL\0C57P01\0\0").is_fatal());
    }

    #[test]
    fn the_parts_of_extended_messages_are_found() {
        let body = b"s\0select $1\0\0\x01\0\0\0\x17";
        let parsed = parse(body).unwrap();
        assert_eq!((parsed.name, parsed.sql), (&b"s"[..], &b"select $1"[..]));
        assert_eq!(parse(b"s\0select\0\0\x01\0\0\0"), None);
        assert_eq!(parse(b"s\0select"), None);
        assert_eq!(bind(b"p\0s\0rest").unwrap().statement, b"s");
        assert_eq!(target(b"Sname\0"), Some(Target::Statement(b"name")));
        assert_eq!(target(b"Pname\0x"), None);
        assert_eq!(target(b"Xname\0"), None);
        assert_eq!(query(b"select 1\0"), Some(&b"select 1"[..]));
        assert_eq!(query(b"select 1\0x\0"), None);
    }

    #[test]
    fn several_statements_are_suspected_when_text_follows_a_semicolon() {
        for single in ["", ";", "select 1", "select 1; ", "select 1 ;;\n;"] {
            assert!(!may_be_several(single.as_bytes()), "{single:?}");
        }
        for several in ["insert into t values (1); commit", ";a;b", "select 1;--x"] {
            assert!(may_be_several(several.as_bytes()), "{several:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (error(&body), parameter_status(&body), query(&body));
            let _ = (parse(&body), bind(&body), target(&body), may_be_several(&body));
        }
    }
}
