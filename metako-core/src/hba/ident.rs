//! Maps of names: which users a name in a certificate may be, in the format of PostgreSQL's pg_ident.conf.

use std::path::Path;

use regex_lite::{Captures, Regex};

use super::lexer::Field;
use super::name::{Name, User};
use super::parse::{Fault, Fields, Line, Open, Reader, fault, single};
use super::{Facts, HbaFiles, HbaProblem, Unknown};

/// What stands for the first parenthesised part of the expression.
const FIRST_PART: &str = "\\1";

/// All maps of a file.
#[derive(Debug, Clone, Default)]
pub struct Maps(Vec<Entry>);

/// A line: whoever has this name elsewhere may be this user.
#[derive(Debug, Clone)]
struct Entry {
    map: String,
    name: Name,
    user: User,
}

/// Reads the maps of a file and of all that it includes.
///
/// # Errors
/// Everything that is wrong, in the order of reading; at least one problem.
pub fn load_maps(path: &Path, files: &dyn HbaFiles) -> Result<Maps, Vec<HbaProblem>> {
    let mut entries = Vec::new();
    let problems = Reader::read(files, path, &mut entries);
    if problems.is_empty() { Ok(Maps(entries)) } else { Err(problems) }
}

impl Maps {
    /// Whether there is a line of that map.
    pub fn has(&self, map: &str) -> bool {
        self.0.iter().any(|entry| entry.map == map)
    }

    /// Whether `name` may be `user` by that map.
    ///
    /// # Errors
    /// That takes a fact which is not known yet.
    pub fn may_be(&self, map: &str, name: &str, user: &str, facts: &Facts) -> Result<bool, Unknown> {
        for entry in self.0.iter().filter(|entry| entry.map == map) {
            let fits = match &entry.name {
                Name::Exact(exact) => exact == name && entry.user.fits(user, facts)?,
                Name::Pattern(pattern) => match pattern.captures(name) {
                    Some(parts) => match entry.user.with(&parts) {
                        Some(expected) => expected == user,
                        None if entry.user.wants_first_part() => return Ok(false),
                        None => entry.user.fits(user, facts)?,
                    },
                    None => false,
                },
            };
            if fits {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl User {
    fn wants_first_part(&self) -> bool {
        matches!(self, Self::Name(Name::Exact(name)) if name.contains(FIRST_PART))
    }

    /// The name with the first part of what the expression found in it, if it wants that and there is one.
    fn with(&self, parts: &Captures<'_>) -> Option<String> {
        match self {
            Self::Name(Name::Exact(name)) if self.wants_first_part() => {
                Some(name.replacen(FIRST_PART, parts.get(1)?.as_str(), 1))
            }
            _ => None,
        }
    }
}

impl Line for Entry {
    fn read(_: &mut Reader<'_>, _: &Open, line: &[Field]) -> Result<Option<Self>, Fault> {
        let map = single(&line[0], "name of a map")?;
        let mut fields = Fields { rest: &line[1..], last: map };
        let name_word = single(fields.next("the name in a certificate")?, "name")?;
        let user_word = single(fields.next("the user that this name may be")?, "user")?;
        let name = Name::parse(&name_word.text).map_err(|message| fault(name_word, message))?;
        let user = User::parse(user_word).map_err(|message| fault(user_word, message))?;
        if let Name::Pattern(pattern) = &name
            && user.wants_first_part()
            && has_no_part(pattern)
        {
            let message = format!(
                "regular expression \"{pattern}\" has no subexpressions as requested by backreference in \"{}\"",
                user_word.text
            );
            return Err(fault(user_word, message));
        }
        if let Some(more) = fields.rest.first().and_then(|field| field.first()) {
            return Err(fault(more, format!("found `{}`; expected the end of the line", more.text)));
        }
        Ok(Some(Self { map: map.text.clone(), name, user }))
    }
}

fn has_no_part(pattern: &Regex) -> bool {
    pattern.captures_len() < 2
}
