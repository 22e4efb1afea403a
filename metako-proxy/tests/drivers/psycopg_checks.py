"""What applications do with psycopg 3."""

import asyncio
import datetime as dt
import decimal
import ipaddress
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

from checks import (CA, DATABASE, DIRECT_PORTS, HOST, LIMIT, OTHER_CA, PASSWORD, PORT, USER, background, check,
                    eventually, expect, main, own_server, raises, with_tls)

# Both flavours of psycopg run this script against one database.
TEXTS = ["a", "b,c", '"']
PREFIX = f"psycopg_{psycopg.pq.__impl__}"


def dsn(**more):
    parameters = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "dbname": DATABASE,
                  "connect_timeout": 20, "sslmode": "disable"}
    parameters.update(more)
    return parameters


def connect(autocommit=True, **more):
    own = {name: more.pop(name) for name in ("prepare_threshold", "row_factory", "cursor_factory") if name in more}
    return psycopg.connect(**dsn(**more), autocommit=autocommit, **own)


def watcher():
    return psycopg.connect(**dsn(port=DIRECT_PORTS[0]), autocommit=True)


def value(conn, query, parameters=None, **more):
    return conn.execute(query, parameters, **more).fetchone()[0]


def running(text):
    """Waits until a statement with that text runs on a server."""
    query = "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like %s"
    with ExitStack() as stack:
        conns = [stack.enter_context(psycopg.connect(**dsn(port=port), autocommit=True)) for port in DIRECT_PORTS]
        eventually(f"`{text}` runs", lambda: any(value(conn, query, [f"%{text}%"]) for conn in conns))


def table(conn, name, columns):
    name = f"{PREFIX}_{name}"
    conn.execute(f"drop table if exists {name}")
    conn.execute(f"create table {name} ({columns})")
    return name


@check
def parameters_and_types():
    zone = dt.timezone(dt.timedelta(hours=2))
    values = [
        1, -2**31, 2**62, 3.25, float("inf"), decimal.Decimal("12345678901234567890.0123456789"), True, None, "héllo ✓ \\ '",
        b"\x00\x01\xff", dt.date(2024, 2, 29), dt.time(23, 59, 59, 999999), dt.datetime(1999, 12, 31, 23, 59, 59, 1),
        dt.datetime(2024, 6, 1, 12, 0, tzinfo=zone), dt.timedelta(days=40, seconds=5, microseconds=7),
        uuid.UUID("12345678-1234-5678-1234-567812345678"), [1, 2, 3], TEXTS, [[1, 2], [3, 4]],
        Range(1, 10), ipaddress.ip_address("192.168.0.1"),
    ]
    with connect() as conn:
        for binary in (False, True):
            for wanted in values:
                placeholder = "%b" if binary and not isinstance(wanted, ipaddress.IPv4Address) else "%t"
                kind = "::text" if wanted is None else "::text[]" if wanted == TEXTS else "::int4range" if isinstance(wanted, Range) else ""
                got = value(conn, f"select {placeholder}{kind}", [wanted], binary=binary)
                expect(got, wanted, f"{type(wanted).__name__}, binary {binary}")
            document = {"a": [1, None, "ü"], "b": {"c": 1.5}}
            expect(value(conn, "select %s::jsonb", [Jsonb(document)], binary=binary), document)


@check
def enums_and_composites():
    with connect() as conn:
        name = f"{PREFIX}_mood"
        conn.execute(f"drop type if exists {name} cascade")
        conn.execute(f"create type {name} as enum ('sad', 'glad')")
        info = EnumInfo.fetch(conn, name)
        register_enum(info, conn)
        got = value(conn, f"select 'glad'::{name}", binary=True)
        expect(got.name, "glad")
        expect(value(conn, f"select %s::{name}", ["sad"]).name, "sad")


@check
def prepared_automatically():
    with connect(prepare_threshold=2) as conn, connect(prepare_threshold=0) as other:
        for turn in range(30):
            expect(value(conn, "select %s::int + 1", [turn]), turn + 1)
            expect(value(other, "select %s::int + 2", [turn]), turn + 2)
            expect(value(other, "select %s::text", [f"text {turn}"]), f"text {turn}")
    with connect(prepare_threshold=None) as conn:
        expect(value(conn, "select %s::int", [3]), 3)


