//! Databases and users of a rule.

use regex_lite::Regex;

use super::Connection;
use super::lexer::Word;

/// The longest pattern, and how much memory one may take, in bytes.
const PATTERN_MAX: usize = 1024;
const PATTERN_MEMORY_MAX: usize = 1 << 20;

/// One name, or a pattern of names.
#[derive(Debug, Clone)]
enum Name {
    Exact(String),
    Pattern(Regex),
}

impl Name {
    /// A pattern begins with a slash, quoted or not.
    fn parse(text: &str) -> Result<Self, String> {
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
            return Err(unknown_members(&word.text));
        } else {
            Database::Name(Name::parse(&word.text)?)
        };
        self.0.push(database);
        Ok(())
    }

    pub(super) fn fit(&self, connection: &Connection<'_>) -> bool {
        let Connection { user, database, physical_replication, .. } = *connection;
        self.0.iter().any(|entry| match entry {
            Database::Replication => physical_replication,
            _ if physical_replication => false,
            Database::All => true,
            Database::SameUser => user == database,
            Database::Name(name) => name.fits(database),
        })
    }
}

#[derive(Debug, Clone)]
enum User {
    All,
    Name(Name),
}

/// The users of a rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Users(Vec<User>);

impl Users {
    pub(super) fn add(&mut self, word: &Word) -> Result<(), String> {
        let user = if word.is("all") {
            User::All
        } else if word.after('+').is_some() {
            return Err(unknown_members(&word.text));
        } else {
            User::Name(Name::parse(&word.text)?)
        };
        self.0.push(user);
        Ok(())
    }

    pub(super) fn fit(&self, user: &str) -> bool {
        self.0.iter().any(|entry| match entry {
            User::All => true,
            User::Name(name) => name.fits(user),
        })
    }
}

fn unknown_members(word: &str) -> String {
    format!(
        "`{word}` is not supported: metako does not know who is a member of which role; name the users, or keep them in \
         a file and write @FILE"
    )
}
