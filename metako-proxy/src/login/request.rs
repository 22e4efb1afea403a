//! What a start-up message asks for.

use metako_core::wire::startup::StartupMessage;

use super::Replication;

/// A start-up message, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionRequest {
    /// `user`, empty if the client gave none.
    pub(super) user: String,
    /// `database`, else the user.
    pub(super) database: String,
    /// Protocol options (`_pq_.`), by name; metako knows none.
    pub(super) protocol_options: Vec<String>,
    /// All other parameters, as they came.
    pub(super) parameters: Vec<(String, String)>,
    minor: u16,
    replication: Option<String>,
}

impl From<StartupMessage> for SessionRequest {
    fn from(message: StartupMessage) -> Self {
        let value = |name| message.parameter(name).unwrap_or_default().to_owned();
        let (user, database) = (value("user"), value("database"));
        let replication = message.parameter("replication").map(str::to_owned);
        let database = if database.is_empty() { user.clone() } else { database };
        let mut parameters = message.parameters;
        parameters.retain(|(name, _)| !matches!(name.as_str(), "user" | "database" | "replication"));
        Self {
            user,
            database,
            protocol_options: message.options,
            parameters,
            minor: message.version.1,
            replication,
        }
    }
}

impl SessionRequest {
    /// Whether the client has to be told that it gets less than it asked for.
    pub(super) fn wants_more(&self) -> bool {
        self.minor > 0 || !self.protocol_options.is_empty()
    }

    /// Which replication connection it asks for, if one; `Err` with the value if that is no boolean and not `database`.
    pub(super) fn wants_replication(&self) -> Result<Option<Replication>, &str> {
        let Some(value) = self.replication.as_deref() else { return Ok(None) };
        match value.to_ascii_lowercase().as_str() {
            "database" => Ok(Some(Replication::Logical)),
            "true" | "on" | "yes" | "1" => Ok(Some(Replication::Physical)),
            "false" | "off" | "no" | "0" => Ok(None),
            _ => Err(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(parameters: &[(&str, &str)]) -> SessionRequest {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        StartupMessage { version: (3, 0), parameters: parameters.collect(), options: Vec::new() }.into()
    }

    #[test]
    fn the_last_of_two_users_counts_and_an_empty_database_is_none() {
        let request = request(&[("user", "a"), ("options", "-c a=b"), ("user", "b"), ("database", "")]);
        assert_eq!((request.user.as_str(), request.database.as_str()), ("b", "b"));
        assert_eq!(request.parameters, [("options".to_owned(), "-c a=b".to_owned())]);
        assert!(!request.wants_more());
    }

    #[test]
    fn replication_is_told_from_its_negation() {
        let wants = |value| request(&[("replication", value)]).wants_replication().map_err(str::to_owned);
        assert_eq!(wants("database"), Ok(Some(Replication::Logical)));
        assert_eq!(wants("ON"), Ok(Some(Replication::Physical)));
        assert_eq!(wants("false"), Ok(None));
        assert_eq!(wants("perhaps"), Err("perhaps".to_owned()));
        assert_eq!(request(&[]).wants_replication(), Ok(None));
    }
}
