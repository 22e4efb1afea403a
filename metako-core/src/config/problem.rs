//! What is wrong with a configuration, and where.

use std::fmt;

use serde::Serialize;

use super::tree::Place;

/// One thing that is wrong, or, among [`super::Loaded::warnings`], doubtful.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in the line, in characters, from 1.
    pub column: usize,
    /// The key with its path, such as `nodes[1].port`; empty where the text as a whole is meant.
    pub key: String,
    /// What is wrong, what was expected, and what was probably meant.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a file, in the order of the file; at least one problem.
///
/// Displays one problem a line, as `file:line:column: key: message`, without a last line break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file, as it was named by the caller.
    pub file: String,
    /// The problems, in the order of the file.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Problems of a file; sorts them.
    pub fn new(file: impl Into<String>, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| (problem.line, problem.column));
        Self { file: file.into(), list }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{problem}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Problems as they are found, and which keys they make unfit for further checks.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Findings {
    /// Adds a problem.
    pub(super) fn problem(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.problems.push(place.problem(key, message));
    }

    /// Adds a warning.
    pub(super) fn warning(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.warnings.push(place.problem(key, message));
    }

    /// Whether no problem was found with a key or with a section that it lies in: what follows from a value that is
    /// wrong already would only confuse.
    pub(super) fn sound(&self, key: &str) -> bool {
        !self.problems.iter().any(|problem| {
            key.strip_prefix(problem.key.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

/// The word nearest to one that is unknown, if it is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count() / 3).max(1)
                || (lower.len() >= 4 && (candidate.starts_with(&lower) || lower.starts_with(candidate)))
        })
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean ...?`, or nothing.
pub(crate) fn did_you_mean(likely: Option<&str>) -> String {
    likely.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default()
}

/// Words to choose from, as `one of a, b or c`; a single one as it is.
pub(super) fn among<S: AsRef<str>>(words: &[S]) -> String {
    if words.len() > 1 { format!("one of {}", one_of(words)) } else { one_of(words) }
}

/// Words as `a, b or c`.
pub(super) fn one_of<S: AsRef<str>>(words: &[S]) -> String {
    match words {
        [] => String::new(),
        [only] => only.as_ref().to_owned(),
        [head @ .., last] => {
            let head: Vec<&str> = head.iter().map(AsRef::as_ref).collect();
            format!("{} or {}", head.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_pen_are_recognised() {
        let known = ["interval", "timeout", "failure_threshold", "probe"];
        for (word, meant) in [
            ("intervall", Some("interval")),
            ("Timeout", Some("timeout")),
            ("failure-threshold", Some("failure_threshold")),
            ("failure", Some("failure_threshold")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(one_of::<&str>(&[]), "");
        assert_eq!(one_of(&["a"]), "a");
        assert_eq!(one_of(&["a", "b", "c"]), "a, b or c");
    }
}
