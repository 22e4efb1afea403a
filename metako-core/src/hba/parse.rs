//! Files to rules.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::address::{self, Addresses, Network, Parsed};
use super::lexer::{self, Field, Word};
use super::name::{Databases, Users};
use super::{ClientCertificate, Encryption, HbaFiles, HbaProblem, Method, Rule};
use crate::config::{did_you_mean, nearest};

/// How deep files may include each other, as PostgreSQL has it.
const DEPTH_MAX: usize = 10;
/// How many files are read, and how many rules and words of included files are taken.
const FILES_MAX: usize = 1_000;
const RULES_MAX: usize = 10_000;
const WORDS_MAX: usize = 100_000;

const KINDS: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
const METHODS: [&str; 6] = ["trust", "reject", "scram-sha-256", "md5", "password", "cert"];
/// Methods that PostgreSQL has and metako has not.
const OTHER_METHODS: [&str; 9] = ["gss", "sspi", "ident", "peer", "ldap", "radius", "pam", "bsd", "oauth"];

/// Reads files and gathers problems.
pub(super) struct Reader<'a> {
    files: &'a dyn HbaFiles,
    read: usize,
    words: usize,
    problems: Vec<HbaProblem>,
}

/// A file that is being read.
pub(super) struct Open {
    name: Arc<str>,
    path: PathBuf,
    depth: usize,
}

/// What a line of a file means.
pub(super) trait Line: Sized {
    /// `None` where it can mean nothing to metako.
    fn read(reader: &mut Reader<'_>, open: &Open, line: &[Field]) -> Result<Option<Self>, Fault>;
}

/// A problem with a place, before it is known in which file.
pub(super) type Fault = (usize, usize, String);

pub(super) fn fault(word: &Word, message: impl Into<String>) -> Fault {
    (word.line, word.column, message.into())
}

impl<'a> Reader<'a> {
    /// Appends what the lines of a file, and of all that it includes, mean; gives what is wrong with them.
    pub(super) fn read<L: Line>(files: &'a dyn HbaFiles, path: &Path, found: &mut Vec<L>) -> Vec<HbaProblem> {
        let mut reader = Self { files, read: 0, words: 0, problems: Vec::new() };
        let name = Arc::from(path.display().to_string());
        let open = Open { name, path: path.to_owned(), depth: 0 };
        match reader.text(path) {
            Ok(text) => reader.file(&open, &text, found),
            Err(message) => reader.problem(&open, (1, 1, message)),
        }
        reader.problems
    }

    fn problem(&mut self, open: &Open, (line, column, message): Fault) {
        self.problems.push(HbaProblem { file: open.name.to_string(), line, column, message });
    }

    fn text(&mut self, path: &Path) -> Result<String, String> {
        self.try_text(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    }

    fn try_text(&mut self, path: &Path) -> io::Result<String> {
        self.read += 1;
        if self.read > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files are included")));
        }
        self.files.file(path)
    }

    fn file<L: Line>(&mut self, open: &Open, text: &str, found: &mut Vec<L>) {
        for line in lexer::lines(text) {
            if found.len() >= RULES_MAX || self.read > FILES_MAX {
                self.problem(
                    open,
                    fault(&line[0][0], format!("more than {RULES_MAX} lines or {FILES_MAX} files")),
                );
                return;
            }
            let outcome = match line[0][0].text.as_str() {
                "include" | "include_if_exists" | "include_dir" if !line[0][0].quoted => {
                    self.include(open, &line, found)
                }
                _ => L::read(self, open, &line).map(|meant| found.extend(meant)),
            };
            if let Err(fault) = outcome {
                self.problem(open, fault);
            }
        }
    }

    fn include<L: Line>(&mut self, open: &Open, line: &[Field], found: &mut Vec<L>) -> Result<(), Fault> {
        let directive = &line[0][0];
        let [_, target] = line else {
            return Err(fault(directive, format!("expected one path after `{}`", directive.text)));
        };
        let target = single(target, "path")?;
        let path = beside(&open.path, &target.text);
        let depth = open.depth + 1;
        if depth > DEPTH_MAX {
            return Err(fault(target, format!("files include each other more than {DEPTH_MAX} deep")));
        }
        let paths = if directive.text == "include_dir" {
            let listed = self.files.folder(&path);
            let listed = listed.map_err(|error| {
                fault(target, format!("the folder {} cannot be read: {error}", path.display()))
            })?;
            in_order(listed)
        } else {
            vec![path]
        };
        for path in paths {
            match self.try_text(&path) {
                Ok(text) => {
                    let name = Arc::from(path.display().to_string());
                    self.file(&Open { name, path, depth }, &text, found);
                }
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && directive.text == "include_if_exists" => {}
                Err(error) => {
                    return Err(fault(target, format!("{} cannot be read: {error}", path.display())));
                }
            }
        }
        Ok(())
    }

