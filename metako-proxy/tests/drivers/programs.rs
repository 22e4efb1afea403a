//! PostgreSQL's own client programs: psql, pg_dump, pgbench.

use std::process::{Command, Output, Stdio};

use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::running::{eventually, text};
use crate::stage::{Mode, Outcome, Stage, outcomes};

type Check = fn(&Stage);

pub(crate) fn run(stage: &Stage) -> Vec<Outcome> {
    let mut checks: Vec<(&str, Check)> = vec![
        ("psql_statements_and_meta_commands", statements_and_meta_commands),
        ("psql_errors", errors),
        ("psql_copy", copy),
        ("psql_variables_and_savepoints", variables_and_savepoints),
        ("psql_fetches_by_cursor", fetches_by_cursor),
        ("psql_large_objects", large_objects),
        ("psql_settings_of_the_environment", settings_of_the_environment),
        ("psql_encodings", encodings),
        ("psql_state_of_the_session", state_of_the_session),
        ("psql_listen_and_notify", listen_and_notify),
        ("psql_cancel", cancel),
        ("psql_reconnects", reconnects),
        ("psql_refused_log_ins", refused_log_ins),
        ("pg_dump", dump),
        ("pgbench", bench),
    ];
    if stage.authority.is_some() {
        checks.push(("psql_tls", tls));
    }
    if matches!(stage.mode, Mode::Direct | Mode::Session) {
        checks.push(("psql_process_id", process_id));
    }
    outcomes(&checks, |check| check(stage))
}

fn program(stage: &Stage, name: &str, port: u16) -> Command {
    let mut command = Command::new(name);
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGUSER", Cluster::SUPERUSER)
        .env("PGPASSWORD", stage.cluster.superuser_password())
        .env("PGDATABASE", Cluster::DATABASE)
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null());
    command
}

fn output(mut command: Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A psql that reads a script; what it says on both outputs.
fn psql_with(stage: &Stage, script: &str, more: &[(&str, &str)]) -> (String, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let mut command = program(stage, "psql", stage.port);
    command.args(["-XAt", "-f"]).arg(file.path()).envs(more.iter().copied());
    let output = output(command);
    (text(&output.stdout), text(&output.stderr))
}

/// As [`psql_with`]; fails if it complains.
fn psql(stage: &Stage, script: &str) -> String {
    let (said, complained) = psql_with(stage, script, &[]);
    assert_eq!(complained, "", "{script}: {said}");
    said
}

fn statements_and_meta_commands(stage: &Stage) {
    psql(
        stage,
        "\\set QUIET 1\ncreate table program_note (id int primary key, body text);\n\
         create index on program_note (body); create view program_view as select * from program_note;",
    );
    for command in [
        "\\d",
        "\\d program_note",
        "\\d+ program_view",
        "\\dt+",
        "\\di",
        "\\l",
        "\\du",
        "\\df lower",
        "\\dn+",
        "\\dx",
    ] {
        let (here, complained) = psql_with(stage, command, &[]);
        assert_eq!(complained, "", "{command}");
        let mut command_past = program(stage, "psql", stage.direct_port);
        command_past.args(["-XAtc", command]);
        assert_eq!(here, text(&output(command_past).stdout), "{command}");
    }
    assert_eq!(
        psql(stage, "insert into program_note values (1, 'one'), (2, 'two') returning id;"),
        "1\n2\nINSERT 0 2\n"
    );
    assert_eq!(psql(stage, "select 1; select 2 \\; select 3;"), "1\n2\n3\n");
    let described = psql(stage, "select 1 as a, 'x'::text as b \\gdesc");
    assert_eq!(described, "a|integer\nb|text\n");
    assert_eq!(
        psql(stage, "select format('select %s', n) from generate_series(1, 3) n \\gexec"),
        "1\n2\n3\n"
    );
    let crossed = psql(
        stage,
        "select a, b, a * b from generate_series(1, 2) a, generate_series(1, 2) b order by 1, 2 \\crosstabview",
    );
    assert_eq!(crossed, "1|1|2\n2|2|4\n");
}

fn errors(stage: &Stage) {
    let (said, complained) = psql_with(stage, "select 1/0;\n\\errverbose\nselect 2;\nselec;\n", &[]);
    assert_eq!(said, "2\n");
    assert!(complained.contains("ERROR:  22012: division by zero\nLOCATION:  int4div"), "{complained}");
    assert!(complained.contains("LINE 1: selec;\n        ^"), "{complained}");
    let (said, complained) = psql_with(stage, "begin;\nselect 1/0;\nselect 1;\ncommit;\n", &[]);
    assert_eq!(said, "BEGIN\nROLLBACK\n");
    assert!(complained.contains("current transaction is aborted"), "{complained}");
    let (said, complained) = psql_with(stage, "commit;\nbegin;\nbegin;\nrollback;\n", &[]);
    assert_eq!(said, "COMMIT\nBEGIN\nBEGIN\nROLLBACK\n");
    assert!(complained.contains("WARNING:  there is no transaction in progress"), "{complained}");
    assert!(complained.contains("WARNING:  there is already a transaction in progress"), "{complained}");
    let (_, complained) = psql_with(stage, "do $$ begin raise notice 'hello %', 1; end $$;", &[]);
    assert!(complained.contains("NOTICE:  hello 1"), "{complained}");
}

fn copy(stage: &Stage) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rows: Vec<String> = (0..20_000).map(|id| format!("{id}\trow {id}\n")).collect();
    std::fs::write(file.path(), rows.concat()).unwrap();
    let path = file.path().display();
    let said = psql(
        stage,
        &format!(
            "create table program_copy (id int, body text);\n\\copy program_copy from '{path}'\n\
             begin;\n\\copy program_copy to '{path}.out' (format csv)\ncommit;\n\
             copy program_copy from stdin;\n1\tinline\n\\.\nselect 7;\n"
        ),
    );
    assert_eq!(said, "CREATE TABLE\nCOPY 20000\nBEGIN\nCOPY 20000\nCOMMIT\nCOPY 1\n7\n");
    let out = std::fs::read_to_string(format!("{path}.out")).unwrap();
    assert_eq!((out.lines().count(), out.lines().nth(19_999)), (20_000, Some("19999,row 19999")));
    std::fs::remove_file(format!("{path}.out")).unwrap();
    let (said, complained) =
        psql_with(stage, "copy program_copy from stdin;\nx\ty\n1\tz\n\\.\nselect 8;\n", &[]);
    assert_eq!(said, "8\n");
    assert!(complained.contains("invalid input syntax for type integer: \"x\""), "{complained}");
}

