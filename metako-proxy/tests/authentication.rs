//! Log-in as people meet it: psql and a metako process on a real cluster, by rules, methods, secrets and certificates.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod running;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use metako_proxy::playground::Cluster;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use running::{Metako, text};

const QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END \
                     FROM pg_authid WHERE rolname = $1 AND rolcanlogin";

/// A configuration with these users and these other keys.
fn configuration(cluster: &Cluster, users: &[String], extra: &str) -> String {
    let own = running::configuration(cluster, "");
    let users: Vec<String> = users.iter().map(|user| format!("  - {user}\n")).collect();
    own.replacen("users:\n", &format!("users:\n{}", users.concat()), 1) + extra
}

/// psql without its own ideas of who it is.
fn psql(port: u16, conninfo: &str, password: &str) -> Output {
    let conninfo = format!("host=127.0.0.1 port={port} connect_timeout=20 {conninfo}");
    Command::new("psql")
        .args(["-XAtc", "select current_user, current_database()", &conninfo])
        .env_remove("PGUSER")
        .env("PGPASSWORD", password)
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn let_in(port: u16, conninfo: &str, password: &str) -> String {
    let output = psql(port, conninfo, password);
    assert!(output.status.success(), "{conninfo}: {}", text(&output.stderr));
    text(&output.stdout).trim_end().to_owned()
}

#[track_caller]
fn refused(port: u16, conninfo: &str, password: &str) -> String {
    let output = psql(port, conninfo, password);
    assert!(!output.status.success(), "{conninfo} was let in: {}", text(&output.stdout));
    text(&output.stderr)
}

fn secret_of(cluster: &Cluster, user: &str) -> String {
    let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'");
    cluster.nodes()[0].sql(&sql).unwrap().unwrap()
}

fn create(cluster: &Cluster, user: &str, rest: &str) {
    cluster.nodes()[0].sql(&format!("CREATE ROLE {user} LOGIN {rest}")).unwrap();
}

/// Also if the first server that is asked is a replica which has not replayed the user and the database yet.
#[test]
fn who_was_created_a_moment_ago_is_let_in() {
    let cluster = running::cluster(1, None);
    let users = ["{ name: late, password: tiger, databases: [app, fresh, never] }".to_owned()];
    let metako = Metako::start(&configuration(&cluster, &users, ""));
    metako.wait_until_open(1);
    cluster.nodes()[1].sql("SELECT pg_wal_replay_pause()").unwrap();
    create(&cluster, "late", "PASSWORD 'tiger'");
    cluster.nodes()[0].sql("CREATE DATABASE fresh").unwrap();
    metako.wait_until_open(1);

    assert_eq!(let_in(metako.port, "user=late dbname=app", "tiger"), "late|app");
    assert_eq!(let_in(metako.port, "user=late dbname=fresh", "tiger"), "late|fresh");
    // What the primary refuses as well is refused in its words.
    let said = refused(metako.port, "user=late dbname=never", "tiger");
    assert!(said.contains("FATAL:  database \"never\" does not exist"), "{said}");
    cluster.nodes()[1].sql("SELECT pg_wal_replay_resume()").unwrap();
}

#[test]
fn rules_say_who_gets_in_and_how() {
    let cluster = running::cluster(0, None);
    for user in ["clear", "scram"] {
        create(&cluster, user, "PASSWORD 'tiger'");
    }
    let hba = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| std::fs::write(hba.path(), text).unwrap();
    write(
        "# first match wins\n\
         host  app  clear  127.0.0.1/32  md5\n\
         host  app  scram  127.0.0.1/32  password\n\
         host  all  joe    all           reject\n\
         host  /^a  app    all           scram-sha-256\n",
    );
    let users = [
        "{ name: clear, password: tiger }".to_owned(),
        format!("{{ name: scram, password: \"{}\", databases: [\"a*\"] }}", secret_of(&cluster, "scram")),
    ];
    let auth = format!("auth: {{ hba_file: {} }}\n", hba.path().display());
    let metako = Metako::start(&configuration(&cluster, &users, &auth));
    metako.wait_until_open(0);
    let port = metako.port;

    assert_eq!(let_in(port, "user=clear dbname=app", "tiger"), "clear|app");
    assert_eq!(let_in(port, "user=scram dbname=app", "tiger"), "scram|app");
    assert_eq!(let_in(port, "user=app dbname=app", cluster.app_password()), "app|app");
    for user in ["clear", "scram"] {
        let said = refused(port, &format!("user={user} dbname=app"), "lion");
        assert!(
            said.contains(&format!("FATAL:  password authentication failed for user \"{user}\"")),
            "{said}"
        );
    }
    let said = refused(port, "user=joe dbname=app", "tiger");
    let words = "FATAL:  pg_hba.conf rejects connection for host \"127.0.0.1\", user \"joe\", database \"app\", no encryption";
    assert!(said.contains(words), "{said}");
    let said = refused(port, "user=scram dbname=postgres", "tiger");
    let words = "FATAL:  no pg_hba.conf entry for host \"127.0.0.1\", user \"scram\", database \"postgres\", no encryption";
    assert!(said.contains(words), "{said}");
    let log = metako.log();
    assert!(log.contains("log-in refused") && log.contains("joe"), "{log}");
    assert!(!log.contains("tiger") && !log.contains("lion"), "{log}");

    // A bad file changes nothing, and says where it is bad.
    write("host all all all ldap\n");
    let reload = metako.command(&["reload"]);
    assert!(!reload.status.success());
    assert!(
        text(&reload.stderr).contains(":1:18: the method `ldap` is not supported"),
        "{}",
        text(&reload.stderr)
    );
    assert_eq!(let_in(port, "user=clear dbname=app", "tiger"), "clear|app");
    assert!(!metako.command(&["check"]).status.success());

    write("host all clear all reject\n");
    assert!(metako.command(&["reload"]).status.success());
    assert!(refused(port, "user=clear dbname=app", "tiger").contains("pg_hba.conf rejects"));
}

#[test]
fn secrets_of_the_server_let_in() {
    let cluster = running::cluster(0, None);
    create(&cluster, "ann", "PASSWORD 'tiger'");
    create(&cluster, "late", "PASSWORD 'tiger' VALID UNTIL '2001-01-01'");
    cluster.nodes()[0].sql("ALTER ROLE late VALID UNTIL '2001-01-01'").unwrap();
    cluster.nodes()[0].sql("CREATE ROLE locked PASSWORD 'tiger'").unwrap();
    let hba = tempfile::NamedTempFile::new().unwrap();
    // With the password in clear metako can log in to servers whatever they ask.
    std::fs::write(hba.path(), "host all all all password\n").unwrap();
    let auth = format!("auth: {{ hba_file: {}, query: \"{QUERY}\" }}\n", hba.path().display());
    let metako = Metako::start(&configuration(&cluster, &[], &auth));
    metako.wait_until_open(0);
    let port = metako.port;

    assert_eq!(let_in(port, "user=ann dbname=postgres", "tiger"), "ann|postgres");
    // PostgreSQL would say more of `late` and `locked` to who knows the password; here they are as strangers.
    for (user, password) in [("ann", "lion"), ("late", "tiger"), ("locked", "tiger"), ("nobody", "tiger")] {
        let said = refused(port, &format!("user={user} dbname=postgres"), password);
        assert!(
            said.contains(&format!("FATAL:  password authentication failed for user \"{user}\"")),
            "{said}"
        );
    }
    let said = refused(port, "user=ann dbname=nowhere", "tiger");
    assert!(said.contains("FATAL:  database \"nowhere\" does not exist"), "{said}");

    // What is changed on the server holds at the next log-in.
    let node = &cluster.nodes()[0];
    node.sql("ALTER ROLE ann PASSWORD 'lion'").unwrap();
    assert_eq!(let_in(port, "user=ann dbname=postgres", "lion"), "ann|postgres");
    create(&cluster, "nobody", "PASSWORD 'tiger'");
    assert_eq!(let_in(port, "user=nobody dbname=postgres", "tiger"), "nobody|postgres");
    refused(port, "user=ann dbname=nowhere", "lion");
    node.sql("CREATE DATABASE nowhere").unwrap();
    assert_eq!(let_in(port, "user=ann dbname=nowhere", "lion"), "ann|nowhere");
    refused(port, "user=ann dbname=postgres", "tiger");
}

#[test]
fn what_a_log_in_shows_opens_the_servers() {
    let cluster = running::cluster(0, None);
    for user in ["scram", "ann"] {
        create(&cluster, user, "PASSWORD 'tiger'");
    }
    let node = &cluster.nodes()[0];
    node.sql("SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'tiger'").unwrap();
    let servers_rules = node.data_dir().join("pg_hba.conf");
    let before = std::fs::read_to_string(&servers_rules).unwrap();
    std::fs::write(&servers_rules, format!("host all old 127.0.0.1/32 md5\n{before}")).unwrap();
    node.sql("SELECT pg_reload_conf()").unwrap();

    let hba = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hba.path(), "host all old all md5\nhost all all all scram-sha-256\n").unwrap();
    // metako knows no password of any of them.
    let kept = |user: &str| format!("{{ name: {user}, password: \"{}\" }}", secret_of(&cluster, user));
    let auth = format!("auth: {{ hba_file: {}, query: \"{QUERY}\" }}\n", hba.path().display());
    let metako = Metako::start(&configuration(&cluster, &[kept("scram"), kept("old")], &auth));
    metako.wait_until_open(0);
    for user in ["scram", "old", "ann"] {
        let conninfo = format!("user={user} dbname=app");
        assert_eq!(let_in(metako.port, &conninfo, "tiger"), format!("{user}|app"));
        let said = refused(metako.port, &conninfo, "lion");
        assert!(
            said.contains(&format!("FATAL:  password authentication failed for user \"{user}\"")),
            "{said}"
        );
    }
}

