//! Names and keywords, folded as PostgreSQL folds them.

/// A word in lower case, or the content of a quoted name as it is. PostgreSQL cuts names to 63 bytes; a longer one is
/// kept as no name at all, because no name that is looked for is that long.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    bytes: [u8; Self::MAX],
    length: usize,
}

impl Name {
    const MAX: usize = 63;

    /// A word without quotes, in lower case.
    pub fn folded(word: &[u8]) -> Self {
        let mut name = Self::exact(word);
        if let Some(used) = name.bytes.get_mut(..name.length) {
            used.make_ascii_lowercase();
        }
        name
    }

    /// What stands between quotes, as it is.
    pub fn exact(word: &[u8]) -> Self {
        let mut name = Self { bytes: [0; Self::MAX], length: 0 };
        if let Some(room) = name.bytes.get_mut(..word.len()).filter(|_| word.is_ascii()) {
            room.copy_from_slice(word);
            name.length = word.len();
        }
        name
    }

    /// The first byte of [`Self::as_str`].
    pub fn first(&self) -> Option<u8> {
        self.bytes.get(..self.length).and_then(<[u8]>::first).copied()
    }

    /// The name; empty if it is too long or not ASCII.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}