fn variables_and_savepoints(stage: &Stage) {
    let said = psql(stage, "select 5 as five, 'it''s' as word \\gset\nselect :five + 1, :'word';\n");
    assert_eq!(said, "6|it's\n");
    let script = "\\set ON_ERROR_ROLLBACK on\ncreate table program_saved (id int);\nbegin;\n\
                  insert into program_saved values (1);\nselect 1/0;\ninsert into program_saved values (2);\n\
                  select count(*) from program_saved;\ncommit;\n";
    let (said, complained) = psql_with(stage, script, &[]);
    assert_eq!(said, "CREATE TABLE\nBEGIN\nINSERT 0 1\nINSERT 0 1\n2\nCOMMIT\n", "{complained}");
    let said = psql(
        stage,
        "\\set AUTOCOMMIT off\ninsert into program_saved values (3);\nrollback;\nselect count(*) from program_saved;\ncommit;\n",
    );
    assert_eq!(said, "INSERT 0 1\nROLLBACK\n2\nCOMMIT\n");
}

fn fetches_by_cursor(stage: &Stage) {
    let said = psql(stage, "\\set FETCH_COUNT 100\nselect n from generate_series(1, 2500) n;\nselect 1/1;\n");
    assert_eq!((said.lines().count(), said.lines().next_back()), (2501, Some("1")));
}

fn large_objects(stage: &Stage) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(file.path(), &bytes).unwrap();
    let (path, out) = (file.path().display().to_string(), file.path().with_extension("out"));
    psql(
        stage,
        &format!(
            "\\set QUIET 1\n\\lo_import '{path}'\n\\lo_export :LASTOID '{}'\n\\lo_unlink :LASTOID\n",
            out.display()
        ),
    );
    assert!(std::fs::read(&out).unwrap() == bytes, "what was stored comes back");
    std::fs::remove_file(out).unwrap();
}

