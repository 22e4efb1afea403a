//! Checks a tree against a JSON schema and gives its scalars their types.
//!
//! The schema of the file comes from the structs of [`super::raw`], that of a strategy's options from its spec; both
//! are checked here in the same way. Besides the vocabulary that `schemars` writes, these keywords are understood:
//!
//! | keyword | meaning |
//! |---|---|
//! | `x-strategy` | a strategy of that kind: a bare name, or a section with `type` and its options |
//! | `x-reserved` | a key whose feature is not built: only that text is accepted |
//! | `x-planned` | words that are known but not built |
//! | `x-secret` | the value is never shown |
//! | `x-min` | the least duration or size |

mod scalar;
mod shape;

use serde_json::{Map, Value as Json};

use super::problem::{Findings, among, did_you_mean, nearest};
use super::tree::{Place, Tree, Value, item_path, key_path};
use crate::plugin::{Kind, StrategyInfo, find, strategies};
use shape::Shape;

/// Checks `tree` against `schema`, whose definitions are its own. Returns the value with what is wrong left out, so
/// that the rest can be checked further; `None` if nothing is left.
pub(super) fn check(schema: &Json, tree: &Tree, key: &str, findings: &mut Findings) -> Option<Json> {
    let shape = Shape::of(schema, schema);
    Checker { findings }.value(&shape, tree, key)
}

struct Checker<'f> {
    findings: &'f mut Findings,
}

