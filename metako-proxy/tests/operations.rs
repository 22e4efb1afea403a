//! Reload, status, TLS for clients, time-outs, the periodic report: a metako process on a real cluster.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use metako_proxy::playground::Cluster;
use nix::sys::signal::Signal;
use running::{Metako, client, client_output, eventually, text};
use tokio_postgres::NoTls;

#[test]
fn a_reload_adds_and_removes_nodes_without_dropping_a_client() {
    let cluster = running::cluster(2, None);
    let all = running::configuration(&cluster, "");
    let third = all.lines().filter(|line| line.contains("name: node-3")).count();
    assert_eq!(third, 1, "one line a node:\n{all}");
    let two: String =
        all.lines().filter(|line| !line.contains("name: node-3")).flat_map(|line| [line, "\n"]).collect();

    let metako = Metako::start(&two);
    metako.wait_until_open(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dsn = running::dsn(&cluster, metako.port);
    let (session, connection) = runtime.block_on(tokio_postgres::connect(&dsn, NoTls)).unwrap();
    runtime.spawn(connection);
    let ask = || -> i32 { runtime.block_on(session.query_one("select 7", &[])).unwrap().get(0) };
    assert_eq!(ask(), 7);
    runtime.block_on(session.batch_execute("begin; create table kept (id int)")).unwrap();

    metako.rewrite(&all);
    metako.signal(Signal::SIGHUP);
    metako.wait_until_open(2);
    runtime.block_on(session.batch_execute("insert into kept values (1); commit")).unwrap();

    metako.rewrite(&format!("{all}\nload_blancer: {{ algorithm: random }}\n"));
    let refused = metako.command(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let why = text(&refused.stderr);
    assert!(why.contains("load_blancer") && why.contains("load_balancer"), "{why}");
    metako.wait_until_open(2);

    metako.rewrite(&two.replace("algorithm: round_robin", "algorithm: random"));
    let reloaded = metako.command(&["reload"]);
    assert!(reloaded.status.success(), "{}", text(&reloaded.stderr));
    assert!(text(&reloaded.stdout).contains("node-3"), "{}", text(&reloaded.stdout));
    let status = metako.wait_until_open(1);
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2), "{status}");
    assert_eq!(ask(), 7, "the client was there all the time");
}

/// Writes a certificate for `localhost` and its key.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    (cert, key)
}

#[test]
fn the_predecessors_configuration_runs_and_fails_over() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let cluster = running::cluster(1, None);
    let port = |node: &str| cluster.node(node).port().to_string();
    // Its words, with the paths, ports and passwords of this machine.
    let text = include_str!("config/good/predecessor.yaml")
        .replace("/path/to/cert.pem", &cert.display().to_string())
        .replace("/path/to/key.pem", &key.display().to_string())
        .replace("5432", &port("node-1"))
        .replace("5433", &port("node-2"))
        .replace("password: password", &format!("password: \"{}\"", cluster.superuser_password()))
        .replace("myapp", Cluster::DATABASE);
    let metako = Metako::start(&format!("{text}listen: {{listen}}\nstate_dir: {{state_dir}}\n"));
    metako.wait_until_open(1);
    let ask = |sql: &str| {
        client(&cluster, "psql", metako.port, &["-XAt", "-d", "host=localhost sslmode=require", "-c", sql])
    };
    assert_eq!(
        ask("create table t (i int); insert into t values (1); begin; select i from t; commit"),
        "CREATE TABLE\nINSERT 0 1\nBEGIN\n1\nCOMMIT\n"
    );

    cluster.node("node-1").kill_9().unwrap();
    // Held until the replica is promoted, although the health check comes every 30 s only.
    assert_eq!(ask("insert into t values (2) returning i"), "2\nINSERT 0 1\n");
    assert_eq!(metako.status().unwrap()["primary"], "slave-1");
}