@check
def prepared_and_evicted():
    """More statements than the client keeps: it lets old ones go, by Close or by DEALLOCATE."""
    with connect(prepare_threshold=0) as conn:
        conn.prepared_max = 3
        for turn in range(40):
            expect(value(conn, f"select %s::int + {turn % 8}", [1]), 1 + turn % 8)
        for turn in range(3):
            conn.execute("deallocate all")
            expect(value(conn, f"select %s::int + {turn}", [1]), 1 + turn)


@check
def deallocate_by_name():
    with connect() as conn:
        conn.execute("prepare mine (int) as select $1 + 1")
        expect(value(conn, "execute mine (4)"), 5)
        conn.execute("deallocate mine")
        with raises("26000"):
            conn.execute("execute mine (4)")
        expect(value(conn, "select 1"), 1)


@check
def server_side_cursors():
    with connect(autocommit=False) as conn:
        with conn.cursor(name="numbers") as cursor:
            cursor.itersize = 100
            cursor.execute("select n from generate_series(1, 1050) n where n > %s", [50])
            expect(cursor.fetchone()[0], 51)
            expect([row[0] for row in cursor.fetchmany(3)], [52, 53, 54])
            expect(sum(row[0] for row in cursor), sum(range(55, 1051)))
        with conn.cursor(name="scroll", scrollable=True) as cursor:
            cursor.execute("select n from generate_series(1, 100) n")
            cursor.scroll(50)
            expect(cursor.fetchone()[0], 51)
            cursor.scroll(-10)
            expect(cursor.fetchone()[0], 42)
            cursor.scroll(0, mode="absolute")
            expect(cursor.fetchone()[0], 1)
        conn.commit()
        with conn.cursor(name="stays", withhold=True) as cursor:
            cursor.execute("select n from generate_series(1, 10) n")
            expect(cursor.fetchone()[0], 1)
            conn.commit()
            expect([row[0] for row in cursor], list(range(2, 11)))
        conn.commit()


@check
def binary_cursor_streams():
    with connect() as conn:
        got = [row[0] for row in conn.cursor(binary=True).stream("select n from generate_series(1, 3000) n")]
        expect(got, list(range(1, 3001)))


@check
def pipeline():
    with connect() as conn:
        name = table(conn, "pipeline", "id int primary key, body text")
        with conn.pipeline():
            for turn in range(300):
                conn.execute(f"insert into {name} values (%s, %s)", [turn, "x" * 50])
            cursor = conn.execute(f"select count(*) from {name}")
        expect(cursor.fetchone()[0], 300)
        with raises("23505"), conn.pipeline():
            conn.execute(f"insert into {name} values (1000, 'first')")
            conn.execute(f"insert into {name} values (1, 'again')")
            conn.execute(f"insert into {name} values (1001, 'aborted')")
        with conn.transaction():
            expect(value(conn, f"select count(*) from {name} where id >= 1000"), 0, "one unit, rolled back")
        with conn.pipeline() as pipe:
            conn.execute(f"insert into {name} values (1000, 'first')")
            pipe.sync()
            try:
                conn.execute(f"insert into {name} values (1, 'again')")
                pipe.sync()
            except psycopg.errors.UniqueViolation:
                pass
            conn.execute(f"insert into {name} values (1001, 'kept')")
        with conn.transaction():
            expect(value(conn, f"select count(*) from {name} where id >= 1000"), 2)


@check
def pipeline_with_transactions():
    with connect(autocommit=False) as conn:
        name = table(conn, "pipeline_tx", "id int primary key")
        conn.commit()
        with conn.pipeline():
            with conn.transaction():
                for turn in range(50):
                    conn.execute(f"insert into {name} values (%s)", [turn])
                try:
                    with conn.transaction():
                        conn.execute(f"insert into {name} values (50)")
                        conn.execute(f"insert into {name} values (1)")
                except psycopg.errors.UniqueViolation:
                    pass
                conn.execute(f"insert into {name} values (51)")
        with conn.cursor() as cursor:
            cursor.executemany(f"insert into {name} values (%s) returning id", [(n,) for n in range(100, 150)],
                               returning=True)
            got = []
            while True:
                got.append(cursor.fetchone()[0])
                if not cursor.nextset():
                    break
            expect(got, list(range(100, 150)))
        expect(value(conn, f"select count(*) from {name}"), 101)
        conn.rollback()


