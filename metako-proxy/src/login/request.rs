//! What a start-up message asks for.

use metako_core::wire::sqlstate;
use metako_core::wire::startup::StartupMessage;
use metako_core::wire::write::Report;

use super::{Protocol, Replication};

/// PostgreSQL cuts names to so many bytes.
const NAME_MAX: usize = 63;

/// A start-up message, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionRequest {
    /// `user`, empty if the client gave none.
    pub(super) user: String,
    /// `database`, else the user; empty for physical replication, which is of no database.
    pub(super) database: String,
    /// Protocol options (`_pq_.`), by name; metako knows none.
    pub(super) protocol_options: Vec<String>,
    /// All other parameters, as they came.
    pub(super) parameters: Vec<(String, String)>,
    /// The replication that it asks for.
    pub(super) replication: Option<Replication>,
    minor: u16,
}

impl SessionRequest {
    /// Takes a message apart.
    ///
    /// # Errors
    /// What PostgreSQL says to a value of `replication` that it does not know.
    pub(super) fn read(message: StartupMessage) -> Result<Self, Report> {
        let value = |name| truncated(message.parameter(name).unwrap_or_default()).to_owned();
        let (user, database) = (value("user"), value("database"));
        let replication = replication(message.parameter("replication"))?;
        let database = match replication {
            Some(Replication::Physical) => String::new(),
            _ if database.is_empty() => user.clone(),
            _ => database,
        };
        let mut parameters = message.parameters;
        parameters.retain(|(name, _)| !matches!(name.as_str(), "user" | "database" | "replication"));
        Ok(Self {
            user,
            database,
            protocol_options: message.options,
            parameters,
            replication,
            minor: message.version.1,
        })
    }

    /// The protocol to be spoken, where `newest` is the last that the client can have. There was never a 3.1: PostgreSQL
    /// takes it and speaks 3.0.
    pub(super) fn protocol(&self, newest: Protocol) -> Protocol {
        let asked = if self.minor < Protocol::V3_2.minor() { Protocol::V3_0 } else { Protocol::V3_2 };
        asked.min(newest)
    }

    /// The minor version that the client has to be told because it gets less than it asked for.
    pub(super) fn negotiated_minor(&self, newest: Protocol) -> Option<u16> {
        let less = self.minor > newest.minor() || !self.protocol_options.is_empty();
        less.then(|| self.minor.min(newest.minor()))
    }
}

/// What PostgreSQL keeps of a name: at most 63 bytes, and no half character.
fn truncated(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_MAX)]
}

fn replication(value: Option<&str>) -> Result<Option<Replication>, Report> {
    match value {
        None => Ok(None),
        Some("database") => Ok(Some(Replication::Logical)),
        Some(value) => match boolean(value) {
            Some(true) => Ok(Some(Replication::Physical)),
            Some(false) => Ok(None),
            None => {
                let message = format!("invalid value for parameter \"replication\": \"{value}\"");
                let report = Report::fatal(sqlstate::INVALID_PARAMETER_VALUE, message);
                Err(report.with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."))
            }
        },
    }
}

/// A boolean as PostgreSQL reads it: any beginning of a word that leaves no doubt, in any case.
fn boolean(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || value == "on" || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(version: (u16, u16), parameters: &[(&str, &str)]) -> StartupMessage {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        StartupMessage { version, parameters: parameters.collect(), options: Vec::new() }
    }

    fn request(parameters: &[(&str, &str)]) -> SessionRequest {
        SessionRequest::read(message((3, 0), parameters)).unwrap()
    }

    #[test]
    fn the_last_of_two_users_counts_and_an_empty_database_is_none() {
        let request = request(&[("user", "a"), ("options", "-c a=b"), ("user", "b"), ("database", "")]);
        assert_eq!((request.user.as_str(), request.database.as_str()), ("b", "b"));
        assert_eq!(request.parameters, [("options".to_owned(), "-c a=b".to_owned())]);
        assert_eq!(request.replication, None);
    }

    #[test]
    fn names_are_cut_as_postgresql_cuts_them() {
        let long = format!("{}é", "u".repeat(62));
        assert_eq!(request(&[("user", &long)]).user, "u".repeat(62));
        let fits = "u".repeat(63);
        assert_eq!(request(&[("user", &fits), ("database", &fits)]).database, fits);
        assert_eq!(request(&[("user", &format!("{fits}x"))]).database, fits);
    }

    #[test]
    fn versions_are_agreed_on_as_postgresql_does() {
        let agreed_with = |newest, minor, options: &[&str]| {
            let mut message = message((3, minor), &[("user", "a")]);
            message.options = options.iter().map(|option| (*option).to_owned()).collect();
            let request = SessionRequest::read(message).unwrap();
            (request.protocol(newest), request.negotiated_minor(newest))
        };
        let agreed = |minor, options| agreed_with(Protocol::V3_2, minor, options);
        assert_eq!(agreed(0, &[]), (Protocol::V3_0, None));
        assert_eq!(agreed(1, &[]), (Protocol::V3_0, None));
        assert_eq!(agreed(2, &[]), (Protocol::V3_2, None));
        assert_eq!(agreed(3, &[]), (Protocol::V3_2, Some(2)));
        assert_eq!(agreed(9999, &["_pq_.x"]), (Protocol::V3_2, Some(2)));
        assert_eq!(agreed(0, &["_pq_.x"]), (Protocol::V3_0, Some(0)));
        // Before 18.
        let agreed = |minor, options| agreed_with(Protocol::V3_0, minor, options);
        assert_eq!(agreed(0, &[]), (Protocol::V3_0, None));
        assert_eq!(agreed(1, &[]), (Protocol::V3_0, Some(0)));
        assert_eq!(agreed(2, &["_pq_.x"]), (Protocol::V3_0, Some(0)));
    }

    #[test]
    fn replication_is_physical_logical_or_none() {
        for (value, expected) in [
            ("database", Some(Replication::Logical)),
            ("true", Some(Replication::Physical)),
            ("T", Some(Replication::Physical)),
            ("ON", Some(Replication::Physical)),
            ("1", Some(Replication::Physical)),
            ("false", None),
            ("of", None),
            ("n", None),
            ("0", None),
        ] {
            let request = request(&[("user", "a"), ("database", "d"), ("replication", value)]);
            assert_eq!(request.replication, expected, "{value}");
            let database = if expected == Some(Replication::Physical) { "" } else { "d" };
            assert_eq!(request.database, database, "{value}");
        }
        for value in ["", "o", "Database", "2", "truee"] {
            let refused = SessionRequest::read(message((3, 0), &[("user", "a"), ("replication", value)]));
            assert_eq!(refused.unwrap_err().code, "22023", "{value}");
        }
    }
}
