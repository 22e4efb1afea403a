//! How types are written down for which JSON, or serde, has no good form of its own.

/// Maps whose keys are no text, as lists of key and value: `#[serde(with = "crate::written::pairs")]`.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize as _, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: DeserializeOwned + Ord,
        V: DeserializeOwned,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// Results as `{"ok": ..}` or `{"error": ..}`: `#[serde(with = "crate::written::result")]`.
pub(crate) mod result {
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Written<T, E> {
        Ok(T),
        Error(E),
    }

    pub(crate) fn serialize<T: Serialize, E: Serialize, S: Serializer>(
        result: &Result<T, E>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match result {
            Ok(value) => Written::<&T, &E>::Ok(value),
            Err(error) => Written::Error(error),
        }
        .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T, E, D>(deserializer: D) -> Result<Result<T, E>, D::Error>
    where
        T: DeserializeOwned,
        E: DeserializeOwned,
        D: Deserializer<'de>,
    {
        Ok(match Written::deserialize(deserializer)? {
            Written::Ok(value) => Ok(value),
            Written::Error(error) => Err(error),
        })
    }
}
