"""What applications do with asyncpg."""

import asyncio
import datetime as dt
import decimal
import ipaddress
import json
import ssl
import uuid

import asyncpg

from checks import (CA, DATABASE, DIRECT_PORTS, HOST, LIMIT, OTHER_CA, PASSWORD, PORT, USER, check, expect, main,
                    own_server, raises, with_tls)


def arguments(**more):
    return {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "database": DATABASE, "timeout": 20,
            "ssl": False, **more}


class connect:
    """A connection for a block."""

    def __init__(self, **more):
        self.more = more

    async def __aenter__(self):
        self.conn = await asyncpg.connect(**arguments(**self.more))
        return self.conn

    async def __aexit__(self, *_):
        if not self.conn.is_closed():
            await self.conn.close(timeout=LIMIT)


async def running(text):
    query = "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like $1"
    found = 0
    while not found:
        for port in DIRECT_PORTS:
            async with connect(port=port) as conn:
                found += await conn.fetchval(query, f"%{text}%")


async def table(conn, name, columns):
    name = f"asyncpg_{name}"
    await conn.execute(f"drop table if exists {name}")
    await conn.execute(f"create table {name} ({columns})")
    return name


@check
async def parameters_and_types():
    zone = dt.timezone.utc
    values = [
        ("int4", -2**31), ("int8", 2**62), ("float8", float("-inf")), ("numeric", decimal.Decimal("1234567890.0987654321")),
        ("bool", False), ("text", "héllo ✓ ' \\"), ("bytea", b"\x00\xff"), ("date", dt.date(2024, 2, 29)),
        ("time", dt.time(23, 59, 59, 999999)), ("timestamp", dt.datetime(1999, 12, 31, 23, 59, 59, 1)),
        ("timestamptz", dt.datetime(2024, 6, 1, 12, 0, tzinfo=zone)), ("interval", dt.timedelta(days=40, microseconds=7)),
        ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")), ("int4[]", [1, None, 3]),
        ("text[]", ["a", "b,c", '"']), ("int4[]", [[1, 2], [3, 4]]), ("int4range", asyncpg.Range(1, 10)),
        ("inet", ipaddress.ip_address("192.168.0.1")), ("point", asyncpg.Point(1.5, 2)), ("text", None),
        ("jsonb", '{"a": 1}'), ("oid", 4_000_000_000), ("varbit", asyncpg.BitString("10110")),
    ]
    async with connect() as conn:
        for kind, wanted in values:
            expect(await conn.fetchval(f"select $1::{kind}", wanted), wanted, kind)


@check
async def introspection_of_own_types():
    """asyncpg asks the catalogue with `jit` switched off by set_config, and keeps what it prepared."""
    async with connect() as conn:
        await conn.execute("drop type if exists asyncpg_pair, asyncpg_mood cascade")
        await conn.execute("create type asyncpg_mood as enum ('sad', 'glad')")
        await conn.execute("create type asyncpg_pair as (n int, mood asyncpg_mood)")
        for _ in range(2):
            got = await conn.fetchval("select $1::asyncpg_pair", (7, "glad"))
            expect((got["n"], got["mood"]), (7, "glad"))
            got = await conn.fetchval("select array[(1, 'sad')::asyncpg_pair, null]")
            expect((got[0]["mood"], got[1]), ("sad", None))
            await conn.reload_schema_state()
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        expect(await conn.fetchval("select $1::jsonb", {"a": [1, None]}), {"a": [1, None]})
        expect(await conn.fetchval("show jit"), "on")


@check
async def cache_of_statements():
    async with connect(statement_cache_size=10) as conn, connect() as other:
        for turn in range(100):
            expect(await conn.fetchval(f"select $1::int + {turn % 30}", 1), 1 + turn % 30)
            expect(await other.fetchval("select $1::int * 2", turn), turn * 2)
    async with connect(statement_cache_size=0) as conn:
        for turn in range(10):
            expect(await conn.fetchval("select $1::int", turn), turn)
    async with connect(max_cached_statement_lifetime=0, max_cacheable_statement_size=10) as conn:
        for turn in range(10):
            expect(await conn.fetchval("select $1::int", turn), turn)