@check
def copy_in_and_out():
    with connect() as conn:
        name = table(conn, "copy", "id int, body text, at timestamptz")
        now = dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone.utc)
        cursor = conn.cursor()
        with cursor.copy(f"copy {name} from stdin") as copy:
            for turn in range(5000):
                copy.write_row((turn, f"row\t{turn}\n" if turn % 3 else None, now))
        expect(cursor.rowcount, 5000)
        with cursor.copy(f"copy {name} from stdin (format binary)") as copy:
            copy.set_types(["int4", "text", "timestamptz"])
            for turn in range(5000, 6000):
                copy.write_row((turn, "binary", now))
        with conn.transaction():
            with cursor.copy(f"copy (select * from {name} order by id) to stdout") as copy:
                copy.set_types(["int4", "text", "timestamptz"])
                rows = list(copy.rows())
            expect((len(rows), rows[0], rows[5999]), (6000, (0, None, now), (5999, "binary", now)))
            with cursor.copy(f"copy (select id from {name} order by id) to stdout (format binary)") as copy:
                copy.set_types(["int4"])
                expect([row[0] for row in copy.rows()], list(range(6000)))
            with cursor.copy(f"copy {name} to stdout") as copy:
                expect(sum(len(chunk) > 0 for chunk in copy), 6000)


@check
def copy_that_fails():
    with connect() as conn:
        name = table(conn, "copy_fails", "id int")
        with raises("22P02"):
            with conn.cursor().copy(f"copy {name} from stdin") as copy:
                copy.write("1\nno number\n")
        expect(value(conn, "select 1"), 1)
        with raises(kind=ZeroDivisionError):
            with conn.cursor().copy(f"copy {name} from stdin") as copy:
                copy.write("1\n")
                raise ZeroDivisionError
        with raises("22012"):
            with conn.cursor().copy("copy (select 1 / (3000 - n) from generate_series(1, 5000) n) to stdout") as copy:
                for _ in copy:
                    pass
        # One that does not read to the end cancels.
        with raises(kind=ZeroDivisionError):
            with conn.cursor().copy("copy (select repeat('x', 1000) from generate_series(1, 20000)) to stdout") as copy:
                next(iter(copy))
                raise ZeroDivisionError
        with conn.transaction():
            expect(value(conn, f"select count(*) from {name}"), 0)


@check
def transactions_and_savepoints():
    with connect(autocommit=False) as conn:
        name = table(conn, "tx", "id int primary key")
        conn.commit()
        conn.execute(f"insert into {name} values (1)")
        conn.rollback()
        with conn.transaction():
            conn.execute(f"insert into {name} values (1)")
            with raises("23505"), conn.transaction():
                conn.execute(f"insert into {name} values (1)")
            with conn.transaction() as inner:
                conn.execute(f"insert into {name} values (2)")
                raise psycopg.Rollback(inner)
            conn.execute(f"insert into {name} values (3)")
        conn.execute(f"insert into {name} values (4)")
        with raises("22012"):
            conn.execute("select 1/0")
        with raises("25P02"):
            conn.execute("select 1")
        expect(conn.info.transaction_status.name, "INERROR")
        conn.rollback()
        expect(conn.execute(f"select id from {name} order by id").fetchall(), [(1,), (3,)])
        conn.rollback()
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.deferrable = True
        expect(value(conn, "show transaction_isolation"), "serializable")
        with raises("25006"):
            conn.execute(f"insert into {name} values (9)")
        conn.rollback()


@check
def serialization_failure():
    with connect(autocommit=False) as one, connect(autocommit=False) as two:
        name = table(one, "serial", "id int, n int")
        one.execute(f"insert into {name} values (1, 0)")
        one.commit()
        for conn in (one, two):
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute(f"select * from {name}")
        one.execute(f"update {name} set n = n + 1")
        one.commit()
        with raises("40001"):
            two.execute(f"update {name} set n = n + 1")
        two.rollback()


