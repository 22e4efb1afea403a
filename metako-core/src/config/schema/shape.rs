//! Reading a JSON schema.

use serde_json::Value as Json;

/// A schema with the definitions that it refers to: the schema itself, and behind it those that its `$ref`s name. A
/// keyword counts where it stands first.
#[derive(Clone)]
pub(super) struct Shape<'a> {
    root: &'a Json,
    layers: Vec<&'a Json>,
}

/// How many `$ref`s may follow each other; more are a circle.
const REFERENCES_MAX: usize = 16;

impl<'a> Shape<'a> {
    pub(super) fn of(root: &'a Json, schema: &'a Json) -> Self {
        let mut layers = vec![schema];
        while let Some(reference) = layers[layers.len() - 1].get("$ref").and_then(Json::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            match target {
                Some(target) if layers.len() < REFERENCES_MAX => layers.push(target),
                _ => break,
            }
        }
        Self { root, layers }
    }

    fn keyword(&self, name: &str) -> Option<&'a Json> {
        self.layers.iter().find_map(|layer| layer.get(name))
    }

    fn inner(&self, schema: &'a Json) -> Self {
        Self::of(self.root, schema)
    }

    pub(super) fn text(&self, keyword: &str) -> Option<&'a str> {
        self.keyword(keyword).and_then(Json::as_str)
    }

    pub(super) fn flag(&self, keyword: &str) -> bool {
        self.keyword(keyword).and_then(Json::as_bool).unwrap_or(false)
    }

    pub(super) fn number(&self, keyword: &str) -> Option<u64> {
        self.keyword(keyword).and_then(Json::as_u64)
    }

    /// A bound of a number, whole or not.
    pub(super) fn bound(&self, keyword: &str) -> Option<&'a serde_json::Number> {
        self.keyword(keyword).and_then(Json::as_number)
    }

    pub(super) fn words(&self, keyword: &str) -> Vec<&'a str> {
        self.keyword(keyword)
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect()
    }

    /// What the value may be, `anyOf` and `oneOf` resolved.
    pub(super) fn alternatives(&self) -> Vec<Self> {
        let mut found = Vec::new();
        self.collect_alternatives(&mut found, REFERENCES_MAX);
        found
    }

    fn collect_alternatives(&self, found: &mut Vec<Self>, depth: usize) {
        let choices = ["anyOf", "oneOf", "allOf"].into_iter().find_map(|word| self.keyword(word));
        match choices.and_then(Json::as_array) {
            Some(choices) if depth > 0 && !choices.is_empty() => {
                for choice in choices {
                    self.inner(choice).collect_alternatives(found, depth - 1);
                }
            }
            _ => found.push(self.clone()),
        }
    }

    pub(super) fn is_type(&self, name: &str) -> bool {
        match self.keyword("type") {
            Some(Json::String(one)) => one == name,
            Some(Json::Array(several)) => several.iter().any(|one| one == name),
            _ => false,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.is_type("null")
    }

    pub(super) fn is_section(&self) -> bool {
        self.is_type("object") || self.keyword("properties").is_some()
    }

    pub(super) fn is_list(&self) -> bool {
        self.is_type("array")
    }

    /// Whether it says nothing of the type.
    pub(super) fn is_anything(&self) -> bool {
        ["type", "enum", "const", "properties"].into_iter().all(|word| self.keyword(word).is_none())
    }

    /// The only word that is accepted, if there is just one.
    pub(super) fn word(&self) -> Option<&'a str> {
        self.text("const").or_else(|| match self.words("enum").as_slice() {
            [only] => Some(*only),
            _ => None,
        })
    }

    pub(super) fn property(&self, name: &str) -> Option<Self> {
        self.keyword("properties")?.get(name).map(|schema| self.inner(schema))
    }

    pub(super) fn property_names(&self) -> Vec<&'a str> {
        let properties = self.keyword("properties").and_then(Json::as_object);
        properties.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect()
    }

    /// The schema of keys that are not named.
    pub(super) fn other_properties(&self) -> Option<Self> {
        let others = self.keyword("additionalProperties")?;
        others.is_object().then(|| self.inner(others))
    }

    pub(super) fn accepts_any_key(&self) -> bool {
        self.flag("additionalProperties")
    }

    pub(super) fn required(&self) -> Vec<&'a str> {
        self.words("required")
    }

    pub(super) fn items(&self) -> Option<Self> {
        self.keyword("items").map(|schema| self.inner(schema))
    }
}
