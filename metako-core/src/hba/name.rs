//! Databases and users of a rule.

use regex_lite::Regex;

use super::lexer::Word;
use super::{Connection, Facts, Unknown};

/// The longest pattern, and how much memory one may take, in bytes.
const PATTERN_MAX: usize = 1024;
const PATTERN_MEMORY_MAX: usize = 1 << 20;

/// One name, or a pattern of names.
#[derive(Debug, Clone)]
pub(super) enum Name {
    Exact(String),
    Pattern(Regex),
}

impl Name {
    /// A pattern begins with a slash, quoted or not.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(pattern) = text.strip_prefix('/') else { return Ok(Self::Exact(text.to_owned())) };
        if pattern.len() > PATTERN_MAX {
            return Err(format!("the regular expression is longer than {PATTERN_MAX} bytes"));
        }
        // PostgreSQL's dot stands for a line break as well; a name that holds one is not to get round a rule.
        let built = regex_lite::RegexBuilder::new(pattern)
            .dot_matches_new_line(true)
            .size_limit(PATTERN_MEMORY_MAX)
            .build();
        built.map(Self::Pattern).map_err(|error| {
            format!("the regular expression `{pattern}` cannot be used: {error} (back references and look-around are not supported)")
        })
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(name) => name == text,
            Self::Pattern(pattern) => pattern.is_match(text),
        }
    }
}

#[derive(Debug, Clone)]
enum Database {
    All,
    SameUser,
    SameRole,
    Replication,
    Name(Name),
}

/// The databases of a rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Databases(Vec<Database>);

impl Databases {
    pub(super) fn add(&mut self, word: &Word) -> Result<(), String> {
        let database = if word.is("all") {
            Database::All
        } else if word.is("sameuser") {
            Database::SameUser
        } else if word.is("replication") {
            Database::Replication
        } else if word.is("samerole") || word.is("samegroup") {
            Database::SameRole
        } else {
            Database::Name(Name::parse(&word.text)?)
        };
        self.0.push(database);
        Ok(())
    }

    pub(super) fn fit(&self, connection: &Connection<'_>, facts: &Facts) -> Result<bool, Unknown> {
        let Connection { user, database, physical_replication, .. } = *connection;
        any(&self.0, |entry| match entry {
            Database::Replication => Ok(physical_replication),
            _ if physical_replication => Ok(false),
            Database::All => Ok(true),
            Database::SameUser => Ok(user == database),
            Database::SameRole => facts.has_role(database),
            Database::Name(name) => Ok(name.fits(database)),
        })
    }
}

#[derive(Debug, Clone)]
pub(super) enum User {
    All,
    /// Members of a role.
    Of(String),
    Name(Name),
}

impl User {
    pub(super) fn parse(word: &Word) -> Result<Self, String> {
        if word.is("all") {
            return Ok(Self::All);
        }
        match word.text.strip_prefix('+') {
            Some(role) if !word.quoted => Ok(Self::Of(role.to_owned())),
            _ => Name::parse(&word.text).map(Self::Name),
        }
    }

    pub(super) fn fits(&self, user: &str, facts: &Facts) -> Result<bool, Unknown> {
        match self {
            Self::All => Ok(true),
            Self::Of(role) => facts.has_role(role),
            Self::Name(name) => Ok(name.fits(user)),
        }
    }
}

/// The users of a rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Users(Vec<User>);

impl Users {
    pub(super) fn add(&mut self, word: &Word) -> Result<(), String> {
        self.0.push(User::parse(word)?);
        Ok(())
    }

    pub(super) fn fit(&self, user: &str, facts: &Facts) -> Result<bool, Unknown> {
        any(&self.0, |entry| entry.fits(user, facts))
    }
}

/// Whether one entry fits. What is unknown matters only where no other entry does.
fn any<T>(entries: &[T], fits: impl Fn(&T) -> Result<bool, Unknown>) -> Result<bool, Unknown> {
    let mut unknown = None;
    for entry in entries {
        match fits(entry) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(what) => unknown = Some(what),
        }
    }
    unknown.map_or(Ok(false), Err)
}