@check
def two_phase_commit():
    with connect(autocommit=False) as conn:
        name = table(conn, "two_phase", "id int")
        conn.commit()
        for decide in ("commit", "rollback"):
            xid = conn.xid(1, f"{PREFIX}_{decide}", "branch")
            conn.tpc_begin(xid)
            conn.execute(f"insert into {name} values (1)")
            conn.tpc_prepare()
            getattr(conn, f"tpc_{decide}")()
        xid = conn.xid(1, f"{PREFIX}_recovered", "branch")
        conn.tpc_begin(xid)
        conn.execute(f"insert into {name} values (1)")
        conn.tpc_prepare()
        # The client forgets it, another finds it.
        conn.close()
    with connect(autocommit=False) as conn:
        expect([known.gtrid for known in conn.tpc_recover() if known.gtrid == xid.gtrid], [xid.gtrid])
        conn.tpc_rollback(xid)
        expect(value(conn, f"select count(*) from {name}"), 1)


@check
def errors_say_what_postgresql_says():
    with connect() as conn:
        name = table(conn, "errors", "id int primary key, n int not null check (n > 0)")
        conn.execute(f"insert into {name} values (1, 1)")
        with raises("23505") as caught:
            conn.execute(f"insert into {name} values (1, 1)")
        expect(caught.error.diag.constraint_name, f"{name}_pkey")
        expect(caught.error.diag.table_name, name)
        expect(caught.error.diag.message_detail, "Key (id)=(1) already exists.")
        with raises("23502") as caught:
            conn.execute(f"insert into {name} values (2, null)")
        expect(caught.error.diag.column_name, "n")
        with raises("42601") as caught:
            conn.execute("selec 1")
        expect(caught.error.diag.statement_position, "1")
        with raises("42P01") as caught:
            conn.execute("select  *  from not_there")
        expect(caught.error.diag.statement_position, "17")
        with raises("MK001") as caught:
            conn.execute("do $$ begin raise exception 'mine' using errcode = 'MK001', hint = 'look' ; end $$")
        expect((caught.error.diag.message_primary, caught.error.diag.message_hint), ("mine", "look"))
        with raises("22P02"):
            conn.execute("select %s::int", ["x"])
        expect(value(conn, "select 1"), 1)


@check
def notices():
    with connect() as conn:
        seen = []
        conn.add_notice_handler(lambda diag: seen.append((diag.severity, diag.sqlstate, diag.message_primary)))
        conn.execute("do $$ begin raise notice 'one'; raise warning 'two' using errcode = '01MKO'; end $$")
        expect(seen, [("NOTICE", "00000", "one"), ("WARNING", "01MKO", "two")])


@check
def many_statements_in_one_string():
    with connect() as conn:
        cursor = conn.execute("select 1; select 2, 3; select 'x' where false")
        results = [cursor.fetchall()]
        while cursor.nextset():
            results.append(cursor.fetchall())
        expect(results, [[(1,)], [(2, 3)], []])
        expect(conn.execute("").description, None)
        name = table(conn, "strings", "id int")
        with raises("22012"):
            conn.execute(f"insert into {name} values (1); select 1/0")
        with conn.transaction():
            expect(value(conn, f"select count(*) from {name}"), 0)


@check
def listen_and_notify():
    with connect() as listener, connect() as sender:
        channel = f"{PREFIX}_channel"
        listener.execute(f"listen {channel}")
        sender.execute(f"notify {channel}, 'hello'")
        got = [(n.channel, n.payload) for n in listener.notifies(timeout=LIMIT, stop_after=1)]
        expect(got, [(channel, "hello")])
        with sender.transaction():
            sender.execute("select pg_notify(%s, %s)", [channel, "in a block"])
            sender.execute("select pg_notify(%s, %s)", [channel, "a second"])
        # Arrives while the listener does other things.
        expect(value(listener, "select 1"), 1)
        got = [n.payload for n in listener.notifies(timeout=LIMIT, stop_after=1)]
        expect(got, ["in a block", "a second"])
        listener.execute(f"unlisten {channel}")
        sender.execute(f"notify {channel}, 'nobody'")
        expect(list(listener.notifies(timeout=0.1)), [])