/// Logs in by start-up parameters as they are, without any proof, and gives all that was answered to them and to a query.
fn by_parameters(port: u16, parameters: &[(&str, &str)]) -> String {
    use std::io::{Read as _, Write as _};
    let mut body = vec![0, 3, 0, 0];
    for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let query = b"select current_user, current_database()\0";
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(&u32::try_from(body.len() + 4).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    stream.write_all(b"Q").unwrap();
    stream.write_all(&u32::try_from(query.len() + 4).unwrap().to_be_bytes()).unwrap();
    stream.write_all(query).unwrap();
    stream.write_all(b"X\0\0\0\x04").unwrap();
    let mut answer = Vec::new();
    // Who is refused may find the connection reset after that.
    let _ = stream.read_to_end(&mut answer);
    text(&answer)
}

/// User and database are what was checked: a parameter of the same name in other letters is another parameter, here as
/// with PostgreSQL, and not one that counts at the server.
#[test]
fn names_in_other_letters_are_not_taken_for_user_and_database() {
    let cluster = running::cluster(0, None);
    create(&cluster, "ann", "");
    let node = &cluster.nodes()[0];
    let servers_rules = node.data_dir().join("pg_hba.conf");
    std::fs::write(&servers_rules, "local all all trust\nhost all all 127.0.0.1/32 trust\n").unwrap();
    node.sql("SELECT pg_reload_conf()").unwrap();
    let hba = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hba.path(), "host app ann all trust\n").unwrap();
    for mode in ["transaction", "session"] {
        let extra = format!("auth: {{ hba_file: {} }}\npool: {{ mode: {mode} }}\n", hba.path().display());
        let metako = Metako::start(&configuration(&cluster, &[], &extra));
        metako.wait_until_open(0);
        let fair = by_parameters(metako.port, &[("user", "ann"), ("database", "app")]);
        assert!(fair.contains("ann") && fair.contains("app"), "{fair}");
        let superuser = node.sql("SELECT current_user").unwrap().unwrap();
        for (name, value) in
            [("USER", superuser.as_str()), ("Database", "postgres"), ("REPLICATION", "true"), ("_PQ_.x", "")]
        {
            let parameters = [("user", "ann"), ("database", "app"), (name, value)];
            let (direct, here) =
                (by_parameters(node.port(), &parameters), by_parameters(metako.port, &parameters));
            let refused = format!("unrecognized configuration parameter \"{name}\"");
            let expected = if direct.contains(&refused) { refused.as_str() } else { "ann" };
            assert!(
                direct.contains(expected) && here.contains(expected),
                "{mode} {name}: {direct:?} {here:?}"
            );
        }
    }
}

