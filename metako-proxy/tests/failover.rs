//! The primary dies under load, on a real cluster.

mod running;

use running::Metako;
use running::day::{direct, wait_streaming};
use running::ledger::Clients;
use tokio_postgres::NoTls;

#[test]
fn a_killed_primary_is_replaced_and_no_acknowledged_row_is_lost() {
    let cluster = running::cluster(2, Some(1));
    let metako = Metako::start(&running::configuration(&cluster, ""));
    let before = metako.wait_until_open(2);
    assert_eq!(before["primary"], "node-1");
    metako.wait_until_synchronous();
    let clients = Clients::start(&cluster, metako.port, 8, 2);
    let dsn = running::dsn(&cluster, metako.port);
    let (idle, connection) = clients.runtime().block_on(tokio_postgres::connect(&dsn, NoTls)).unwrap();
    clients.runtime().spawn(connection);
    clients.wait_for_more(300);

    cluster.node("node-1").kill_9().unwrap();
    let primary = metako.another_primary("node-1");
    clients.all_go_on();
    clients.wait_for_more(300);
    let answer: i32 =
        clients.runtime().block_on(idle.query_one("select 1", &[])).expect("an idle session lives on").get(0);
    assert_eq!(answer, 1);
    clients.finish(&cluster, cluster.node(&primary).port());

    let survivor = if primary == "node-2" { "node-3" } else { "node-2" };
    assert_eq!(direct(&cluster, &primary, "select pg_is_in_recovery()"), "f", "one writable primary");
    assert_eq!(direct(&cluster, survivor, "select pg_is_in_recovery()"), "t");
    assert!(!cluster.node("node-1").is_running(), "nobody restarted the old primary");
    wait_streaming(&cluster, &primary, &[survivor]);
    metako.wait_until_open(1);
}