@own_server
def notification_names_its_sender():
    with connect() as listener, connect() as sender:
        listener.execute(f"listen {PREFIX}_sender")
        sender.execute(f"notify {PREFIX}_sender")
        got = [n.pid for n in listener.notifies(timeout=LIMIT, stop_after=1)]
        expect(got, [sender.info.backend_pid])


@check
def cancel():
    with connect() as conn:
        mark = f"{PREFIX}_cancel"

        def kill():
            running(mark)
            conn.cancel()

        for turn in range(3):
            killer = background(kill)
            with raises("57014"):
                conn.execute(f"select pg_sleep(60), '{mark}'")
            killer.join()
            expect(value(conn, "select 1"), 1)

        def kill_safely():
            running(mark)
            conn.cancel_safe(timeout=LIMIT)

        killer = background(kill_safely)
        with raises("57014"):
            conn.execute(f"select pg_sleep(60), '{mark}'", prepare=True)
        killer.join()
        conn.cancel()
        expect([value(conn, "select 1") for _ in range(20)], [1] * 20)


@check
def settings_at_connect():
    options = "-c statement_timeout=54321 -c work_mem=7MB -csearch_path=pg_catalog,public -c IntervalStyle=iso_8601"
    with connect(options=options, application_name=f"{PREFIX} app", client_encoding="LATIN1") as conn, connect() as other:
        for _ in range(3):
            for name, wanted in [("statement_timeout", "54321ms"), ("work_mem", "7MB"), ("search_path", "pg_catalog,public"),
                                 ("IntervalStyle", "iso_8601"), ("application_name", f"{PREFIX} app"),
                                 ("client_encoding", "LATIN1")]:
                expect(value(conn, f"show {name}"), wanted, name)
            expect(value(conn, "select 'é'"), "é")
            expect(value(other, "show work_mem"), "4MB")
            expect(value(other, "select 'é✓'"), "é✓")
        expect(conn.info.parameter_status("application_name"), f"{PREFIX} app")
        expect(conn.info.parameter_status("client_encoding"), "LATIN1")
        expect(conn.info.parameter_status("IntervalStyle"), "iso_8601")
        conn.execute("set work_mem = '9MB'")
        conn.execute("reset work_mem")
        expect(value(conn, "show work_mem"), "7MB", "RESET gives what was asked for at connect")
    with raises(kind=psycopg.OperationalError) as caught:
        connect(options="-c not_a_setting=1")
    expect('unrecognized configuration parameter "not_a_setting"' in str(caught.error), True, str(caught.error))


@check
def settings_by_set():
    with connect() as conn, connect() as other:
        wanted = [("timezone", "Asia/Tokyo"), ("datestyle", "German, DMY"), ("statement_timeout", "1min"),
                  ("search_path", "pg_catalog"), ("work_mem", "11MB"), ("extra_float_digits", "0"),
                  ("default_transaction_isolation", "repeatable read")]
        clean = [value(other, "select current_setting(%s, true)", [name]) for name, _ in wanted]
        for name, text in wanted:
            conn.execute(sql.SQL("set {} = {}").format(sql.SQL(name), sql.SQL(text) if name == "datestyle"
                                                       else sql.Literal(text)))
        for _ in range(5):
            got = [value(conn, "select current_setting(%s, true)", [name]) for name, _ in wanted]
            expect(got, [text for _, text in wanted])
            expect([value(other, "select current_setting(%s, true)", [name]) for name, _ in wanted], clean, "another client")
        expect(value(conn, "select '2024-03-01'::date::text"), "01.03.2024")
        expect(conn.info.timezone.key, "Asia/Tokyo")
        expect(conn.info.parameter_status("DateStyle"), "German, DMY")
        conn.execute("reset all")
        expect([value(conn, "select current_setting(%s, true)", [name]) for name, _ in wanted], clean)


