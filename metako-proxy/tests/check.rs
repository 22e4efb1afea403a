//! Configurations that people write, right and wrong: `config/bad` beside the problems that each must give, `config/good`
//! beside its warnings, and `configs/` as shipped. METAKO_REWRITE=1 writes the expected files anew.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use metako_core::config::{self, Loaded, Problems, SecretSource};
use metako_proxy::check::{SystemSecrets, load_file, load_text};

/// Stands for a folder of files in the configurations.
const FOLDER: &str = "/path/to/";

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pair = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (one, other) = (pair(), pair());
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o600)).unwrap();
        };
        write("cert.pem", &one.cert.pem());
        write("key.pem", &one.signing_key.serialize_pem());
        write("open-key.pem", &one.signing_key.serialize_pem());
        std::fs::set_permissions(dir.path().join("open-key.pem"), Permissions::from_mode(0o640)).unwrap();
        write("other-key.pem", &other.signing_key.serialize_pem());
        write("broken-key.pem", "-----BEGIN PRIVATE KEY-----\n%%%%\n-----END PRIVATE KEY-----\n");
        write("password", "eagle\n");
        write("two-lines", "one\ntwo\n");
        write(
            "hba",
            "local all all peer\nhostssl all alice 10.0.0.0/8 cert\nhost all all all scram-sha-256\n",
        );
        write("ssl-hba", "hostssl all all all scram-sha-256\nhost all all all scram-sha-256\n");
        write("bad-hba", "host all all md5\nhost all +ops 10.0.0.0/8 ldap\nhost all all all scram-sha-265\n");
        write("hook", "#!/bin/sh\n");
        std::fs::set_permissions(dir.path().join("hook"), Permissions::from_mode(0o700)).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        Self { dir }
    }

    fn real(&self) -> String {
        format!("{}/", self.dir.path().display())
    }

    fn load(&self, file: &Path) -> Result<Loaded, Problems> {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap().replace(FOLDER, &self.real());
        load_text(name, &text, &Environment)
    }

    /// Compares what was said with the file beside `file`, or writes that file.
    fn compare(&self, file: &Path, said: &str) -> Result<(), String> {
        let said = said.replace(&self.real(), FOLDER);
        let expected_file = file.with_extension("stderr");
        if std::env::var_os("METAKO_REWRITE").is_some() {
            if said.is_empty() {
                let _ = std::fs::remove_file(&expected_file);
            } else {
                std::fs::write(&expected_file, &said).unwrap();
            }
        }
        let expected = std::fs::read_to_string(&expected_file).unwrap_or_default();
        if said == expected {
            return Ok(());
        }
        Err(format!("{}:\n--- expected\n{expected}\n--- said\n{said}", file.display()))
    }
}

/// A fixed environment and the real files.
struct Environment;

impl SecretSource for Environment {
    fn env(&self, name: &str) -> Option<String> {
        match name {
            "DB_PASSWORD" => Some("tiger".to_owned()),
            "OTHER_PASSWORD" => Some("lion".to_owned()),
            "APP_PASSWORD" => Some("bear".to_owned()),
            _ => None,
        }
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        SystemSecrets.file(path)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/config").join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} files differ:\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn mistakes_are_told_as_they_should_be() {
    let folder = Folder::new();
    let files = yaml_files("bad");
    assert!(files.len() >= 25, "only {} mistakes are tested", files.len());
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| match folder.load(file) {
            Ok(_) => Some(format!("{}: loads, but must not", file.display())),
            Err(problems) => folder.compare(file, &format!("{problems}\n")).err(),
        })
        .collect();
    report(&failures);
}

#[test]
fn good_files_load_with_their_warnings() {
    let folder = Folder::new();
    let failures: Vec<String> = yaml_files("good")
        .iter()
        .filter_map(|file| match folder.load(file) {
            Ok(loaded) => {
                let warnings: Vec<String> =
                    loaded.warnings.iter().map(|warning| format!("{warning}\n")).collect();
                folder.compare(file, &warnings.concat()).err()
            }
            Err(problems) => Some(problems.to_string()),
        })
        .collect();
    report(&failures);
}

#[test]
fn no_secret_is_in_any_message() {
    for file in yaml_files("bad") {
        let text = std::fs::read_to_string(file.with_extension("stderr")).unwrap();
        for secret in ["tiger", "lion", "secret,", "passwort", "c2FsdA"] {
            assert!(!text.contains(secret), "{} shows {secret}", file.display());
        }
    }
}

fn shipped(name: &str) -> PathBuf {
    root().join("../configs").join(name)
}

#[test]
fn the_shipped_example_passes() {
    let loaded = load_file(&shipped("example.yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    // But for TLS it is the predecessor's file.
    let folder = Folder::new();
    let predecessor = folder.load(&root().join("tests/config/good/predecessor.yaml")).unwrap();
    let differences: Vec<String> =
        config::changes(&predecessor.config, &loaded.config).iter().map(ToString::to_string).collect();
    assert!(differences.iter().all(|change| change.starts_with("security.")), "{differences:?}");
}

fn full() -> (String, Loaded) {
    let text = std::fs::read_to_string(shipped("full.yaml")).unwrap();
    let loaded = load_text("full.yaml", &text, &Environment).unwrap_or_else(|problems| panic!("{problems}"));
    (text, loaded)
}

#[test]
fn the_full_file_stands_at_the_defaults() {
    let (text, full) = full();
    // `nodes` and `users` alone, the rest left to the defaults.
    let mut kept = String::new();
    let mut keep = false;
    for line in text.lines() {
        if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            keep = line.starts_with("nodes:") || line.starts_with("users:");
        }
        if keep {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    let short = load_text("short.yaml", &kept, &Environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config::changes(&full.config, &short.config), []);
    assert_eq!(format!("{:?}", full.config), format!("{:?}", short.config));
}

#[test]
fn the_full_file_names_every_key() {
    let (text, full) = full();
    let schema = config::file_schema();
    let root = schema.as_value();
    let mut missing = BTreeSet::new();
    keys(root, root, "", &mut |key| {
        // Of three ways to give a secret only one can be written.
        let one_of_many = key.contains("password") || key.ends_with(".passfile");
        // What is in none of them by default is told in a comment.
        let at_length = ["failover.synchronous.", "hooks.stop.", "hooks.rejoin."];
        let at_length = at_length.iter().any(|section| key.starts_with(section));
        if !full.places.holds(key) && !one_of_many && !at_length {
            missing.insert(key.to_owned());
        }
    });
    assert!(missing.is_empty(), "full.yaml lacks {missing:?}");
    for word in [
        "password_env",
        "password_file",
        "passfile",
        "acks",
        "on_no_voter",
        "commit_guard",
        "command",
        "timeout: 1h",
    ] {
        assert!(text.contains(word), "full.yaml does not speak of {word}");
    }
}

/// Calls `found` with the path of each key that a schema knows; of lists with that of the first item.
fn keys(root: &serde_json::Value, schema: &serde_json::Value, path: &str, found: &mut dyn FnMut(&str)) {
    if let Some(reference) = schema["$ref"].as_str() {
        keys(root, root.pointer(&reference[1..]).unwrap(), path, found);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        found(&path);
        keys(root, property, &path, found);
    }
    if schema["items"].is_object() {
        keys(root, &schema["items"], &format!("{path}[0]"), found);
    }
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        // A choice between a value and a list is told by the key itself.
        if !choice["items"].is_object() {
            keys(root, choice, path, found);
        }
    }
}
