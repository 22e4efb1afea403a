//! `synchronous_standby_names`, as PostgreSQL reads it.

use std::collections::BTreeMap;

/// Which commits wait for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SyncNames {
    /// Empty: commits wait for the local disk only.
    Nobody,
    /// `ANY k (..)`: any `k` of the named.
    Any(usize, Vec<String>),
    /// `FIRST k (..)`, `k (..)` or a bare list: the first `k` of the named that are connected.
    First(usize, Vec<String>),
}

/// Text that PostgreSQL would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of synchronous standbys")]
pub(crate) struct InvalidSyncNames(String);

impl SyncNames {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidSyncNames> {
        let wrong = || InvalidSyncNames(text.to_owned());
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Self::Nobody);
        }
        let Some((head, rest)) = trimmed.split_once('(').filter(|(head, _)| !head.contains(['"', ',']))
        else {
            return Ok(Self::First(1, names(trimmed).ok_or_else(wrong)?));
        };
        let list = names(rest.strip_suffix(')').ok_or_else(wrong)?).ok_or_else(wrong)?;
        let words: Vec<&str> = head.split_whitespace().collect();
        let count = |digits: &str| digits.parse::<usize>().ok().filter(|k| *k > 0).ok_or_else(wrong);
        match words.as_slice() {
            [k] => Ok(Self::First(count(k)?, list)),
            [method, k] if method.eq_ignore_ascii_case("any") => Ok(Self::Any(count(k)?, list)),
            [method, k] if method.eq_ignore_ascii_case("first") => Ok(Self::First(count(k)?, list)),
            _ => Err(wrong()),
        }
    }

    /// The WAL position up to which commits may be acknowledged, given the flush position of each connected standby by
    /// its application name; `None` if too few are connected. Meaningless for [`Self::Nobody`].
    pub(crate) fn confirmed<P: Copy + Ord>(&self, standbys: &BTreeMap<&str, P>) -> Option<P> {
        let flushed = |name: &String| {
            if name == "*" { standbys.values().max() } else { standbys.get(name.as_str()) }.copied()
        };
        match self {
            Self::Nobody => None,
            Self::Any(k, list) => {
                let mut positions: Vec<P> = list.iter().filter_map(flushed).collect();
                positions.sort_unstable_by(|a, b| b.cmp(a));
                positions.get(k - 1).copied()
            }
            Self::First(k, list) => {
                let chosen: Vec<P> = list.iter().filter_map(flushed).take(*k).collect();
                if chosen.len() < *k { None } else { chosen.into_iter().min() }
            }
        }
    }

    /// Whether the standby is one of those that commits may wait for.
    pub(crate) fn names(&self, standby: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Any(_, list) | Self::First(_, list) => {
                list.iter().any(|name| name == standby || name == "*")
            }
        }
    }
}

/// A list of names, separated by commas; a name in double quotes may hold anything.
fn names(text: &str) -> Option<Vec<String>> {
    let mut list = Vec::new();
    let mut rest = text.trim();
    loop {
        let (name, after) = if let Some(quoted) = rest.strip_prefix('"') {
            let (name, after) = quoted.split_once('"')?;
            (name.to_owned(), after)
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let name = rest[..end].trim();
            let plain =
                name == "*" || name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$');
            (plain.then(|| name.to_ascii_lowercase())?, &rest[end..])
        };
        if name.is_empty() {
            return None;
        }
        list.push(name);
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(list);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_forms_that_postgresql_accepts_are_read() {
        for (text, expected) in [
            ("", SyncNames::Nobody),
            ("  ", SyncNames::Nobody),
            ("ANY 1 (pg2, pg3)", SyncNames::Any(1, list(&["pg2", "pg3"]))),
            ("any 2 (\"slave-1\",\"slave-2\")", SyncNames::Any(2, list(&["slave-1", "slave-2"]))),
            ("FIRST 2 (a, b, c)", SyncNames::First(2, list(&["a", "b", "c"]))),
            ("2 (a, b)", SyncNames::First(2, list(&["a", "b"]))),
            ("a, b", SyncNames::First(1, list(&["a", "b"]))),
            ("\"a(1)\"", SyncNames::First(1, list(&["a(1)"]))),
            ("*", SyncNames::First(1, list(&["*"]))),
        ] {
            assert_eq!(SyncNames::parse(text), Ok(expected), "{text:?}");
        }
        for text in ["ANY 0 (a)", "ANY (a)", "ANY 1 a", "ANY 1 (a", "a,,b", "slave-1", "ANY 1 ()"] {
            assert!(SyncNames::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_quorum_confirms_what_that_many_have() {
        let standbys = BTreeMap::from([("a", 30), ("b", 10), ("c", 20)]);
        let confirmed = |text: &str| SyncNames::parse(text).expect("valid").confirmed(&standbys);
        assert_eq!(confirmed("ANY 1 (a, b, c)"), Some(30));
        assert_eq!(confirmed("ANY 2 (a, b, c)"), Some(20));
        assert_eq!(confirmed("ANY 2 (a, gone)"), None);
        assert_eq!(confirmed("FIRST 1 (gone, b, a)"), Some(10));
        assert_eq!(confirmed("FIRST 2 (a, b)"), Some(10));
        assert_eq!(confirmed("*"), Some(30));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = SyncNames::parse(&text);
        }

        #[test]
        fn quoted_names_survive(name in "[a-zA-Z0-9 ,()-]{1,12}", k in 1_usize..4) {
            let parsed = SyncNames::parse(&format!("ANY {k} (\"{name}\")"));
            prop_assert_eq!(parsed, Ok(SyncNames::Any(k, vec![name])));
        }
    }
}
