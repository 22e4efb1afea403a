//! Which strategies are linked into this binary.

use std::collections::BTreeSet;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;

/// The four kinds of strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`super::FailoverPolicy`]
    FailoverPolicy,
    /// [`super::HealthProbe`]
    HealthProbe,
    /// [`super::LoadBalancer`]
    LoadBalancer,
    /// [`super::QueryClassifier`]
    QueryClassifier,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] =
        [Self::FailoverPolicy, Self::HealthProbe, Self::LoadBalancer, Self::QueryClassifier];

    /// The kind in words, as `metako strategies` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailoverPolicy => "failover_policy",
            Self::HealthProbe => "health_probe",
            Self::LoadBalancer => "load_balancer",
            Self::QueryClassifier => "query_classifier",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a strategy says of itself. Submitted by [`register_strategy!`](crate::register_strategy).
pub struct StrategyInfo {
    /// Its kind.
    pub kind: Kind,
    /// Its name in the YAML; unique within the kind.
    pub name: &'static str,
    /// The crate that it comes from.
    pub crate_name: &'static str,
    schema: fn() -> Schema,
    defaults: fn() -> Value,
}

impl StrategyInfo {
    /// Describes the spec type `S`; for [`register_strategy!`](crate::register_strategy).
    pub const fn of<S: JsonSchema + Default + Serialize>(
        kind: Kind,
        name: &'static str,
        crate_name: &'static str,
    ) -> Self {
        Self {
            kind,
            name,
            crate_name,
            schema: || SchemaGenerator::default().into_root_schema_for::<S>(),
            defaults: || serde_json::to_value(S::default()).unwrap_or(Value::Null),
        }
    }

    /// The JSON schema of the options, without `type`. Allocates; not for the hot path.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The options with their defaults, as a JSON object.
    pub fn defaults(&self) -> Value {
        match (self.defaults)() {
            Value::Null => Value::Object(serde_json::Map::new()),
            value => value,
        }
    }

    /// What the strategy does: the doc comment of its spec.
    pub fn about(&self) -> String {
        let schema = self.schema();
        schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

inventory::collect!(StrategyInfo);

/// All strategies linked in, by kind, then name.
pub fn strategies() -> Vec<&'static StrategyInfo> {
    let mut all: Vec<_> = inventory::iter::<StrategyInfo>().collect();
    all.sort_by_key(|info| (info.kind, info.name, info.crate_name));
    all
}

/// The strategy of that kind and name, if it is linked in.
pub fn find(kind: Kind, name: &str) -> Option<&'static StrategyInfo> {
    inventory::iter::<StrategyInfo>().find(|info| info.kind == kind && info.name == name)
}

/// A registry that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No strategy of a kind was linked in.
    #[error(
        "no {0} is linked in: the binary must name the strategies crate, as in `use metako_strategies as _;`"
    )]
    Empty(Kind),
    /// Two strategies share kind and name.
    #[error("two strategies are called {name} ({kind}): from crates {first} and {second}; rename one")]
    Duplicate {
        /// The kind of both.
        kind: Kind,
        /// The name of both.
        name: &'static str,
        /// The crate of one.
        first: &'static str,
        /// The crate of the other.
        second: &'static str,
    },
}

/// Checks that each kind has a strategy and that names are unique: to be called first by every binary, because a
/// crate that is not named in a binary is not linked, and its strategies are silently missing.
pub fn verify() -> Result<(), RegistryError> {
    let all = strategies();
    let kinds: BTreeSet<Kind> = all.iter().map(|info| info.kind).collect();
    if let Some(missing) = Kind::ALL.into_iter().find(|kind| !kinds.contains(kind)) {
        return Err(RegistryError::Empty(missing));
    }
    for pair in all.windows(2) {
        if pair[0].kind == pair[1].kind && pair[0].name == pair[1].name {
            return Err(RegistryError::Duplicate {
                kind: pair[0].kind,
                name: pair[0].name,
                first: pair[0].crate_name,
                second: pair[1].crate_name,
            });
        }
    }
    Ok(())
}

/// Registers a spec under a kind, so that the YAML can pick it by name and `metako strategies` lists it.
///
/// The spec type derives `Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema` (its doc comments become the
/// printed docs), carries `#[serde(default, deny_unknown_fields)]`, and its `impl` of the spec trait carries
/// `#[typetag::serde(name = "...")]` with the same name.
#[macro_export]
macro_rules! register_strategy {
    ($kind:ident, $name:literal, $spec:ty) => {
        $crate::__private::inventory::submit! {
            $crate::plugin::StrategyInfo::of::<$spec>($crate::plugin::Kind::$kind, $name, env!("CARGO_PKG_NAME"))
        }
    };
}
