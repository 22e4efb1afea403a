//! Where cases play: one cluster, with metako in front of it once in each pool mode.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use metako_proxy::playground::{Builder, Cluster};

use crate::client::{Client, Script};
use crate::running::{self, Metako};
use crate::{send, tls};

/// How long an answer may take that has to come.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Who the clients are, unless a case says otherwise. A superuser.
pub(crate) const USER: &str = "tester";
/// An ordinary user.
pub(crate) const PLAIN: &str = "plain";
/// The password of both.
pub(crate) const PASSWORD: &str = "correct horse";

/// To whom the messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The oracle.
    PostgreSql,
    /// metako with `pool: { mode: session }`.
    Session,
    /// metako with `pool: { mode: transaction }`.
    Transaction,
}

impl Place {
    pub(crate) const ALL: [Self; 3] = [Self::PostgreSql, Self::Session, Self::Transaction];
    pub(crate) const MODES: [Self; 2] = [Self::Session, Self::Transaction];

    fn number(self) -> usize {
        self as usize
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "PostgreSQL",
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// Which databases: each place has its own of each kind, so that nothing that one does is seen by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of the named cases.
    Case,
    /// Of the random sequences.
    Random,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Case => "conform",
            Self::Random => "random",
        }
    }

    /// The database of a place.
    pub(crate) fn database(self, place: Place) -> String {
        format!("{}_{}", self.prefix(), place.number())
    }
}

/// The running programs.
pub(crate) struct World {
    // In this order: what stands in front goes first.
    metakos: Vec<Metako>,
    cluster: Cluster,
    /// The certificate that both show.
    files: tempfile::TempDir,
    /// PostgreSQL's major version.
    pub(crate) version: u32,
}

impl World {
    /// The one of this process: started for whoever comes first, stopped with its last holder, panic or not.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(world) = shared.upgrade() {
            return world;
        }
        let world = Arc::new(Self::start());
        *shared = Arc::downgrade(&world);
        world
    }

    fn start() -> Self {
        let builder = Builder::new().replicas(0).setting("max_prepared_transactions", "5");
        let cluster = builder.start_blocking().expect("the cluster starts");
        let node = cluster.node("node-1");
        let sql =
            |sql: &str| node.sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}")).unwrap_or_default();
        sql(&format!("create role {USER} superuser login password '{PASSWORD}'"));
        sql(&format!("create role {PLAIN} login password '{PASSWORD}'"));
        for place in Place::ALL {
            for kind in [Kind::Case, Kind::Random] {
                sql(&format!("create database {}", kind.database(place)));
            }
        }
        sql(&format!("create role locked nologin password '{PASSWORD}'"));
        sql("create database closed");
        sql("revoke connect on database closed from public");
        let files = tls::make();
        tls::install(&files, node.data_dir());
        for setting in ["ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'"] {
            sql(&format!("alter system set {setting}"));
        }
        sql("select pg_reload_conf()");
        let version = sql("show server_version_num").parse::<u32>().expect("a number") / 10_000;
        let metakos = Place::MODES.map(|place| start_metako(&cluster, place, &files)).into();
        Self { metakos, cluster, files, version }
    }

    fn port(&self, place: Place) -> u16 {
        match place {
            Place::PostgreSql => self.cluster.node("node-1").port(),
            Place::Session => self.metakos[0].port,
            Place::Transaction => self.metakos[1].port,
        }
    }

    /// What a proof that is bound to the channel is bound to.
    pub(crate) fn certificate_hash(&self) -> Vec<u8> {
        tls::hash(&self.files)
    }

    /// A superuser's connection to PostgreSQL itself, in the database of that place; nothing of it is written down.
    pub(crate) fn watcher(&self, kind: Kind, place: Place) -> Client {
        let mut client = Client::connect("watcher", self.port(Place::PostgreSql), LIMIT, false, None);
        let database = kind.database(place);
        let parameters = [("user", USER), ("database", database.as_str()), ("application_name", "watcher")];
        assert!(client.log_in(send::V3_0, &parameters, PASSWORD), "the watcher logs in");
        client
    }

    /// Makes the database of a place as it was at the beginning. Fails if something there is still locked.
    pub(crate) fn reset(&self, kind: Kind, place: Place) {
        let mut watcher = self.watcher(kind, place);
        watcher.value("set client_min_messages = error");
        watcher.value("set lock_timeout = '30s'");
        watcher.value("drop schema public cascade");
        watcher.value("create schema public");
        watcher.value("grant all on schema public to public");
        watcher.leave();
    }
}