    /// Words with those of the files that they name in their place. Words of other files stand where their file was named.
    pub(super) fn expand(&mut self, open: &Open, field: &Field) -> Result<Vec<Word>, Fault> {
        let mut words = Vec::new();
        for word in field {
            self.expand_word(&open.path, open.depth, word, word, &mut words)?;
        }
        Ok(words)
    }

    fn expand_word(
        &mut self,
        path: &Path,
        depth: usize,
        word: &Word,
        named: &Word,
        words: &mut Vec<Word>,
    ) -> Result<(), Fault> {
        let Some(file) = word.after('@') else {
            self.words += 1;
            if self.words > WORDS_MAX {
                return Err(fault(named, format!("more than {WORDS_MAX} names")));
            }
            words.push(Word { line: named.line, column: named.column, ..word.clone() });
            return Ok(());
        };
        if depth >= DEPTH_MAX {
            return Err(fault(named, format!("files include each other more than {DEPTH_MAX} deep")));
        }
        let path = beside(path, file);
        let text = self.text(&path).map_err(|message| fault(named, message))?;
        for word in lexer::lines(&text).iter().flatten().flatten() {
            self.expand_word(&path, depth + 1, word, named, words)?;
        }
        Ok(())
    }
}

impl Line for Rule {
    /// A rule that can fit no connection of metako's means nothing.
    fn read(reader: &mut Reader<'_>, open: &Open, line: &[Field]) -> Result<Option<Self>, Fault> {
        let kind = single(&line[0], "kind of connection")?;
        let encryption = match kind.text.as_str() {
            "local" | "hostgssenc" => None,
            "host" | "hostnogssenc" => Some(Encryption::Any),
            "hostssl" => Some(Encryption::Tls),
            "hostnossl" => Some(Encryption::NoTls),
            other => {
                let likely = did_you_mean(nearest(other, KINDS));
                return Err(fault(
                    kind,
                    format!("found `{other}`; expected one of {}{likely}", KINDS.join(", ")),
                ));
            }
        };
        let mut fields = Fields { rest: &line[1..], last: kind };
        let (mut databases, mut users) = (Databases::default(), Users::default());
        for word in reader.expand(open, fields.next("a database, such as `all`")?)? {
            databases.add(&word).or_else(|message| tolerate(encryption, fault(&word, message)))?;
        }
        for word in reader.expand(open, fields.next("a user, such as `all`")?)? {
            users.add(&word).or_else(|message| tolerate(encryption, fault(&word, message)))?;
        }
        let addresses =
            if kind.text == "local" { Ok(Addresses::All) } else { addresses(&mut fields, reader.files) };
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(fault) => {
                tolerate(encryption, fault)?;
                Addresses::All
            }
        };
        let method = single(fields.next("a method, such as scram-sha-256")?, "method")?;
        let Some(encryption) = encryption else {
            let known = METHODS.iter().chain(&OTHER_METHODS).any(|known| *known == method.text);
            return if known { Ok(None) } else { Err(unknown_method(method)) };
        };
        let (method, certificate) = self::method(method, encryption)?;
        let (file, line) = (Arc::clone(&open.name), kind.line);
        let mut rule =
            Self { file, line, encryption, databases, users, addresses, method, certificate, map: None };
        for field in fields.rest {
            for option in field {
                rule.option(option)?;
            }
        }
        Ok(Some(rule))
    }
}

/// A problem with a line that can fit nothing is none: only its form is checked.
fn tolerate(encryption: Option<Encryption>, fault: Fault) -> Result<(), Fault> {
    if encryption.is_none() { Ok(()) } else { Err(fault) }
}

/// The fields of a line, one after the other.
pub(super) struct Fields<'a> {
    pub(super) rest: &'a [Field],
    pub(super) last: &'a Word,
}

impl<'a> Fields<'a> {
    pub(super) fn next(&mut self, expected: &str) -> Result<&'a Field, Fault> {
        let Some((field, rest)) = self.rest.split_first() else {
            return Err(fault(
                self.last,
                format!("the line ends after `{}`; expected {expected}", self.last.text),
            ));
        };
        self.rest = rest;
        self.last = field.last().unwrap_or(self.last);
        Ok(field)
    }
}

