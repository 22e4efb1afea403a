//! Where each key stands.

use std::collections::BTreeMap;

use super::problem::{Findings, Problem};
use super::tree::{Place, Tree, Value, item_path, key_path};

/// The places of the values of a file, by key path, such as `nodes[1].port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places(BTreeMap<String, Place>);

impl Places {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut places = BTreeMap::new();
        collect(tree, String::new(), &mut places);
        Self(places)
    }

    /// The place of a value, or of the nearest section around it that the file holds.
    pub(super) fn find(&self, key: &str) -> Place {
        let mut key = key;
        loop {
            if let Some(place) = self.0.get(key) {
                return *place;
            }
            key = key.rfind(['.', '[']).map_or("", |end| &key[..end]);
        }
    }

    /// Whether the file holds the key.
    pub fn holds(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A problem with a key, at its place, or at that of the nearest section around it that the file holds.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        self.find(key).problem(key, message)
    }
}

fn collect(tree: &Tree, path: String, places: &mut BTreeMap<String, Place>) {
    match &tree.value {
        Value::Scalar { .. } => {}
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, item_path(&path, index), places);
            }
        }
        Value::Section(entries) => {
            for entry in entries {
                collect(&entry.value, key_path(&path, &entry.key), places);
            }
        }
    }
    places.insert(path, tree.place);
}

/// Checks of values that already fit the schema.
pub(super) struct Checks<'a> {
    pub(super) places: &'a Places,
    pub(super) findings: &'a mut Findings,
}

impl Checks<'_> {
    /// Reports a problem with the first of the keys that it arises from, unless one of them is wrong in itself.
    pub(super) fn problem(&mut self, keys: &[&str], message: impl Into<String>) {
        if let [first, ..] = keys
            && keys.iter().all(|key| self.findings.sound(key))
        {
            self.findings.problem(self.places.find(first), first, message);
        }
    }

    /// Reports a hazard.
    pub(super) fn warning(&mut self, key: &str, message: impl Into<String>) {
        self.findings.warning(self.places.find(key), key, message);
    }

    /// `line L, column C` of a key, for messages.
    pub(super) fn named(&self, key: &str) -> String {
        let Place { line, column } = self.places.find(key);
        format!("line {line}, column {column}")
    }
}