/// Whether a client is let in, and as whom, or what it is told.
fn outcome(port: u16, conninfo: &str, password: &str) -> String {
    let output = psql(port, conninfo, password);
    let told = text(&output.stderr);
    match told.find("FATAL:") {
        Some(at) => told[at..].trim_end().to_owned(),
        None if output.status.success() => text(&output.stdout).trim_end().to_owned(),
        None => panic!("{conninfo}: {told}"),
    }
}

/// The same file of rules here and there, for users whose roles and addresses have to be found out.
#[test]
fn rules_with_roles_hosts_and_own_addresses_say_what_postgresql_says_by_them() {
    let cluster = running::cluster(0, None);
    let node = &cluster.nodes()[0];
    for sql in [
        "CREATE ROLE ops",
        "CREATE ROLE team IN ROLE ops",
        "CREATE ROLE ann LOGIN PASSWORD 'tiger' IN ROLE team",
        "CREATE ROLE joe LOGIN PASSWORD 'tiger'",
        "CREATE ROLE \"Boss\" LOGIN PASSWORD 'tiger' SUPERUSER",
        "CREATE ROLE shop LOGIN PASSWORD 'tiger'",
        "CREATE ROLE carl LOGIN PASSWORD 'tiger' IN ROLE shop",
        "CREATE DATABASE shop",
        "CREATE DATABASE ann",
    ] {
        node.sql(sql).unwrap();
    }
    let superuser = node.sql("SELECT current_user").unwrap().unwrap();
    let files = [
        "host app +ops samehost scram-sha-256\nhost samerole all samenet scram-sha-256\n",
        "host app +nobody,+ops,joe localhost scram-sha-256\nhost all all .localhost trust\n",
        "host samegroup,postgres +team,carl 0.0.0.0/0 scram-sha-256\nhost all +team all reject\nhost all +Boss localhost md5\n",
        "host all \"+ops\",+shop LOCALHOST scram-sha-256\nhost sameuser all ::1/128 trust\nhost app all host.invalid trust\n",
    ];
    let rules = node.data_dir().join("pg_hba.conf");
    let hba = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hba.path(), files[0]).unwrap();
    let auth = format!("auth: {{ hba_file: {}, query: \"{QUERY}\" }}\n", hba.path().display());
    let metako = Metako::start(&configuration(&cluster, &[], &auth));
    metako.wait_until_open(0);
    let mut answers = std::collections::BTreeSet::new();
    for file in files {
        let control = format!("host all {superuser} 127.0.0.1/32 scram-sha-256\n");
        std::fs::write(hba.path(), format!("{control}{file}")).unwrap();
        assert!(metako.command(&["reload"]).status.success());
        std::fs::write(&rules, format!("local all all trust\n{control}{file}")).unwrap();
        node.sql("SELECT pg_reload_conf()").unwrap();
        let read = format!(
            "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NULL AND line_number > 0 HAVING count(*) = {}",
            2 + file.lines().count()
        );
        assert!(node.sql(&read).unwrap().is_some(), "PostgreSQL takes every line of {file}");
        for user in ["ann", "joe", "Boss", "shop", "carl", "nobody"] {
            for database in ["app", "shop", "ann", "postgres"] {
                let conninfo = format!("user={user} dbname={database}");
                answers.insert(running::eventually(&format!("the same answers by {file}"), || {
                    let (direct, here) =
                        (outcome(node.port(), &conninfo, "tiger"), outcome(metako.port, &conninfo, "tiger"));
                    if direct == here { Ok(here) } else { Err(format!("{conninfo}: {direct:?} {here:?}")) }
                }));
            }
        }
    }
    let words = [
        "ann|app",
        "joe|app",
        "carl|shop",
        "Boss|app",
        "FATAL:  pg_hba.conf rejects",
        "FATAL:  no pg_hba.conf entry",
    ];
    for some in words {
        assert!(answers.iter().any(|answer| answer.starts_with(some)), "{some}: {answers:?}");
    }
}