@check
async def prepared_statements():
    async with connect() as conn, connect() as other:
        statement = await conn.prepare("select $1::int + 1 as n, $2::text as t")
        expect([attribute.name for attribute in statement.get_attributes()], ["n", "t"])
        expect([kind.name for kind in statement.get_parameters()], ["int4", "text"])
        for turn in range(20):
            expect(tuple(await statement.fetchrow(turn, "x")), (turn + 1, "x"))
            expect(await other.fetchval("select $1::int + 1", turn), turn + 1)
        named = await conn.prepare("select 5", name="mine")
        expect((named.get_name(), await named.fetchval()), ("mine", 5))
        with raises("22003"):
            await conn.fetchval("select $1::int + 2147483647", 1)
        expect(await statement.fetchval(1, "y"), 2)
        await conn.execute("deallocate all")
        with raises("26000"):
            await statement.fetchval(1, "z")


@check
async def statement_of_a_changed_table():
    async with connect() as conn, connect() as other:
        name = await table(conn, "changed", "id int")
        await conn.execute(f"insert into {name} values (1)")
        expect(len(await conn.fetchrow(f"select * from {name} for update")), 1)
        await other.execute(f"alter table {name} add column more int default 2")
        # asyncpg repeats it by itself outside of transactions.
        expect(tuple(await conn.fetchrow(f"select * from {name} for update")), (1, 2))


@check
async def cursors_and_portals():
    async with connect() as conn:
        async with conn.transaction():
            cursor = await conn.cursor("select n from generate_series(1, 1000) n where n > $1", 10)
            expect([row["n"] for row in await cursor.fetch(3)], [11, 12, 13])
            expect(await cursor.forward(10), 10)
            expect((await cursor.fetchrow())["n"], 24)
            other = await conn.cursor("select 'other'")
            expect((await other.fetchrow())[0], "other")
            expect(len(await cursor.fetch(5000)), 976)
        async with conn.transaction():
            got = [row["n"] async for row in conn.cursor("select n from generate_series(1, 500) n", prefetch=37)]
            expect(got, list(range(1, 501)))
            statement = await conn.prepare("select n from generate_series(1, 100) n")
            got = [row["n"] async for row in statement.cursor(prefetch=7)]
            expect(got, list(range(1, 101)))
        with raises(kind=asyncpg.NoActiveSQLTransactionError):
            await conn.cursor("select 1")


@check
async def transactions_and_savepoints():
    async with connect() as conn:
        name = await table(conn, "tx", "id int primary key")
        async with conn.transaction():
            await conn.execute(f"insert into {name} values (1)")
            with raises("23505"):
                async with conn.transaction():
                    await conn.execute(f"insert into {name} values (2)")
                    await conn.execute(f"insert into {name} values (1)")
            await conn.execute(f"insert into {name} values (3)")
        transaction = conn.transaction(isolation="serializable", readonly=True, deferrable=True)
        await transaction.start()
        expect(await conn.fetchval("show transaction_isolation"), "serializable")
        with raises("25006"):
            await conn.execute(f"insert into {name} values (9)")
        with raises("25P02"):
            await conn.execute("select 1")
        await transaction.rollback()
        expect(conn.is_in_transaction(), False)
        async with conn.transaction():
            expect([row["id"] for row in await conn.fetch(f"select id from {name} order by id")], [1, 3])


@check
async def many_executions():
    async with connect() as conn:
        name = await table(conn, "many", "id int primary key, body text")
        await conn.executemany(f"insert into {name} values ($1, $2)", [(n, "x" * 100) for n in range(5000)])
        with raises("23505"):
            await conn.executemany(f"insert into {name} values ($1, $2)", [(n, "y") for n in range(6000, 3999, -1)])
        async with conn.transaction():
            expect(await conn.fetchval(f"select count(*) from {name}"), 5000)
        got = await conn.fetchmany(f"insert into {name} values ($1, $2) returning id", [(n, "z") for n in range(9000, 9100)])
        expect([row["id"] for row in got], list(range(9000, 9100)))