fn settings_of_the_environment(stage: &Stage) {
    let asked = [
        ("PGOPTIONS", "-c statement_timeout=54321 -c intervalstyle=postgres_verbose"),
        ("PGTZ", "America/Lima"),
        ("PGDATESTYLE", "SQL, DMY"),
        ("PGGEQO", "off"),
        ("PGCLIENTENCODING", "latin1"),
        ("PGAPPNAME", "an app"),
    ];
    let shown = "select current_setting('statement_timeout'), interval '1 day', current_setting('timezone'), \
                 date '2024-12-31', current_setting('geqo'), current_setting('client_encoding'), \
                 current_setting('application_name');\n";
    let wanted = "54321ms|@ 1 day|America/Lima|31/12/2024|off|LATIN1|an app\n";
    let (said, complained) = psql_with(stage, &shown.repeat(5), &asked);
    assert_eq!((said, complained), (wanted.repeat(5), String::new()));
    let (said, _) = psql_with(stage, &shown.repeat(2), &[]);
    assert!(said.starts_with("0|1 day|"), "another client's: {said}");
}

fn encodings(stage: &Stage) {
    let script = "\\encoding\nset client_encoding = 'LATIN1';\n\\encoding\nselect chr(233);\n\\encoding UTF8\nselect chr(233);\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let mut command = program(stage, "psql", stage.port);
    command.args(["-XAt", "-f"]).arg(file.path()).env("PGCLIENTENCODING", "UTF8");
    assert_eq!(output(command).stdout, b"UTF8\nSET\nLATIN1\n\xe9\n\xc3\xa9\n");
}

fn state_of_the_session(stage: &Stage) {
    let said = psql(
        stage,
        "set work_mem = '7MB';\ncreate temp table program_temp as select 1 as n;\nprepare p as select $1::int * 2;\n\
         select pg_advisory_lock(99);\nbegin;\ndeclare c cursor with hold for select generate_series(1, 3);\ncommit;\n\
         show work_mem;\ntable program_temp;\nexecute p(21);\nfetch 2 from c;\n\
         select pg_advisory_unlock(99);\nset role pg_monitor;\nselect current_user;\nreset role;\n\
         deallocate p;\nclose c;\ndiscard all;\nshow work_mem;\nselect to_regclass('program_temp');\n",
    );
    let wanted = "SET\nSELECT 1\nPREPARE\n\nBEGIN\nDECLARE CURSOR\nCOMMIT\n7MB\n1\n42\n1\n2\nt\nSET\npg_monitor\nRESET\n\
                  DEALLOCATE\nCLOSE CURSOR\nDISCARD ALL\n4MB\n\n";
    assert_eq!(said, wanted);
}

fn listen_and_notify(stage: &Stage) {
    let said = psql(stage, "listen program_channel;\nnotify program_channel, 'hello';\n");
    let wanted = "LISTEN\nNOTIFY\nAsynchronous notification \"program_channel\" with payload \"hello\" received from server process with PID ";
    assert!(said.starts_with(wanted), "{said}");
}

