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

    fn interfaces(&self) -> io::Result<Vec<Network>> {
        let network = |address: [u8; 4], mask: [u8; 4]| Network {
            address: IpAddr::V4(address.into()),
            mask: IpAddr::V4(mask.into()),
        };
        Ok(vec![network([127, 0, 0, 1], [255, 0, 0, 0]), network([10, 0, 0, 1], [255, 255, 255, 0])])
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

/// A member of `ops` and `shop`, on `db.example.org`.
fn facts() -> Facts {
    let roles = ["u", "ops", "shop"].map(str::to_owned).into();
    Facts { roles: Some(Arc::new(roles)), host: Some(Some("db.example.org".to_owned())) }
}

fn found(hba: &Hba, connection: &Connection<'_>) -> Option<String> {
    hba.rule(connection, &facts()).unwrap().map(Rule::place)
}

fn line(hba: &Hba, user: &str, database: &str) -> Option<usize> {
    hba.rule(&client(user, database), &facts()).unwrap().map(|rule| rule.line)
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
        hba.rule(&tls, &facts()).unwrap().map(|rule| (rule.method, rule.certificate)),
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
host all all db..300 md5
host all all db.example.org/32 md5
host all all 10.0.0.0/99 md5
host all all 10.0.0.1 md5
host all all 10.0.0.1
host all all all
host all all all cert
host all all all md5 clientcert=verify-full
hostssl all all all md5 map=people
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
        "hba:4:14: `db..300` is neither an IP address nor the name of a host; expected such as 10.0.0.0/8, .example.com, or `all`",
        "hba:5:14: `db.example.org` is no IP address; only an IP address has a mask",
        "hba:6:14: `99` is no length of a network mask for 10.0.0.0",
        "hba:7:23: found `md5`; expected the network mask of 10.0.0.1, such as 255.255.255.0",
        "hba:8:14: the line ends after `10.0.0.1`; expected the network mask of 10.0.0.1, here or as 10.0.0.1/32",
        "hba:9:14: the line ends after `all`; expected a method, such as scram-sha-256",
        "hba:10:18: cert authentication is only supported on hostssl connections",
        "hba:11:22: clientcert can only be configured for \"hostssl\" rows",
        "hba:12:25: `map` is only for the method `cert` here",
        "hba:13:26: clientcert only accepts \"verify-full\" when using \"cert\" authentication",
        "hba:14:25: found `1`; expected clientcert=verify-ca or clientcert=verify-full",
        "hba:15:25: found `verify`; expected an option as NAME=VALUE, or nothing",
        "hba:16:26: only clientname=CN is supported",
        "hba:17:22: a second method; expected one",
    ];
    let found = problems(text);
    assert_eq!(found[..17], expected);
    assert!(found[17].starts_with("hba:18:6: the regular expression `(a` cannot be used: "), "{}", found[17]);
    assert_eq!(
        found[18..],
        [
            "hba:19:1: expected one path after `include`",
            "hba:20:22: unknown option `colour`; expected clientcert, clientname or map",
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
            let first = parts.iter().position(|part| part.as_ref().is_ok_and(|hba| hba.rule(&connection, &facts()).unwrap().is_some()));
            prop_assert_eq!(hba.rule(&connection, &facts()).unwrap().map(|rule| rule.line), first.map(|index| index + 1));
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

#[test]
fn members_of_roles_are_asked_for_only_where_it_matters() {
    let hba = rules(
        "host shop ann all trust\nhost samerole,stock all 127.0.0.1/32 reject\nhost other +ops,joe all md5\n\
         host samegroup all all password\n",
    );
    let asked = |user, database| {
        hba.rule(&client(user, database), &Facts::default()).map(|rule| rule.map(|rule| rule.line))
    };
    assert_eq!(asked("ann", "shop"), Ok(Some(1)));
    assert_eq!(asked("joe", "other"), Ok(Some(3)));
    assert_eq!(asked("ann", "other"), Err(Unknown::Roles));
    assert_eq!(line(&hba, "ann", "other"), Some(3));
    assert_eq!(line(&hba, "joe", "shop"), Some(4));
    assert_eq!(line(&hba, "joe", "ops of others"), None);
    let stranger = Facts { roles: Some(Arc::default()), host: None };
    assert_eq!(hba.rule(&client("nobody", "other"), &stranger).unwrap().map(|rule| rule.line), None);
    let quoted = rules("host all \"+ops\" all trust");
    assert_eq!((line(&quoted, "+ops", "x"), line(&quoted, "u", "x")), (Some(1), None));
}

#[test]
fn hosts_are_asked_for_last() {
    let hba =
        rules("host shop all .example.org trust\nhost all all db.example.com reject\nhost all all all md5");
    let asked =
        |database| hba.rule(&client("u", database), &Facts::default()).map(|rule| rule.map(|rule| rule.line));
    assert_eq!((asked("shop"), asked("other")), (Err(Unknown::Host), Err(Unknown::Host)));
    assert_eq!((line(&hba, "u", "shop"), line(&hba, "u", "other")), (Some(1), Some(3)));
    let local = rules("host shop all .example.org trust\nhost all all all md5");
    let rule = local.rule(&client("u", "other"), &Facts::default()).unwrap().map(|rule| rule.line);
    assert_eq!(rule, Some(2), "nobody is asked about a rule of another database");
}

#[test]
fn the_addresses_of_this_machine_have_words() {
    let hba = rules("host a all samehost trust\nhost all all samenet md5\nhost all all \"samehost\" trust\n");
    let from = |address: [u8; 4], database| {
        let connection = Connection { address: IpAddr::V4(address.into()), ..client("u", database) };
        hba.rule(&connection, &facts()).unwrap().map(|rule| rule.line)
    };
    assert_eq!(from([10, 0, 0, 1], "a"), Some(1));
    assert_eq!(from([10, 0, 0, 7], "a"), Some(2));
    assert_eq!(from([127, 3, 3, 3], "b"), Some(2));
    assert_eq!(from([10, 0, 1, 7], "a"), None);
}

fn maps(text: &str) -> Result<Maps, Vec<String>> {
    load_maps(Path::new("ident"), &files(&[("ident", text)]))
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn names_are_mapped_as_postgresql_maps_them() {
    let maps = maps(
        "people Ann ann\npeople /^(.*)@example\\.org$ \\1\npeople /^(x)?y$ \\1\npeople /^y$ late\nstaff boss all\nstaff deputy +ops\n\
         staff /^guest /^guest\npeople \"two words\" \"all\"\n",
    )
    .unwrap();
    let may = |map: &str, name: &str, user: &str| maps.may_be(map, name, user, &facts()).unwrap();
    assert!(may("people", "Ann", "ann") && !may("people", "ann", "ann") && !may("staff", "Ann", "ann"));
    assert!(may("people", "joe@example.org", "joe") && !may("people", "joe@example.org", "ann"));
    assert!(!may("people", "joe@example.orgs", "joe"));
    assert!(may("people", "xy", "x"));
    // A part that is not there ends the search, as with PostgreSQL.
    assert!(!may("people", "y", "") && !may("people", "y", "late"));
    assert!(may("staff", "boss", "whoever"));
    assert!(may("staff", "deputy", "whoever"));
    assert_eq!(maps.may_be("staff", "deputy", "u", &Facts::default()), Err(Unknown::Roles));
    assert!(may("staff", "guest7", "guest1") && !may("staff", "guest7", "joe"));
    assert!(may("people", "two words", "all") && !may("people", "two words", "joe"));
    assert!(maps.has("staff") && !maps.has("nobody's"));
}

#[test]
fn mistakes_in_maps_are_found_at_their_places() {
    assert_eq!(
        maps("people\npeople ann\npeople a,b ann\npeople /( ann\npeople /a x\\1\npeople a b c\n")
            .unwrap_err(),
        [
            "ident:1:1: the line ends after `people`; expected the name in a certificate",
            "ident:2:8: the line ends after `ann`; expected the user that this name may be",
            "ident:3:10: a second name; expected one",
            "ident:4:8: the regular expression `(` cannot be used: found open group without closing ')' (back references and look-around are not supported)",
            "ident:5:11: regular expression \"a\" has no subexpressions as requested by backreference in \"x\\1\"",
            "ident:6:12: found `c`; expected the end of the line",
        ]
    );
}