@check
def custom_settings():
    with connect() as conn:
        conn.execute("set my.own = 'value'")
        expect([value(conn, "select current_setting('my.own')") for _ in range(5)], ["value"] * 5)


@check
def custom_settings_of_others_are_not_there():
    with connect() as conn, connect() as other:
        conn.execute("set somebody.elses = 'value'")
        for _ in range(3):
            expect(value(other, "select current_setting('somebody.elses', true)"), None)
            expect(value(conn, "select current_setting('somebody.elses')"), "value")


@check
def settings_in_a_transaction():
    with connect(autocommit=False) as conn:
        before = value(conn, "show timezone")
        conn.execute("set timezone = 'Europe/Lisbon'")
        expect(conn.info.parameter_status("TimeZone"), "Europe/Lisbon")
        conn.rollback()
        expect(value(conn, "show timezone"), before)
        expect(conn.info.parameter_status("TimeZone"), before)
        conn.execute("set local work_mem = '13MB'")
        expect(value(conn, "show work_mem"), "13MB")
        conn.commit()
        expect(value(conn, "show work_mem"), "4MB")
        conn.execute("select set_config('timezone', 'Asia/Seoul', false)")
        conn.commit()
        expect(value(conn, "show timezone"), "Asia/Seoul")
        conn.commit()


@check
def client_encoding_changes():
    with connect() as conn:
        name = table(conn, "encoding", "body text")
        conn.execute(f"insert into {name} values (%s)", ["naïve"])
        conn.execute("set client_encoding to latin1")
        expect(conn.info.encoding, "iso8859-1")
        expect(value(conn, f"select body from {name} for update"), "naïve")
        conn.execute(f"insert into {name} values (%s)", ["Ärger"])
        conn.execute("set client_encoding to utf8")
        with conn.transaction():
            got = [row[0] for row in conn.execute(f"select body from {name} order by body collate \"C\"")]
        expect(got, ["naïve", "Ärger"])


