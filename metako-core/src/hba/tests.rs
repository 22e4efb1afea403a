//! Files of rules, right and wrong, against a small file system.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Files(BTreeMap<PathBuf, String>);

impl HbaFiles for Files {
    fn file(&self, path: &Path) -> io::Result<String> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn folder(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let found: Vec<_> = self.0.keys().filter(|file| file.parent() == Some(path)).cloned().collect();
        if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
    }
}

fn files(all: &[(&str, &str)]) -> Files {
    Files(all.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
}

fn read(all: &[(&str, &str)]) -> Result<Hba, Vec<String>> {
    load(Path::new(all[0].0), &files(all))
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn rules(text: &str) -> Hba {
    read(&[("/etc/hba", text)]).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems(text: &str) -> Vec<String> {
    read(&[("hba", text)]).expect_err("problems")
}

fn client<'a>(user: &'a str, database: &'a str) -> Connection<'a> {
    let address = IpAddr::V4([10, 0, 0, 7].into());
    Connection { address, tls: false, user, database, physical_replication: false }
}

fn found(hba: &Hba, connection: &Connection<'_>) -> Option<String> {
    hba.rule(connection).map(Rule::place)
}

fn line(hba: &Hba, user: &str, database: &str) -> Option<usize> {
    hba.rule(&client(user, database)).map(|rule| rule.line)
}

#[test]
fn the_first_rule_that_fits_counts() {
    let hba = rules(
        "# users\nhost all joe 0.0.0.0/0 reject\nhost shop,stock all 10.0.0.0/8 md5\nhost all \"all\" all trust\n\
         host sameuser all all scram-sha-256\n",
    );
    assert_eq!(line(&hba, "joe", "shop"), Some(2));
    assert_eq!(line(&hba, "ann", "stock"), Some(3));
    assert_eq!(line(&hba, "all", "other"), Some(4));
    assert_eq!(line(&hba, "ann", "ann"), Some(5));
    assert_eq!(line(&hba, "ann", "other"), None);
    assert_eq!(found(&hba, &client("joe", "x")), Some("/etc/hba:2".to_owned()));
    assert_eq!(hba.rules()[0].method, Method::Reject);
}

#[test]
fn encryption_and_replication_choose_too() {
    let hba = rules(
        "hostssl a all all cert\nhostnossl a all all md5\nhost all all all trust\nhost replication all all password\n\
         host \"replication\" all all scram-sha-256\n",
    );
    let tls = Connection { tls: true, ..client("u", "a") };
    assert_eq!(
        hba.rule(&tls).map(|rule| (rule.method, rule.certificate)),
        Some((Method::Cert, ClientCertificate::Name))
    );
    assert_eq!(line(&hba, "u", "a"), Some(2));
    let replica = Connection { physical_replication: true, ..client("u", "") };
    assert_eq!(found(&hba, &replica), Some("/etc/hba:4".to_owned()));
    assert_eq!(line(&hba, "u", "replication"), Some(3));
    let quoted = rules("host \"replication\" all all trust");
    assert_eq!(found(&quoted, &replica), None);
    assert_eq!(line(&quoted, "u", "replication"), Some(1));
}

#[test]
fn names_may_be_patterns_lists_and_files() {
    let text = "host /^app_\\d+$,@lists/databases @lists/users 10.0.0.0 255.0.0.0 md5\n";
    let hba = read(&[
        ("/etc/hba", text),
        ("/etc/lists/databases", "one, two # three\n\"four five\"\n@more\n"),
        ("/etc/lists/more", "six"),
        ("/etc/lists/users", "ann\nbob"),
    ])
    .unwrap();
    for (user, database, fits) in [
        ("ann", "app_17", true),
        ("ann", "my_app_17", false),
        ("bob", "four five", true),
        ("bob", "six", true),
        ("bob", "three", false),
        ("joe", "one", false),
        ("@lists/users", "one", false),
    ] {
        assert_eq!(line(&hba, user, database).is_some(), fits, "{user} {database}");
    }
    let far = Connection { address: IpAddr::V4([11, 0, 0, 1].into()), ..client("ann", "one") };
    assert_eq!(found(&hba, &far), None);
}

#[test]
fn files_include_each_other() {
    let hba = read(&[
        (
            "/etc/hba",
            "include sub/first.conf\ninclude_if_exists nowhere\ninclude_dir sub\nhost z all all trust\n",
        ),
        ("/etc/sub/first.conf", "host a all all trust\n"),
        ("/etc/sub/second.conf", "host b all all trust\n"),
        ("/etc/sub/.hidden.conf", "nonsense"),
        ("/etc/sub/other", "nonsense"),
    ])
    .unwrap();
    let places: Vec<_> = hba.rules().iter().map(Rule::place).collect();
    assert_eq!(
        places,
        ["/etc/sub/first.conf:1", "/etc/sub/first.conf:1", "/etc/sub/second.conf:1", "/etc/hba:4"]
    );
    assert_eq!(
        read(&[("/etc/hba", "include /etc/hba\n")]).unwrap_err(),
        ["/etc/hba:1:9: files include each other more than 10 deep"]
    );
    assert_eq!(
        read(&[("/etc/hba", "include gone\nhost @gone all all trust")]).unwrap_err(),
        [
            "/etc/hba:1:9: /etc/gone cannot be read: entity not found",
            "/etc/hba:2:6: /etc/gone cannot be read: entity not found",
        ]
    );
    assert_eq!(read(&[("/x", "")]).unwrap().rules().len(), 0);
    assert_eq!(
        load(Path::new("/no"), &files(&[])).unwrap_err()[0].to_string(),
        "/no:1:1: /no cannot be read: entity not found"
    );
}

#[test]
fn files_that_include_themselves_many_times_are_given_up() {
    let text = "include /etc/hba\n".repeat(20);
    let problems = read(&[("/etc/hba", &text)]).unwrap_err();
    assert!(problems.len() < 100_000, "{}", problems.len());
    assert!(problems.iter().any(|problem| problem.contains("1000 files")), "{}", problems[0]);
}

#[test]
fn lines_that_metako_never_meets_are_checked_for_their_form() {
    let hba = rules(
        "local all all peer map=x\nlocal replication +ops trust\nhostgssenc all all samenet gss include_realm=0\n",
    );
    assert_eq!(hba.rules().len(), 0);
    assert_eq!(
        problems("local all all pear\nlocal all\n"),
        [
            "hba:1:15: found `pear`; expected a method, one of trust, reject, scram-sha-256, md5, password, cert",
            "hba:2:7: the line ends after `all`; expected a user, such as `all`",
        ]
    );
}

#[test]
fn every_mistake_is_found_at_its_place() {
    let text = "\
hosts all all all md5
host all all all scram-sha256
host all all all ldap ldapserver=x
host all +ops all md5
host samerole all all md5
host all all samenet md5
host all all db.example.org md5
host all all 10.0.0.0/99 md5
host all all 10.0.0.1 md5
host all all 10.0.0.1
host all all all
host all all all cert
host all all all md5 clientcert=verify-full
hostssl all all all cert map=people
hostssl all all all cert clientcert=verify-ca
hostssl all all all md5 clientcert=1
hostssl all all all md5 verify
hostssl all all all cert clientname=DN
host all all all md5,trust
host /(a all all md5
include
host all all all md5 colour=red
";
    let expected = [
        "hba:1:1: found `hosts`; expected one of local, host, hostssl, hostnossl, hostgssenc, hostnogssenc; did you mean `host`?",
        "hba:2:18: found `scram-sha256`; expected a method, one of trust, reject, scram-sha-256, md5, password, cert; did you mean `scram-sha-256`?",
        "hba:3:18: the method `ldap` is not supported; expected one of trust, reject, scram-sha-256, md5, password, cert",
        "hba:4:10: `+ops` is not supported: metako does not know who is a member of which role; name the users, or keep them in a file and write @FILE",
        "hba:5:6: `samerole` is not supported: metako does not know who is a member of which role; name the users, or keep them in a file and write @FILE",
        "hba:6:14: `samenet` is not supported; expected an IP address with its mask, such as 10.0.0.0/8, or `all`",
        "hba:7:14: host names are not supported (`db.example.org`): a rule would change with the name service; expected an IP address with its mask, such as 10.0.0.0/8, or `all`",
        "hba:8:14: `99` is no length of a network mask for 10.0.0.0",
        "hba:9:23: found `md5`; expected the network mask of 10.0.0.1, such as 255.255.255.0",
        "hba:10:14: the line ends after `10.0.0.1`; expected the network mask of 10.0.0.1, here or as 10.0.0.1/32",
        "hba:11:14: the line ends after `all`; expected a method, such as scram-sha-256",
        "hba:12:18: cert authentication is only supported on hostssl connections",
        "hba:13:22: clientcert can only be configured for \"hostssl\" rows",
        "hba:14:26: user name maps are not supported; issue certificates whose common name is the user's name",
        "hba:15:26: clientcert only accepts \"verify-full\" when using \"cert\" authentication",
        "hba:16:25: found `1`; expected clientcert=verify-ca or clientcert=verify-full",
        "hba:17:25: found `verify`; expected an option as NAME=VALUE, or nothing",
        "hba:18:26: only clientname=CN is supported",
        "hba:19:22: a second method; expected one",
    ];
    let found = problems(text);
    assert_eq!(found[..19], expected);
    assert!(found[19].starts_with("hba:20:6: the regular expression `(a` cannot be used: "), "{}", found[19]);
    assert_eq!(
        found[20..],
        [
            "hba:21:1: expected one path after `include`",
            "hba:22:22: unknown option `colour`; expected clientcert or clientname",
        ]
    );
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("all".to_owned()),
        Just("\"all\"".to_owned()),
        Just("sameuser".to_owned()),
        Just("replication".to_owned()),
        Just("@list".to_owned()),
        Just("+role".to_owned()),
        "[a-c]{1,3}",
        "/\\^?[a-c.*(]{0,4}\\$?",
    ]
}

fn text() -> impl Strategy<Value = String> {
    let kind = prop::sample::select(vec!["host", "hostssl", "hostnossl", "local", "hos", "include"]);
    let address = prop::sample::select(vec![
        "all",
        "10.0.0.0/8",
        "::/0",
        "10.0.0.1 255.255.255.255",
        "x",
        "1.2.3.4/77",
    ]);
    let end = prop::sample::select(vec![
        "md5",
        "trust",
        "cert",
        "reject",
        "scram-sha-256",
        "md5 clientcert=verify-ca",
        "",
    ]);
    let line = (kind, name(), name(), address, end).prop_map(|(kind, database, user, address, end)| {
        format!("{kind} {database},{user} {user} {address} {end}\n")
    });
    prop::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC*|[ \t\n\"#@/+,a-z0-9.\\\\]*") {
        let _ = read(&[("hba", &text)]);
    }

    /// A whole file loads exactly if each of its lines does, and the first of the lines that fit by themselves counts.
    #[test]
    fn a_file_is_its_lines(text in text(), user in "[a-c]{1,3}", database in "[a-c]{1,3}", tls: bool, physical_replication: bool) {
        let connection = Connection { tls, physical_replication, ..client(&user, &database) };
        let alone = |line: &str| read(&[("hba", line), ("list", "a b,cc")]);
        let whole = read(&[("hba", &text), ("list", "a b,cc")]);
        let parts: Vec<_> = text.lines().map(alone).collect();
        prop_assert_eq!(whole.is_ok(), parts.iter().all(Result::is_ok));
        if let Err(problems) = &whole {
            prop_assert_eq!(problems.len(), parts.iter().map(|part| part.as_ref().err().map_or(0, Vec::len)).sum::<usize>());
        }
        if let Ok(hba) = whole {
            let first = parts.iter().position(|part| part.as_ref().is_ok_and(|hba| hba.rule(&connection).is_some()));
            prop_assert_eq!(hba.rule(&connection).map(|rule| rule.line), first.map(|index| index + 1));
        }
    }
}

#[test]
fn a_dot_stands_for_every_character_as_with_postgresql() {
    let hba = rules("host all /^guest.*$ all reject\nhost all all all trust\n");
    assert_eq!(line(&hba, "guest one", "shop"), Some(1));
    assert_eq!(line(&hba, "guest\none", "shop"), Some(1));
    assert_eq!(line(&hba, "\nguest", "shop"), Some(2));
}