@check
async def copy_in_and_out():
    async with connect() as conn:
        name = await table(conn, "copy", "id int, body text, at timestamptz")
        now = dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc)
        done = await conn.copy_records_to_table(name, records=[(n, None if n % 3 else f"row {n}", now) for n in range(5000)])
        expect(done, "COPY 5000")

        async def lines():
            for turn in range(1000):
                yield f"{turn},text,2024-01-02\n".encode()

        expect(await conn.copy_to_table(name, source=lines(), format="csv"), "COPY 1000")
        chunks = []

        async def take(chunk):
            chunks.append(chunk)

        async with conn.transaction():
            expect(await conn.copy_from_table(name, output=take), "COPY 6000")
            expect(b"".join(chunks).count(b"\n"), 6000)
            chunks.clear()
            query = f"select id from {name} where id < $1 order by id"
            expect(await conn.copy_from_query(query, 10, output=take, format="binary"), "COPY 20")
        with raises("22P02"):
            await conn.copy_to_table(name, source=_source(b"no number,x,2024-01-02\n"), format="csv")

        async def breaks():
            yield b"1,x,2024-01-02\n"
            raise ZeroDivisionError

        with raises(kind=ZeroDivisionError):
            await conn.copy_to_table(name, source=breaks(), format="csv")
        async with conn.transaction():
            expect(await conn.fetchval(f"select count(*) from {name}"), 6000)


async def _source(*chunks):
    for chunk in chunks:
        yield chunk


@check
async def errors_say_what_postgresql_says():
    async with connect() as conn:
        name = await table(conn, "errors", "id int primary key")
        await conn.execute(f"insert into {name} values (1)")
        with raises("23505", kind=asyncpg.UniqueViolationError) as caught:
            await conn.execute(f"insert into {name} values ($1)", 1)
        expect(caught.error.constraint_name, f"{name}_pkey")
        expect(caught.error.detail, "Key (id)=(1) already exists.")
        with raises("42601") as caught:
            await conn.fetch("selec 1")
        expect(caught.error.position, "1")
        with raises("42703"):
            await conn.prepare(f"select nothing from {name}")
        with raises("MK001") as caught:
            await conn.execute("do $$ begin raise 'mine' using errcode = 'MK001', hint = 'look'; end $$")
        expect(caught.error.hint, "look")
        seen = []
        conn.add_log_listener(lambda _, message: seen.append((message.severity, message.message)))
        await conn.execute("do $$ begin raise notice 'one'; raise warning 'two'; end $$")
        await asyncio.sleep(0)
        expect(seen, [("NOTICE", "one"), ("WARNING", "two")])


@check
async def listen_and_notify():
    got = asyncio.Queue()
    async with connect() as listener, connect() as sender:
        await listener.add_listener("asyncpg_channel", lambda _, pid, channel, payload: got.put_nowait((channel, payload)))
        await sender.execute("notify asyncpg_channel, 'one'")
        expect(await got.get(), ("asyncpg_channel", "one"))
        async with sender.transaction():
            await sender.execute("select pg_notify('asyncpg_channel', $1)", "two")
            expect(got.empty(), True)
        expect(await got.get(), ("asyncpg_channel", "two"))
        await listener.reset()
        await sender.execute("notify asyncpg_channel, 'nobody'")
        expect(await listener.fetchval("select 1"), 1)
        expect(got.empty(), True)