pub(super) fn single<'a>(field: &'a Field, what: &str) -> Result<&'a Word, Fault> {
    match field.as_slice() {
        [word] => Ok(word),
        [_, second, ..] => Err(fault(second, format!("a second {what}; expected one"))),
        [] => Err((1, 1, format!("expected a {what}"))),
    }
}

fn addresses(fields: &mut Fields<'_>, files: &dyn HbaFiles) -> Result<Addresses, Fault> {
    let word = single(fields.next("an address, such as 10.0.0.0/8 or `all`")?, "address")?;
    if word.is("all") {
        return Ok(Addresses::All);
    }
    if word.is("samehost") || word.is("samenet") {
        let own = files.interfaces().map_err(|error| {
            fault(word, format!("the addresses of this machine cannot be found out: {error}"))
        })?;
        let host = word.is("samehost");
        let networks = own.into_iter().map(|own| if host { Network::host(own.address) } else { own });
        return Ok(Addresses::Networks(networks.collect()));
    }
    match address::parse(&word.text).map_err(|message| fault(word, message))? {
        Parsed::Whole(addresses) => Ok(addresses),
        Parsed::Masked(address) => {
            let mask = fields.next(&format!("the network mask of {address}, here or as {address}/32"))?;
            let mask = single(mask, "network mask")?;
            Addresses::masked(address, &mask.text).map_err(|message| fault(mask, message))
        }
    }
}

fn method(word: &Word, encryption: Encryption) -> Result<(Method, ClientCertificate), Fault> {
    let method = match word.text.as_str() {
        "trust" => Method::Trust,
        "reject" => Method::Reject,
        "scram-sha-256" => Method::ScramSha256,
        "md5" => Method::Md5,
        "password" => Method::Password,
        "cert" if encryption == Encryption::Tls => return Ok((Method::Cert, ClientCertificate::Name)),
        "cert" => {
            return Err(fault(word, "cert authentication is only supported on hostssl connections"));
        }
        other if OTHER_METHODS.contains(&other) => {
            let message =
                format!("the method `{other}` is not supported; expected one of {}", METHODS.join(", "));
            return Err(fault(word, message));
        }
        _ => return Err(unknown_method(word)),
    };
    Ok((method, ClientCertificate::NotAsked))
}

fn unknown_method(word: &Word) -> Fault {
    let likely = did_you_mean(nearest(&word.text, METHODS));
    fault(word, format!("found `{}`; expected a method, one of {}{likely}", word.text, METHODS.join(", ")))
}

impl Rule {
    /// Takes one of the options behind the method.
    fn option(&mut self, word: &Word) -> Result<(), Fault> {
        let Some((name, value)) = word.text.split_once('=') else {
            return Err(fault(
                word,
                format!("found `{}`; expected an option as NAME=VALUE, or nothing", word.text),
            ));
        };
        let wrong = |message: String| Err(fault(word, message));
        match (name, value) {
            ("clientcert", _) if self.encryption != Encryption::Tls => {
                wrong("clientcert can only be configured for \"hostssl\" rows".to_owned())
            }
            ("clientcert", "verify-full") => {
                self.certificate = ClientCertificate::Name;
                Ok(())
            }
            ("clientcert", "verify-ca") if self.method == Method::Cert => {
                wrong("clientcert only accepts \"verify-full\" when using \"cert\" authentication".to_owned())
            }
            ("clientcert", "verify-ca") => {
                self.certificate = ClientCertificate::Signed;
                Ok(())
            }
            ("clientcert", other) => {
                wrong(format!("found `{other}`; expected clientcert=verify-ca or clientcert=verify-full"))
            }
            ("clientname", "CN") if self.certificate == ClientCertificate::Name => Ok(()),
            ("clientname", "CN") => {
                wrong("clientname needs `cert`, or clientcert=verify-full before it".to_owned())
            }
            ("clientname", _) => wrong("only clientname=CN is supported".to_owned()),
            ("map", map) if self.method == Method::Cert => {
                // An empty name is none, as with PostgreSQL.
                self.map = Some(map.to_owned()).filter(|map| !map.is_empty());
                Ok(())
            }
            ("map", _) => wrong("`map` is only for the method `cert` here".to_owned()),
            _ => wrong(format!("unknown option `{name}`; expected clientcert, clientname or map")),
        }
    }
}

/// A path as it is meant in a file.
fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().map_or_else(|| PathBuf::from(path), |folder| folder.join(path))
}

/// The files of a folder that count, as PostgreSQL chooses and sorts them.
fn in_order(mut listed: Vec<PathBuf>) -> Vec<PathBuf> {
    listed.retain(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            !name.starts_with('.') && Path::new(name).extension().is_some_and(|end| end == "conf")
        })
    });
    listed.sort();
    listed
}