impl Checker<'_> {
    fn value(&mut self, shape: &Shape<'_>, tree: &Tree, key: &str) -> Option<Json> {
        if let Some(kind) = shape.text("x-strategy") {
            return self.strategy(kind, tree, key);
        }
        if let Some(accepted) = shape.text("x-reserved") {
            self.reserved(accepted, tree, key);
            return None;
        }
        let alternatives = shape.alternatives();
        if alternatives.iter().any(Shape::is_null) && (tree.is_null() || is_none(tree)) {
            return Some(Json::Null);
        }
        let sections: Vec<&Shape<'_>> = alternatives.iter().filter(|one| one.is_section()).collect();
        let list = alternatives.iter().find(|one| one.is_list());
        match (&tree.value, sections.as_slice(), list) {
            (Value::Section(_), [_, ..], _) => self.section_of(&sections, tree, key),
            (Value::List(items), _, Some(list)) => self.list(list, shape, items, tree.place, key),
            // Left empty: what belongs there may all be commented out.
            (Value::Scalar { .. }, [first, ..], _) if tree.is_null() => {
                Some(Json::Object(self.section(first, tree, key)))
            }
            (Value::Scalar { .. }, _, Some(list)) if tree.is_null() => {
                self.list(list, shape, &[], tree.place, key)
            }
            (Value::Scalar { text, plain }, ..) => {
                let scalar = scalar::Scalar { text, plain: *plain, nothing: tree.is_null() };
                match scalar::typed(shape, &alternatives, &scalar) {
                    Ok(value) => Some(value),
                    Err(message) => self.wrong(tree, key, message),
                }
            }
            (Value::Section(_) | Value::List(_), ..) => {
                let message =
                    format!("found {}; expected {}", found(tree), scalar::expected(shape, &alternatives));
                self.wrong(tree, key, message)
            }
        }
    }

    fn wrong(&mut self, tree: &Tree, key: &str, message: String) -> Option<Json> {
        self.findings.problem(tree.place, key, message);
        None
    }

    /// A section that may have one of several shapes: the one whose fixed words it has, else the first.
    fn section_of(&mut self, shapes: &[&Shape<'_>], tree: &Tree, key: &str) -> Option<Json> {
        let fits = |shape: &&&Shape<'_>| {
            tree.entries().iter().any(|entry| {
                let word = shape.property(&entry.key).and_then(|property| property.word());
                matches!((&entry.value.value, word), (Value::Scalar { text, .. }, Some(word)) if text == word)
            })
        };
        let shape = shapes.iter().find(fits).or_else(|| shapes.first())?;
        Some(Json::Object(self.section(shape, tree, key)))
    }

    fn section(&mut self, shape: &Shape<'_>, tree: &Tree, key: &str) -> Map<String, Json> {
        let mut object = Map::new();
        for entry in tree.entries() {
            let path = key_path(key, &entry.key);
            if let Some(property) = shape.property(&entry.key).or_else(|| shape.other_properties()) {
                if let Some(value) = self.value(&property, &entry.value, &path) {
                    object.insert(entry.key.clone(), value);
                }
            } else if shape.accepts_any_key() {
                object.insert(entry.key.clone(), scalar::untyped(&entry.value));
            } else {
                self.unknown_key(&shape.property_names(), &entry.key, entry.key_place, &path);
            }
        }
        for name in shape.required() {
            if !tree.entries().iter().any(|entry| entry.key == name) {
                self.findings.problem(tree.place, &key_path(key, name), "is missing");
            }
        }
        object
    }

    fn unknown_key(&mut self, known: &[&str], word: &str, place: Place, path: &str) {
        if let Some((word, _)) = word.split_once(':') {
            self.findings.problem(place, path, format!("unknown key; expected a space after `{word}:`"));
            return;
        }
        let message = match nearest(word, known.iter().copied()) {
            Some(likely) => format!("unknown key; did you mean `{likely}`?"),
            None if known.is_empty() => "unknown key; no keys are expected here".to_owned(),
            None => format!("unknown key; expected {}", among(known)),
        };
        self.findings.problem(place, path, message);
    }

    fn list(
        &mut self,
        shape: &Shape<'_>,
        outer: &Shape<'_>,
        items: &[Tree],
        place: Place,
        key: &str,
    ) -> Option<Json> {
        let least = outer.number("minItems").or_else(|| shape.number("minItems")).unwrap_or(0);
        if (items.len() as u64) < least {
            self.findings.problem(place, key, "the list is empty; expected at least one item");
            return None;
        }
        let Some(shape) = shape.items() else {
            return Some(Json::Array(items.iter().map(scalar::untyped).collect()));
        };
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match self.value(&shape, item, &item_path(key, index)) {
                Some(value) => list.push(value),
                // Keeps the places of those that follow.
                None if shape.is_section() => list.push(Json::Object(Map::new())),
                None => {}
            }
        }
        Some(Json::Array(list))
    }

    fn strategy(&mut self, kind: &str, tree: &Tree, key: &str) -> Option<Json> {
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        let named = match &tree.value {
            Value::Scalar { .. } => Some(tree),
            Value::Section(entries) => {
                entries.iter().find(|entry| entry.key == "type").map(|entry| &entry.value)
            }
            Value::List(_) => None,
        };
        let Some(Tree { place, value: Value::Scalar { text: name, .. } }) =
            named.filter(|tree| !tree.is_null())
        else {
            let message = format!(
                "names no strategy; expected the name of a {kind}, or `type: NAME` beside its options; known here: {}",
                among(&names(kind))
            );
            return self.wrong(tree, key, message);
        };
        let Some(info) = find(kind, name) else {
            let known = names(kind);
            let likely = did_you_mean(nearest(name, known.iter().copied()));
            let message = format!("no {kind} `{name}` is linked in; expected {}{likely}", among(&known));
            self.findings.problem(*place, key, message);
            return None;
        };
        Some(Json::Object(self.options(info, tree, key)))
    }

    fn options(&mut self, info: &StrategyInfo, tree: &Tree, key: &str) -> Map<String, Json> {
        let schema = info.schema();
        let shape = Shape::of(schema.as_value(), schema.as_value());
        let without_type = Tree {
            place: tree.place,
            value: Value::Section(
                tree.entries().iter().filter(|entry| entry.key != "type").cloned().collect(),
            ),
        };
        let mut object = Map::new();
        object.insert("type".to_owned(), Json::String(info.name.to_owned()));
        object.extend(self.section(&shape, &without_type, key));
        object
    }

    fn reserved(&mut self, accepted: &str, tree: &Tree, key: &str) {
        let fits = match &tree.value {
            Value::Scalar { text, .. } => tree.is_null() || text == accepted,
            Value::Section(_) | Value::List(_) => false,
        };
        if !fits {
            let message = format!("is not available in this version; leave it out, or write `{accepted}`");
            self.findings.problem(tree.place, key, message);
        }
    }
}

fn names(kind: Kind) -> Vec<&'static str> {
    strategies().into_iter().filter(|info| info.kind == kind).map(|info| info.name).collect()
}

/// Whether it is the word `none`, which stands for a key that is not given.
pub(super) fn is_none(tree: &Tree) -> bool {
    matches!(&tree.value, Value::Scalar { text, plain: true } if text == "none")
}

/// What stands there, in words.
fn found(tree: &Tree) -> &'static str {
    match &tree.value {
        Value::Scalar { .. } => "a single value",
        Value::List(_) => "a list",
        Value::Section(_) => "a section of keys",
    }
}
