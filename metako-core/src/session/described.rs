//! What servers find statements to be: the types of their parameters, and their columns.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The longest description that is kept for comparison, in bytes; PostgreSQL's longest have half of that.
const LONGEST: usize = 512 << 10;

/// Of a RowDescription's field, what follows its name: table, column, type, length, modifier, format.
const FIXED: usize = 18;

/// What a server said of a statement after its Parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    /// The number of parameters and their types, as in a Parse.
    parameters: Box<[u8]>,
    columns: Option<Columns>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Columns {
    /// Of all that is said of them.
    all: u64,
    /// Of what may not change: not the table that they come from.
    shape: u64,
}

impl Description {
    pub(super) fn parameters(&self) -> &[u8] {
        &self.parameters
    }

    pub(super) fn has_columns(&self) -> bool {
        self.columns.is_some()
    }

    /// Whether PostgreSQL lets a statement go on that was like this, and is like `now` when its tables have changed.
    pub(super) fn allows(&self, now: &Self) -> bool {
        self.columns.map(|columns| columns.shape) == now.columns.map(|columns| columns.shape)
    }
}

impl Columns {
    fn of(body: &[u8]) -> Self {
        let hash = |fill: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            fill(&mut hasher);
            hasher.finish()
        };
        let shape = |hasher: &mut DefaultHasher| {
            let mut rest = body.get(2..).unwrap_or_default();
            while let Some(end) = rest.iter().position(|&byte| byte == 0)
                && let Some(fixed) = rest.get(end + 1..end + 1 + FIXED)
            {
                (&rest[..end], &fixed[6..16]).hash(hasher);
                rest = &rest[end + 1 + FIXED..];
            }
        };
        Self { all: hash(&|hasher| body.hash(hasher)), shape: hash(&shape) }
    }
}

/// The messages that describe a statement, as they come.
#[derive(Debug, Default)]
pub(super) struct Describing {
    parameters: Vec<u8>,
    columns: Vec<u8>,
    /// The message at hand, if one has begun.
    tag: Option<u8>,
    has_columns: bool,
    too_long: bool,
}

impl Describing {
    /// A ParameterDescription, a RowDescription or a NoData begins.
    pub(super) fn begin(&mut self, tag: u8) {
        if tag == b't' {
            // What came before it was cut short by an error.
            *self = Self::default();
        }
        self.tag = Some(tag);
    }

    /// Whether what comes next belongs to one of them.
    pub(super) fn goes_on(&self) -> bool {
        self.tag.is_some()
    }

    /// Takes a part of the message at hand. Whether the description is complete with it.
    pub(super) fn take(&mut self, part: &[u8], last: bool) -> bool {
        let Some(tag) = self.tag else { return false };
        let kept = if tag == b't' { &mut self.parameters } else { &mut self.columns };
        self.too_long |= kept.len() + part.len() > LONGEST;
        if !self.too_long {
            kept.extend_from_slice(part);
        }
        if last {
            self.tag = None;
            self.has_columns = tag == b'T';
        }
        last && tag != b't'
    }

    /// The description, once it is complete; not if it is too long.
    pub(super) fn finish(&mut self) -> Option<Description> {
        let Self { parameters, columns, too_long, has_columns, .. } = std::mem::take(self);
        let columns = has_columns.then(|| Columns::of(&columns));
        (!too_long).then(|| Description { parameters: parameters.into(), columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A RowDescription of one column.
    fn column(name: &str, table: u8, kind: u8) -> Vec<u8> {
        let fixed = [[0, 0, 0, table, 0, 1].as_slice(), &[0, 0, 0, kind, 0, 4, 0, 0, 0, 0, 0, 0]].concat();
        [b"\0\x01", name.as_bytes(), b"\0", &fixed].concat()
    }

    fn described(columns: Option<&[u8]>, cut: usize) -> Description {
        let mut describing = Describing::default();
        describing.begin(b't');
        assert!(!describing.take(b"\0\x01\0", false));
        assert!(!describing.take(b"\0\0\x17", true) && !describing.goes_on());
        describing.begin(if columns.is_some() { b'T' } else { b'n' });
        let body = columns.unwrap_or_default();
        let (first, rest) = body.split_at(cut);
        assert!(!describing.take(first, false) && describing.take(rest, true));
        describing.finish().unwrap()
    }

    #[test]
    fn columns_are_the_same_in_another_table_but_not_with_another_name_or_type() {
        let first = described(Some(&column("a", 1, 23)), 5);
        assert_eq!(first, described(Some(&column("a", 1, 23)), 0));
        assert_eq!(first.parameters(), b"\0\x01\0\0\0\x17");
        let moved = described(Some(&column("a", 2, 23)), 1);
        assert!(first != moved && first.allows(&moved));
        for other in [Some(column("b", 1, 23)), Some(column("a", 1, 25)), None] {
            let other = described(other.as_deref(), 0);
            assert!(!first.allows(&other) && !other.allows(&first));
        }
    }

    #[test]
    fn what_is_too_long_is_no_description() {
        let mut describing = Describing::default();
        describing.begin(b'T');
        assert!(!describing.take(&vec![1; LONGEST], false) && describing.take(&[1], true));
        assert_eq!(describing.finish(), None);
    }
}