fn cancel(stage: &Stage) {
    let mut command = program(stage, "psql", stage.port);
    let mark = format!("program cancel {}", stage.port);
    // Past the first statement, or the interrupt would end psql.
    command.args(["-XAt", "-c", &format!("select pg_sleep(60) /* {mark} */"), "-c", "select 'after'"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let count = format!(
        "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like '%{mark}%'"
    );
    eventually("the statement runs", || {
        let mut counts = stage.cluster.nodes().iter().map(|node| node.sql(&count));
        if counts.any(|count| matches!(count, Ok(Some(count)) if count == "1")) {
            Ok(())
        } else {
            Err(count.clone())
        }
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let complained = text(&output.stderr);
    assert!(complained.contains("ERROR:  canceling statement due to user request"), "{complained}");
}

fn reconnects(stage: &Stage) {
    let said = psql(
        stage,
        "select 1;\n\\c\nselect 2;\n\\c -reuse-previous=on application_name=again\nshow application_name;\n",
    );
    let answers: Vec<&str> = said.lines().filter(|line| !line.starts_with("You are now connected")).collect();
    assert_eq!(answers, ["1", "2", "again"]);
}

fn refused_log_ins(stage: &Stage) {
    for (name, value, wanted) in [
        ("PGPASSWORD", "wrong", "FATAL:  password authentication failed for user \"postgres\""),
        ("PGUSER", "no such user", "FATAL:  password authentication failed for user \"no such user\""),
        ("PGDATABASE", "no such database", "FATAL:  database \"no such database\" does not exist"),
        ("PGOPTIONS", "-c nonsense=1", "FATAL:  unrecognized configuration parameter \"nonsense\""),
        ("PGOPTIONS", "-c work_mem=x", "FATAL:  invalid value for parameter \"work_mem\": \"x\""),
    ] {
        let (_, complained) = psql_with(stage, "select 1", &[(name, value)]);
        assert!(complained.contains(wanted), "{name}={value}: {complained}");
    }
}

fn tls(stage: &Stage) {
    let authority = stage.authority.as_ref().unwrap().display().to_string();
    let other = stage.other_authority.as_ref().unwrap().display().to_string();
    for more in [
        &[("PGSSLMODE", "require")][..],
        &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &authority)],
        &[
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", &authority),
            ("PGHOST", "localhost"),
            ("PGHOSTADDR", "127.0.0.1"),
        ],
        &[("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", &authority)],
        &[("PGSSLMODE", "prefer"), ("PGGSSENCMODE", "prefer")],
    ] {
        let (said, complained) = psql_with(stage, "\\conninfo\nselect length(repeat('x', 3000000));\n", more);
        assert!(said.contains("SSL connection (protocol: TLSv1.3"), "{more:?}: {said}{complained}");
        assert!(said.ends_with("\n3000000\n"), "{more:?}: {said}{complained}");
    }
    let (_, complained) =
        psql_with(stage, "select 1", &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &other)]);
    assert!(complained.contains("certificate verify failed"), "{complained}");
    let elsewhere = [
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", &*authority),
        ("PGHOST", "elsewhere.invalid"),
        ("PGHOSTADDR", "127.0.0.1"),
    ];
    let (_, complained) = psql_with(stage, "select 1", &elsewhere);
    assert!(complained.contains("does not match host name \"elsewhere.invalid\""), "{complained}");
}

fn process_id(stage: &Stage) {
    let said = psql(
        stage,
        "select count(*) from pg_stat_activity where pid = :BACKEND_PID;\n"
            .replace(":BACKEND_PID", "pg_backend_pid()")
            .as_str(),
    );
    assert_eq!(said, "1\n");
    let mut command = program(stage, "psql", stage.port);
    command.args(["-Xc", "\\set PROMPT1 %p", "-c", "select pg_terminate_backend(pg_backend_pid())"]);
    let complained = text(&output(command).stderr);
    assert!(
        complained.contains("FATAL:  terminating connection due to administrator command"),
        "{complained}"
    );
}

fn dump(stage: &Stage) {
    psql(
        stage,
        "\\set QUIET 1\ncreate table program_dumped (id serial primary key, body text default 'x', at timestamptz);\n\
         insert into program_dumped (at) select now() from generate_series(1, 5000);\n\
         create function program_function() returns int language sql as 'select 1';\n",
    );
    let dumped = |port: u16, arguments: &[&str]| {
        let mut command = program(stage, "pg_dump", port);
        command.args(arguments);
        let output = output(command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let tables = ["-t", "program_dumped", "--restrict-key=same"];
    let here = dumped(stage.port, &tables);
    assert!(here.len() > 50_000, "{}", text(&here));
    assert!(here == dumped(stage.direct_port, &tables), "the same dump as past metako");
    // Several connections that share a snapshot.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("dump").display().to_string();
    dumped(stage.port, &["-Fd", "-j", "3", "-f", &out]);
    let mut restore = program(stage, "pg_restore", stage.port);
    restore.args(["-d", Cluster::DATABASE, "--clean", "-t", "program_dumped", "-1", &out]);
    let output = output(restore);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(psql(stage, "begin; select count(*) from program_dumped; commit;"), "BEGIN\n5000\nCOMMIT\n");
}

fn bench(stage: &Stage) {
    let run = |arguments: &[&str]| {
        let mut command = program(stage, "pgbench", stage.port);
        command.args(arguments);
        let output = output(command);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&["-i", "-s", "1", "-q"]);
    for protocol in ["simple", "extended", "prepared"] {
        for more in [&["-S"][..], &["-N"], &["-C"]] {
            let report = run(&[&["-n", "-M", protocol, "-c", "4", "-j", "2", "-t", "10"], more].concat());
            assert!(
                report.contains("number of transactions actually processed: 40/40"),
                "{protocol}: {report}"
            );
        }
    }
}