fn start_metako(cluster: &Cluster, place: Place, files: &tempfile::TempDir) -> Metako {
    let yaml: String = running::configuration(cluster, "")
        .lines()
        .filter(|line| !line.starts_with("users:") && !line.contains("databases: ["))
        .flat_map(|line| [line, "\n"])
        .collect();
    let folder = files.path().display();
    let users: String = [USER, PLAIN, "locked"]
        .map(|name| format!("  - {{ name: {name}, password: \"{PASSWORD}\" }}\n"))
        .concat();
    let own = format!(
        "users:\n{users}pool: {{ mode: {}, size: 8 }}\nload_balancer: {{ split: off }}\n\
         health_check: {{ interval: 20s, timeout: 15s }}\nfailover: {{ mode: manual }}\n\
         security: {{ tls_enabled: true, cert_file: {folder}/server.crt, key_file: {folder}/server.key }}\n",
        place.name()
    );
    let metako = Metako::start(&format!("{yaml}{own}"));
    metako.wait_until_open(0);
    metako
}

/// What a case is given.
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a World,
    pub(crate) place: Place,
    kind: Kind,
    script: Script,
    limit: Duration,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(world: &'a World, kind: Kind, place: Place, limit: Duration, script: &Script) -> Self {
        Self { world, place, kind, script: Script::clone(script), limit }
    }

    /// The database of this place.
    pub(crate) fn database(&self) -> String {
        self.kind.database(self.place)
    }

    /// A client that has logged in as [`USER`]; the log-in is not written down.
    pub(crate) fn client(&self, name: &'static str) -> Client {
        self.client_with(name, &[])
    }

    /// The same with more start-up parameters.
    pub(crate) fn client_with(&self, name: &'static str, more: &[(&str, &str)]) -> Client {
        let database = self.database();
        let parameters = [&[("user", USER), ("database", database.as_str())], more].concat();
        let mut client = self.connection(name);
        let is_in = client.quietly(|client| client.log_in(send::V3_0, &parameters, PASSWORD));
        assert!(is_in, "{name} cannot log in at {}", self.place.name());
        client
    }

    /// A connection on which nothing was sent yet.
    pub(crate) fn connection(&self, name: &'static str) -> Client {
        let oracle = self.place == Place::PostgreSql;
        Client::connect(name, self.world.port(self.place), self.limit, oracle, Some(&self.script))
    }

    /// A connection to PostgreSQL, past metako; nothing of it is written down.
    pub(crate) fn watcher(&self) -> Client {
        self.world.watcher(self.kind, self.place)
    }

    /// How a client speaks TLS that offers these application protocols.
    pub(crate) fn tls(&self, protocols: &[&str]) -> Arc<rustls::ClientConfig> {
        tls::client(&self.world.files, protocols)
    }

    /// Whether this is PostgreSQL itself, and older than that.
    pub(crate) fn is_postgresql_before(&self, version: u32) -> bool {
        self.place == Place::PostgreSql && self.world.version < version
    }

    /// Writes something down that the case found out.
    pub(crate) fn note(&self, what: &str, found: impl std::fmt::Debug) {
        self.script.borrow_mut().push(format!("{what}: {found:?}"));
    }

    /// Sends a CancelRequest and waits for the end of its connection.
    pub(crate) fn cancel(&self, key: &(u32, Vec<u8>)) {
        let mut connection = self.connection("cancel");
        // The key is drawn by lot.
        connection.quietly(|connection| connection.send(&send::cancel_request(key.0, &key.1)));
        connection.says_at_last("");
    }
}