@check
def reported_parameters():
    names = ["server_version", "server_encoding", "client_encoding", "is_superuser", "session_authorization", "DateStyle",
             "IntervalStyle", "TimeZone", "integer_datetimes", "standard_conforming_strings", "application_name"]
    with connect() as conn:
        for name in names:
            expect(conn.info.parameter_status(name), value(conn, f"show {name}"), name)
        expect(conn.info.server_version // 10000, int(value(conn, "show server_version_num")) // 10000)


@check
def statement_timeout():
    with connect() as conn:
        with raises("57014") as caught, conn.transaction():
            conn.execute("set local statement_timeout = '20ms'")
            conn.execute("select pg_sleep(60)")
        expect("statement timeout" in str(caught.error), True)
        conn.execute("set statement_timeout = '1s'")
        with raises("57014"):
            conn.execute("select pg_sleep(60)")
        conn.execute("reset statement_timeout")
    with connect(options="-c lock_timeout=20ms") as one, connect() as two:
        name = table(two, "timeouts", "id int")
        with two.transaction():
            two.execute(f"lock table {name}")
            with raises("55P03"):
                one.execute(f"select * from {name} for update")


@check
def temporary_tables():
    with connect() as conn, connect() as other:
        conn.execute(f"create temp table {PREFIX}_temp (id int)")
        for turn in range(10):
            conn.execute(f"insert into {PREFIX}_temp values (%s)", [turn])
            expect(value(conn, f"select count(*) from {PREFIX}_temp"), turn + 1)
            with raises("42P01"):
                other.execute(f"select count(*) from {PREFIX}_temp")
        conn.execute(f"drop table {PREFIX}_temp")
        with conn.transaction():
            conn.execute(f"create temp table {PREFIX}_temp (id int) on commit drop")
            expect(value(conn, f"select count(*) from {PREFIX}_temp"), 0)
        with raises("42P01"):
            conn.execute(f"select count(*) from {PREFIX}_temp")


@check
def advisory_locks():
    with connect() as one, connect() as two:
        key = 4242 if psycopg.pq.__impl__ == "binary" else 4243
        one.execute("select pg_advisory_lock(%s)", [key])
        for _ in range(3):
            expect(value(two, "select pg_try_advisory_lock(%s)", [key]), False)
        expect(value(one, "select pg_advisory_unlock(%s)", [key]), True)
        expect(value(two, "select pg_try_advisory_lock(%s)", [key]), True)
    with connect() as three:
        eventually("the lock goes with its client", lambda: value(three, "select pg_try_advisory_lock(%s)", [key]))


@check
def roles():
    with connect() as conn, connect() as other:
        with raises("22023"):
            conn.execute("set role nobody_of_that_name")
        me = value(conn, "select current_user")
        for statement in ("set role pg_monitor", "set session authorization default"):
            conn.execute(statement)
            expect(value(other, "select current_user"), me)
        conn.execute("set role pg_monitor")
        for _ in range(3):
            expect(value(conn, "select current_user"), "pg_monitor")
            expect(value(other, "select current_user"), me)
        conn.execute("reset role")
        expect(value(conn, "select current_user"), me)


@check
def sequences_and_lastval_in_a_transaction():
    with connect() as conn, connect() as other:
        name = table(conn, "sequences_tx", "id serial")
        with conn.transaction():
            conn.execute(f"insert into {name} default values")
            other.execute(f"insert into {name} default values")
            expect(value(conn, f"select currval('{name}_id_seq'), lastval()"), 1)


@own_server
def sequences_and_lastval():
    with connect() as conn, connect() as other:
        name = table(conn, "sequences", "id serial")
        conn.execute(f"insert into {name} default values")
        expect(value(conn, f"select currval('{name}_id_seq')"), 1)
        other.execute(f"insert into {name} default values")
        expect(value(conn, "select lastval()"), 1)


@check
def large_values():
    with connect() as conn:
        name = table(conn, "large", "body text, raw bytea")
        body, raw = "äbc" * 3_000_000, bytes(range(256)) * 40_000
        conn.execute(f"insert into {name} values (%s, %b)", [body, raw])
        for binary in (False, True):
            got = conn.execute(f"select body, raw from {name} for update", binary=binary).fetchone()
            expect((got[0] == body, got[1] == raw), (True, True), f"binary {binary}")
        count = len(conn.execute("select n, repeat('x', 100) from generate_series(1, 100000) n").fetchall())
        expect(count, 100000)


@check
def large_objects():
    with connect() as conn:
        with conn.transaction():
            oid = value(conn, "select lo_from_bytea(0, %s)", [b"some bytes" * 1000])
            descriptor = value(conn, "select lo_open(%s, x'40000'::int)", [oid])
            expect(value(conn, "select loread(%s, 10)", [descriptor]), b"some bytes")
            conn.execute("select lo_close(%s)", [descriptor])
        with conn.transaction():
            expect(len(value(conn, "select lo_get(%s)", [oid])), 10000)
        conn.execute("select lo_unlink(%s)", [oid])


@check
def pool_of_connections():
    with connect() as conn:
        name = table(conn, "pool", "id int primary key, n int")
        conn.execute(f"insert into {name} select n, 0 from generate_series(1, 8) n")
    with psycopg_pool.ConnectionPool(kwargs=dsn(), min_size=4, max_size=8, open=True,
                                     check=psycopg_pool.ConnectionPool.check_connection) as pool:
        pool.wait(LIMIT)

        def work(turn):
            with pool.connection(timeout=LIMIT) as conn:
                conn.execute(f"update {name} set n = n + 1 where id = %s", [turn % 8 + 1])
                return value(conn, "select %s::int", [turn])

        with ThreadPoolExecutor(24) as threads:
            expect(list(threads.map(work, range(400))), list(range(400)))
    with connect() as conn, conn.transaction():
        expect(value(conn, f"select sum(n) from {name}"), 400)


@check
async def pool_of_asynchronous_connections():
    def reset(conn):
        return conn.execute("discard all")

    async def setup(conn):
        await conn.set_autocommit(True)
        await conn.execute("set statement_timeout = '50s'")

    async with psycopg_pool.AsyncConnectionPool(kwargs=dsn(), min_size=2, max_size=10, open=False, configure=setup) as pool:
        async def work(turn):
            async with pool.connection(timeout=LIMIT) as conn:
                got = await (await conn.execute("select %s::int, current_setting('statement_timeout')", [turn])).fetchone()
                return got

        got = await asyncio.gather(*(work(turn) for turn in range(200)))
        expect(got, [(turn, "50s") for turn in range(200)])


@check
def discard_all():
    with connect(prepare_threshold=0) as conn:
        expect(value(conn, "select %s::int", [1]), 1)
        conn.execute("set work_mem = '5MB'")
        conn.execute("discard all", prepare=False)
        expect(value(conn, "show work_mem", prepare=False), "4MB")
        # The client believes that its statement is there still; PostgreSQL has none.
        conn.execute("deallocate all", prepare=False)
        expect(value(conn, "select %s::int", [2]), 2)


@own_server
def process_id_is_the_servers():
    with connect() as conn, connect() as other:
        expect(value(conn, "select pg_backend_pid()"), conn.info.backend_pid)
        expect(value(other, "select count(*) from pg_stat_activity where pid = %s", [conn.info.backend_pid]), 1)
        expect(value(other, "select pg_terminate_backend(%s)", [conn.info.backend_pid]), True)
        with raises("57P01", None, kind=psycopg.OperationalError):
            conn.execute("select 1")
        expect(conn.broken, True)


@check
def refused_log_ins():
    for more, text in [({"password": "wrong"}, f'password authentication failed for user "{USER}"'),
                       ({"user": "no such user"}, 'password authentication failed for user "no such user"'),
                       ({"dbname": "no such database"}, 'database "no such database" does not exist')]:
        with raises(kind=psycopg.OperationalError) as caught:
            connect(**more)
        expect(text in str(caught.error), True, f"{text}: {caught.error}")


@check
def application_name_is_shown():
    with connect(application_name=f"{PREFIX} shown") as conn, watcher() as other:
        expect(value(conn, "show application_name"), f"{PREFIX} shown")
        with conn.transaction():
            conn.execute("select 1")
            shown = value(other, "select count(*) from pg_stat_activity where application_name = %s", [f"{PREFIX} shown"])
            expect(shown, 1)


@with_tls
def tls_is_demanded_and_verified():
    with connect(sslmode="require") as conn:
        expect(bool(conn.pgconn.ssl_in_use), True)
        expect(value(conn, "select 1"), 1)
    for host in ("127.0.0.1", "localhost"):
        with connect(sslmode="verify-full", sslrootcert=CA, host=host, hostaddr="127.0.0.1") as conn:
            expect(value(conn, "select length(repeat('x', 1000000))"), 1000000)
    with connect(sslmode="verify-ca", sslrootcert=CA, channel_binding="disable") as conn:
        expect(value(conn, "select 1"), 1)
    with raises(kind=psycopg.OperationalError) as caught:
        connect(sslmode="verify-full", sslrootcert=OTHER_CA)
    expect("certificate verify failed" in str(caught.error), True, str(caught.error))
    with raises(kind=psycopg.OperationalError) as caught:
        connect(sslmode="verify-full", sslrootcert=CA, host="elsewhere.invalid", hostaddr="127.0.0.1")
    expect("does not match host name" in str(caught.error), True, str(caught.error))


@with_tls
def tls_cancel_and_copy():
    with connect(sslmode="require") as conn:
        mark = f"{PREFIX}_tls_cancel"

        def kill():
            running(mark)
            conn.cancel()

        killer = background(kill)
        with raises("57014"):
            conn.execute(f"select pg_sleep(60), '{mark}'")
        killer.join()
        with conn.cursor().copy("copy (select repeat('x', 1000) from generate_series(1, 20000)) to stdout") as copy:
            expect(sum(len(chunk) for chunk in copy), 20000 * 1001)


@with_tls
def tls_channel_binding():
    with connect(sslmode="require", channel_binding="require") as conn:
        expect(value(conn, "select 1"), 1)


if psycopg.pq.version() >= 170000:
    @with_tls
    def tls_at_once():
        with connect(sslmode="require", sslnegotiation="direct") as conn:
            expect(value(conn, "select 1"), 1)


main()