/// The same maps of names here and there.
#[test]
fn maps_of_names_in_certificates_say_what_postgresql_says_by_them() {
    let cluster = running::cluster(0, None);
    let node = &cluster.nodes()[0];
    for user in ["ann", "joe"] {
        create(&cluster, user, "");
    }
    let authority = Authority::new();
    authority.certify("server", ExtendedKeyUsagePurpose::ServerAuth);
    let names = ["ann", "Ann", "joe@example.org", "ann@example.org", "staff joe", "x@example.com"];
    for name in names {
        authority.certify(name, ExtendedKeyUsagePurpose::ClientAuth);
    }
    let maps = "people  /^(.*)@example\\.org$  \\1\n\
                people  Ann                  ann\n\
                people  \"staff joe\"          joe # by name\n\
                people  /com$                ann\n\
                others  ann                  ann\n";
    let ident = authority.write("ident", maps);
    let rules = "hostssl all all all cert map=people\n";
    let hba = authority.write("hba", rules);
    // metako's own connections come without TLS.
    let data_dir = node.data_dir();
    let of_server = |name: &str, text: &str| {
        let owner = std::fs::metadata(data_dir).unwrap();
        let path = data_dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    };
    let read = |name: &str| std::fs::read_to_string(authority.path(name)).unwrap();
    of_server("server.crt", &read("server.pem"));
    of_server("server.key", &read("server.key"));
    of_server("root.crt", &read("ca.pem"));
    of_server("pg_ident.conf", maps);
    of_server("pg_hba.conf", &format!("local all all trust\nhostnossl all all 127.0.0.1/32 trust\n{rules}"));
    for sql in
        ["ALTER SYSTEM SET ssl_ca_file = 'root.crt'", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"]
    {
        node.sql(sql).unwrap();
    }
    let ca = authority.path("ca.pem");
    let auth = format!("auth: {{ hba_file: {}, ident_file: {} }}\n", hba.display(), ident.display());
    let metako =
        Metako::start(&configuration(&cluster, &[], &format!("{auth}{}", security(&authority, &ca))));
    metako.wait_until_open(0);
    for name in names {
        for user in ["ann", "joe", "nobody"] {
            let conninfo = format!("user={user} dbname=app {}", authority.shown(name));
            running::eventually("the same answers by the map", || {
                let (direct, here) =
                    (outcome(node.port(), &conninfo, ""), outcome(metako.port, &conninfo, ""));
                if direct == here { Ok(()) } else { Err(format!("{name} as {user}: {direct:?} {here:?}")) }
            });
        }
    }
    assert_eq!(
        let_in(metako.port, &format!("user=joe dbname=app {}", authority.shown("staff joe")), ""),
        "joe|app"
    );

    // A key that others can read is refused, at a reload and at the start.
    let key = authority.path("server.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    for command in ["reload", "check"] {
        let said = metako.command(&[command]);
        let words = text(&said.stderr);
        assert!(!said.status.success() && words.contains("has group or world access"), "{command}: {words}");
    }
}

/// An authority with certificates for the server and for clients, as files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: tempfile::tempdir().unwrap(), issuer };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path(name), text).unwrap();
        // libpq takes no key that others can read.
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        self.path(name)
    }

    /// The beginning of the names of a certificate's files. In connection strings a space would end it.
    fn file(name: &str) -> String {
        name.replace(' ', "-")
    }

    /// Makes `NAME.pem` and `NAME.key`.
    fn certify(&self, name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = Self::file(name);
        self.write(&format!("{file}.pem"), &certificate.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    /// The part of a connection string that shows a client's certificate.
    fn shown(&self, name: &str) -> String {
        let path = |end: &str| self.path(&format!("{}.{end}", Self::file(name))).display().to_string();
        format!(
            "sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            self.path("ca.pem").display(),
            path("pem"),
            path("key")
        )
    }
}

fn security(authority: &Authority, client_ca: &Path) -> String {
    format!(
        "security: {{ tls_enabled: true, cert_file: {}, key_file: {}, client_ca_file: {} }}\n",
        authority.path("server.pem").display(),
        authority.path("server.key").display(),
        client_ca.display()
    )
}

#[test]
fn certificates_and_channel_binding_hold_over_tls() {
    let cluster = running::cluster(0, None);
    create(&cluster, "clear", "PASSWORD 'tiger'");
    let (authority, other) = (Authority::new(), Authority::new());
    authority.certify("server", ExtendedKeyUsagePurpose::ServerAuth);
    for client in ["app", "clear"] {
        authority.certify(client, ExtendedKeyUsagePurpose::ClientAuth);
    }
    other.certify("app", ExtendedKeyUsagePurpose::ClientAuth);
    other.write("ca.pem", &authority.issuer.pem());
    let ca = authority.write("clients.pem", &authority.issuer.pem());
    let hba = authority.write(
        "hba",
        "hostssl all app   all cert\n\
         hostssl all clear all scram-sha-256\n\
         host    all clear all md5 # without encryption\n",
    );
    let users = ["{ name: clear, password: tiger }".to_owned()];
    let extra = format!("auth: {{ hba_file: {} }}\n{}", hba.display(), security(&authority, &ca));
    let metako = Metako::start(&configuration(&cluster, &users, &extra));
    metako.wait_until_open(0);
    let port = metako.port;

    assert_eq!(let_in(port, &format!("user=app dbname=app {}", authority.shown("app")), ""), "app|app");
    let said = refused(port, &format!("user=app dbname=app {}", authority.shown("clear")), "");
    assert!(said.contains("FATAL:  certificate authentication failed for user \"app\""), "{said}");
    let said = refused(port, "user=app dbname=app sslmode=require sslcert=/none", "");
    assert!(said.contains("FATAL:  connection requires a valid client certificate"), "{said}");
    let said = refused(port, "user=app dbname=app sslmode=disable", "");
    assert!(said.contains("user \"app\", database \"app\", no encryption"), "{said}");
    refused(port, &format!("user=app dbname=app {}", other.shown("app")), "");

    let bound = "user=clear dbname=app sslmode=require sslcert=/none channel_binding=require";
    assert_eq!(let_in(port, bound, "tiger"), "clear|app");
    assert!(refused(port, bound, "lion").contains("password authentication failed"));
    assert_eq!(
        let_in(port, "user=clear dbname=app sslmode=require sslcert=/none channel_binding=disable", "tiger"),
        "clear|app"
    );
    assert_eq!(let_in(port, "user=clear dbname=app sslmode=disable", "tiger"), "clear|app");

    // Another authority from the next log-in on.
    authority.write("clients.pem", &other.issuer.pem());
    metako.signal(nix::sys::signal::Signal::SIGHUP);
    running::eventually("the old authority no longer counts", || {
        let output = psql(port, &format!("user=app dbname=app {}", authority.shown("app")), "");
        if output.status.success() { Err("let in".to_owned()) } else { Ok(()) }
    });
    assert_eq!(let_in(port, &format!("user=app dbname=app {}", other.shown("app")), ""), "app|app");
}