@check
async def cancel():
    async with connect() as conn:
        for turn in range(3):
            mark = f"asyncpg_cancel_{turn}"
            task = asyncio.create_task(conn.fetch(f"select pg_sleep(60), '{mark}'"))
            await running(mark)
            task.cancel()
            with _cancelled():
                await task
            expect(await conn.fetchval("select $1::int", turn), turn)
        try:
            await conn.fetch("select pg_sleep(60)", timeout=0.05)
            raise AssertionError("no time-out")
        except asyncio.TimeoutError:
            pass
        expect([await conn.fetchval("select $1::int", turn) for turn in range(20)], list(range(20)))


class _cancelled:
    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        expect(kind, asyncio.CancelledError)
        return True


@check
async def settings_at_connect():
    settings = {"application_name": "asyncpg app", "timezone": "Asia/Tokyo", "search_path": "pg_catalog, public",
                "statement_timeout": "54321", "work_mem": "7MB", "jit": "off", "options": "-c lock_timeout=4321"}
    shown = {**settings, "statement_timeout": "54321ms", "lock_timeout": "4321ms"}
    del shown["options"]
    async with connect(server_settings=settings) as conn, connect() as other:
        for _ in range(3):
            for name, wanted in shown.items():
                expect(await conn.fetchval(f"show {name}"), wanted, name)
            expect(await other.fetchval("show work_mem"), "4MB")
            expect(await other.fetchval("show jit"), "on")
        expect(conn.get_settings().TimeZone, "Asia/Tokyo")
        expect(conn.get_settings().application_name, "asyncpg app")
        await conn.execute("set work_mem = '9MB'")
        await conn.reset()
        expect(await conn.fetchval("show work_mem"), "7MB")
    with raises("42704"):
        await asyncpg.connect(**arguments(server_settings={"not_a_setting": "1"}))
    with raises("22023"):
        await asyncpg.connect(**arguments(server_settings={"timezone": "Nowhere/Land"}))


@check
async def settings_by_set():
    async with connect() as conn, connect() as other:
        clean = await other.fetchval("show timezone")
        await conn.execute("set timezone = 'America/Lima'; set work_mem = '6MB'")
        for _ in range(5):
            expect(await conn.fetchval("show timezone"), "America/Lima")
            expect(await conn.fetchval("show work_mem"), "6MB")
            expect(await other.fetchval("show timezone"), clean)
            expect(await other.fetchval("show work_mem"), "4MB")
        expect(conn.get_settings().TimeZone, "America/Lima")
        async with conn.transaction():
            await conn.execute("set local timezone = 'Asia/Seoul'")
            expect(conn.get_settings().TimeZone, "Asia/Seoul")
        expect(conn.get_settings().TimeZone, "America/Lima")
        await conn.reset()
        expect(await conn.fetchval("show timezone"), clean)


@check
async def timeouts_of_the_server_and_of_the_client():
    async with connect(server_settings={"statement_timeout": "1000"}) as conn:
        with raises("57014"):
            await conn.fetch("select pg_sleep(60)")
        expect(await conn.fetchval("select 1"), 1)
    async with connect(command_timeout=1) as conn:
        try:
            await conn.fetch("select pg_sleep(60)")
            raise AssertionError("no time-out")
        except asyncio.TimeoutError:
            pass
        expect(await conn.fetchval("select 1", timeout=LIMIT), 1)


@check
async def pool_of_connections():
    async with connect() as conn:
        name = await table(conn, "pool", "id int primary key, n int")
        await conn.execute(f"insert into {name} select n, 0 from generate_series(1, 8) n")

    async def init(conn):
        await conn.execute("set lock_timeout = '40s'")

    async with asyncpg.create_pool(**arguments(), min_size=2, max_size=10, setup=init, max_queries=50) as pool:
        async def work(turn):
            async with pool.acquire(timeout=LIMIT) as conn:
                expect(await conn.fetchval("show lock_timeout"), "40s")
                async with conn.transaction():
                    await conn.execute(f"update {name} set n = n + 1 where id = $1", turn % 8 + 1)
                return await conn.fetchval("select $1::int", turn)

        expect(await asyncio.gather(*(work(turn) for turn in range(400))), list(range(400)))
        expect(await pool.fetchval(f"with gone as (update {name} set n = n returning n) select sum(n) from gone"), 400)