#[test]
fn clients_may_use_tls_with_the_certificate_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let security = format!(
        "log: {{ format: json }}\nsecurity: {{ tls_enabled: true, cert_file: {}, key_file: {} }}",
        cert.display(),
        key.display()
    );
    let cluster = running::cluster(1, None);
    let metako = Metako::start(&running::configuration(&cluster, &security));
    metako.wait_until_open(1);
    for mode in ["require", "disable"] {
        let dsn = format!("host=localhost sslmode={mode}");
        assert_eq!(
            client(&cluster, "psql", metako.port, &["-XAt", "-d", &dsn, "-c", "select 1"]),
            "1\n",
            "{mode}"
        );
    }
    let verified = format!("host=localhost sslmode=verify-full sslrootcert={}", cert.display());
    let conninfo = client(&cluster, "psql", metako.port, &["-XAt", "-d", &verified, "-c", "\\conninfo"]);
    assert!(conninfo.contains("SSL connection"), "{conninfo}");

    certificate(folder.path());
    let arguments = ["-XAt", "-d", &verified, "-c", "select 1"];
    let stale = client_output(&cluster, "psql", metako.port, &arguments);
    assert!(text(&stale.stderr).contains("certificate verify failed"), "{}", text(&stale.stderr));
    metako.signal(Signal::SIGHUP);
    eventually("the renewed certificate is shown", || {
        let output = client_output(&cluster, "psql", metako.port, &arguments);
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    });

    metako.rewrite(&running::configuration(
        &cluster,
        &security.replace("key_file:", "require_tls: true, key_file:"),
    ));
    assert!(metako.command(&["reload"]).status.success());
    let plain =
        client_output(&cluster, "psql", metako.port, &["-XAt", "-d", "sslmode=disable", "-c", "select 1"]);
    assert!(!plain.status.success());
    assert!(text(&plain.stderr).contains("FATAL"), "{}", text(&plain.stderr));

    let log = metako.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let opened = lines.iter().find(|line| line["kind"] == "opened").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&opened["node"], &opened["epoch"]), (&"node-1".into(), &1.into()), "{opened}");
    assert!(opened["message"].as_str().is_some_and(|why| why.contains("node-1")), "{opened}");
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_on_the_server() {
    let cluster = running::cluster(1, None);
    let times = "load_balancer: { algorithm: round_robin, write_timeout: 300ms, read_timeout: 300ms }";
    let metako = Metako::start(&running::configuration(&cluster, times));
    metako.wait_until_open(1);
    let write = "do $$ begin perform pg_sleep(120); end $$";
    for (statement, key) in [("select pg_sleep(120)", "read_timeout"), (write, "write_timeout")] {
        let arguments = ["-XAt", "-v", "VERBOSITY=verbose", "-c", statement, "-c", "select 'alive'"];
        let output = client_output(&cluster, "psql", metako.port, &arguments);
        let said = text(&output.stderr);
        assert!(said.contains("57014") && said.contains(key), "{said}");
        assert_eq!(text(&output.stdout), "alive\n", "the session goes on");
    }
    for node in cluster.nodes() {
        eventually("nothing sleeps on the servers any more", || {
            let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(120)%' and state = 'active' \
                       and pid <> pg_backend_pid()";
            let running = client(&cluster, "psql", node.port(), &["-XAtc", sql]);
            if running == "0\n" { Ok(()) } else { Err(running) }
        });
    }
}

#[test]
fn status_and_report_show_the_cluster_and_a_stopped_metako_is_said_to_be_so() {
    let cluster = running::cluster(1, None);
    let metako = Metako::start(&running::configuration(&cluster, "log: { report_interval: 1s }"));
    metako.wait_until_open(1);
    let shown = text(&metako.command(&["status"]).stdout);
    for word in ["node-1", "node-2", "primary", "replica"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    eventually("the report is logged", || {
        let log = metako.log();
        if log.contains("cluster playground: healthy, primary node-1") { Ok(()) } else { Err(log) }
    });
    let strategies =
        Command::new(env!("CARGO_BIN_EXE_metako")).args(["strategies", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&strategies.stdout).unwrap();
    let names: Vec<_> = listed["strategies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    for name in ["round_robin", "least_connected", "random", "weighted", "sql", "most_advanced", "keyword"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    metako.signal(Signal::SIGTERM);
    eventually("status says that nothing runs", || {
        let output = metako.command(&["status"]);
        if output.status.code() == Some(3) { Ok(()) } else { Err(format!("{:?}", output.status)) }
    });
}
