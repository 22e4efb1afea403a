//! ARCHITECTURE.md's absences, as far as text and the dependency tree can show them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Rust files under `folder`, with what stands before their unit tests.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut folders = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
                found.push((path.strip_prefix(root()).unwrap().display().to_string(), shipped));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Lines of code, without comments, that have one of these words.
fn lines_with(sources: &[(String, String)], words: &[&str]) -> Vec<String> {
    let lines = sources.iter().flat_map(|(path, text)| {
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.map(move |(number, line)| (path, number, line))
    });
    let hits = lines.filter(|(_, _, line)| words.iter().any(|word| line.contains(word)));
    hits.map(|(path, number, line)| format!("{path}:{}: {}", number + 1, line.trim())).collect()
}

#[test]
fn the_core_has_no_clock_socket_task_or_randomness() {
    let mut code = sources("metako-core/src");
    code.extend(sources("metako-strategies/src"));
    let words = [
        "std::time::Instant",
        "SystemTime",
        "std::net::Tcp",
        "std::net::Udp",
        "std::thread",
        "std::fs",
        "RandomState",
    ];
    assert_eq!(lines_with(&code, &words), [""; 0]);
}

#[test]
fn no_runtime_is_among_the_dependencies_of_the_core() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--package",
            "metako-core",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--locked",
            "--offline",
        ])
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("metako-core "), "{}", String::from_utf8_lossy(&output.stderr));
    for unwanted in
        ["tokio", "mio", "socket2", "rand", "getrandom", "nix", "metako-proxy", "metako-strategies"]
    {
        let found = tree.lines().any(|line| line.split(' ').next() == Some(unwanted));
        assert!(!found, "metako-core depends on {unwanted}");
    }
}

#[test]
fn the_proxy_reaches_the_world_only_through_env() {
    let outside = ["src/env.rs", "src/env/", "src/playground/", "src/demo/"];
    let mut code = sources("metako-proxy/src");
    code.retain(|(path, _)| !outside.iter().any(|part| path.contains(part)));
    let words = [
        "tokio::spawn",
        "thread::spawn",
        "JoinSet",
        "TcpStream::connect",
        "TcpListener::bind",
        "UnixListener::bind",
        "UnixStream::connect",
        "process::Command",
        "SystemTime",
        "std::time::Instant",
    ];
    assert_eq!(lines_with(&code, &words), [""; 0]);
}
