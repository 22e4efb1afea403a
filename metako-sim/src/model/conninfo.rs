//! `primary_conninfo`: keyword and value pairs, as libpq reads them.

use std::collections::BTreeMap;

/// The pairs of a connection string; `None` if libpq would refuse it.
pub(crate) fn parse(text: &str) -> Option<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (keyword, after) = rest.split_once('=')?;
        let keyword = keyword.trim();
        if keyword.is_empty() || keyword.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        pairs.insert(keyword.to_owned(), value);
        rest = after.trim_start();
    }
    Some(pairs)
}

fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            _ if !quoted && char.is_whitespace() => return Some((value, &text[at..])),
            _ => value.push(char),
        }
    }
    (!quoted).then_some((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        let pairs = parse(r"host=db1 port = 5432 application_name='slave 1' password='it\'s' user=a\ b")
            .expect("valid");
        let get = |keyword: &str| pairs[keyword].as_str();
        assert_eq!((get("host"), get("port"), get("application_name")), ("db1", "5432", "slave 1"));
        assert_eq!((get("password"), get("user")), ("it's", "a b"));
        assert_eq!(parse(""), Some(BTreeMap::new()));
        for wrong in ["host", "host='x", "=x", "a b=c"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