@check
async def temporary_tables():
    async with connect() as conn, connect() as other:
        await conn.execute("create temp table asyncpg_temp (id int)")
        for turn in range(5):
            await conn.execute("insert into asyncpg_temp values ($1)", turn)
            expect(await conn.fetchval("select count(*) from asyncpg_temp"), turn + 1)
            with raises("42P01"):
                await other.fetchval("select count(*) from asyncpg_temp")


@check
async def advisory_locks():
    async with connect() as two:
        async with connect() as one:
            await one.execute("select pg_advisory_lock(5151)")
            expect(await two.fetchval("select pg_try_advisory_lock(5151)"), False)
            await one.reset()
            expect(await two.fetchval("select pg_try_advisory_lock(5151)"), True)


@check
async def large_values():
    async with connect() as conn:
        name = await table(conn, "large", "body text, raw bytea")
        body, raw = "äbc" * 3_000_000, bytes(range(256)) * 40_000
        await conn.execute(f"insert into {name} values ($1, $2)", body, raw)
        got = await conn.fetchrow(f"select body, raw from {name} for update")
        expect((got["body"] == body, got["raw"] == raw), (True, True))
        expect(len(await conn.fetch("select n, repeat('x', 100) from generate_series(1, 100000) n")), 100000)


@check
async def one_connection_does_one_thing_at_a_time():
    async with connect() as conn:
        first = asyncio.create_task(conn.fetchval("select 1 from pg_sleep(0.05)"))
        await asyncio.sleep(0)
        with raises(kind=asyncpg.InterfaceError):
            await conn.fetchval("select 2")
        expect(await first, 1)
        expect(await conn.fetchval("select 3"), 3)


@own_server
async def process_id_is_the_servers():
    async with connect() as conn, connect() as other:
        expect(await conn.fetchval("select pg_backend_pid()"), conn.get_server_pid())
        ended = asyncio.Event()
        conn.add_termination_listener(lambda _: ended.set())
        expect(await other.fetchval("select pg_terminate_backend($1)", conn.get_server_pid()), True)
        await ended.wait()
        expect(conn.is_closed(), True)


@check
async def refused_log_ins():
    with raises("28P01") as caught:
        await asyncpg.connect(**arguments(password="wrong"))
    expect(str(caught.error), f'password authentication failed for user "{USER}"')
    with raises("28P01"):
        await asyncpg.connect(**arguments(user="no such user"))
    with raises("3D000") as caught:
        await asyncpg.connect(**arguments(database="no such database"))
    expect(str(caught.error), 'database "no such database" does not exist')


@with_tls
async def tls_is_demanded_and_verified():
    for mode in ("require", "prefer"):
        async with connect(ssl=mode) as conn:
            expect(await conn.fetchval("select 1"), 1)
    context = ssl.create_default_context(cafile=CA)
    async with connect(ssl=context) as conn:
        expect(len(await conn.fetchval("select repeat('x', 1000000)")), 1000000)
        mark = "asyncpg_tls_cancel"
        task = asyncio.create_task(conn.fetch(f"select pg_sleep(60), '{mark}'"))
        await running(mark)
        task.cancel()
        with _cancelled():
            await task
        expect(await conn.fetchval("select 1"), 1)
    with raises(kind=ssl.SSLCertVerificationError):
        await asyncpg.connect(**arguments(ssl=ssl.create_default_context(cafile=OTHER_CA)))


@with_tls
async def tls_at_once():
    context = ssl.create_default_context(cafile=CA)
    # PostgreSQL demands it as well; asyncpg leaves it to whoever makes the context.
    context.set_alpn_protocols(["postgresql"])
    async with connect(ssl=context, direct_tls=True) as conn:
        expect(await conn.fetchval("select 1"), 1)


main()
