// What applications do with node-postgres (`pg`), its cursors and its COPY streams. One line of JSON for each check.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

const require = createRequire(`${process.env.METAKO_TEST_NODE_MODULES}/`);
const pg = require("pg");
const Cursor = require("pg-cursor");
const copyStreams = require("pg-copy-streams");

const setting = (name) => process.env[`METAKO_TEST_${name}`];
const LIMIT = 60_000;
const server = {
  host: "127.0.0.1",
  port: Number(setting("PORT")),
  user: setting("USER"),
  password: setting("PASSWORD"),
  database: setting("DATABASE"),
  connectionTimeoutMillis: 20_000,
};
// The servers themselves: for watching what goes on, never for what is checked.
const direct = setting("DIRECT_PORTS").split(",").map((port) => ({ ...server, port: Number(port) }));

/** A connected client for the duration of `work`. */
async function connected(work, more = {}) {
  const client = new pg.Client({ ...server, ...more });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Two of them. */
const twoConnected = (work) => connected((one) => connected((two) => work(one, two)));

async function value(client, text, values) {
  const result = await client.query({ text, values, rowMode: "array" });
  return result.rows[0][0];
}

async function table(client, name, columns) {
  await client.query(`drop table if exists node_${name}`);
  await client.query(`create table node_${name} (${columns})`);
  return `node_${name}`;
}

async function fails(code, work) {
  const error = await work().then(
    () => assert.fail(`expected SQLSTATE ${code}, got no error`),
    (error) => error,
  );
  if (error.code !== code) {
    throw new Error(`expected SQLSTATE ${code}, got ${error.code}: ${error.message}`);
  }
  return error;
}

/** Waits until a statement with that text runs on a server. */
async function running(text) {
  const query =
    "select count(*)::int from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like $1";
  for (let found = 0; found === 0; ) {
    for (const node of direct) {
      found += await connected((client) => value(client, query, [`%${text}%`]), node);
    }
  }
}

const checks = {
  async parameters_and_types() {
    await connected(async (client) => {
      const moment = new Date("2024-06-01T12:00:00.123Z");
      const cases = [
        ["int4", -5, -5], ["int8", "4611686018427387904", "4611686018427387904"], ["float8", 1.5, 1.5],
        ["numeric", "123.4500", "123.4500"], ["bool", true, true], ["text", "héllo ✓ ' \\", "héllo ✓ ' \\"],
        ["text", null, null], ["int4[]", [1, null, 3], [1, null, 3]], ["text[]", ["a", 'b,"c'], ["a", 'b,"c']],
        ["jsonb", { a: [1, "ü"] }, { a: [1, "ü"] }], ["timestamptz", moment, moment],
        ["bytea", Buffer.from([0, 255, 1]), Buffer.from([0, 255, 1])],
        ["uuid", "12345678-1234-5678-1234-567812345678", "12345678-1234-5678-1234-567812345678"],
      ];
      for (const [kind, given, wanted] of cases) {
        assert.deepEqual(await value(client, `select $1::${kind}`, [given]), wanted, kind);
      }
    });
  },

  async binary_results() {
    await connected(async (client) => {
      const result = await client.query({ text: "select $1::int4 as n, $2::text as t, true as b", values: [7, "x"], binary: true });
      assert.deepEqual({ ...result.rows[0] }, { n: 7, t: "x", b: true });
    });
  },

  async named_queries() {
    await twoConnected(async (one, two) => {
      for (let turn = 0; turn < 30; turn += 1) {
        const sum = await one.query({ name: "same name", text: "select $1::int + 1 as n", values: [turn] });
        assert.equal(sum.rows[0].n, turn + 1);
        const product = await two.query({ name: "same name", text: "select $1::int * 2 as n", values: [turn] });
        assert.equal(product.rows[0].n, turn * 2);
      }
      await fails("22P02", () => one.query({ name: "same name", values: ["x"], text: "select $1::int + 1 as n" }));
      await assert.rejects(one.query({ name: "same name", text: "select 3" }), /Prepared statements must be unique/);
      const again = await one.query({ name: "same name", text: "select $1::int + 1 as n", values: [1] });
      assert.equal(again.rows[0].n, 2);
    });
  },

  async named_query_that_does_not_parse() {
    await connected(async (client) => {
      await fails("42601", () => client.query({ name: "broken", text: "selec 1" }));
      assert.equal((await client.query({ name: "broken", text: "select 1 as n" })).rows[0].n, 1);
    });
  },

  async cursors() {
    await connected(async (client) => {
      const cursor = client.query(new Cursor("select n from generate_series(1, 1000) n where n > $1", [10]));
      assert.deepEqual((await cursor.read(3)).map((row) => row.n), [11, 12, 13]);
      assert.equal((await cursor.read(500)).length, 500);
      await cursor.close();
      assert.equal(await value(client, "select 1"), 1);
      const whole = client.query(new Cursor("select n from generate_series(1, 250) n"));
      let count = 0;
      for (let rows = await whole.read(100); rows.length > 0; rows = await whole.read(100)) count += rows.length;
      assert.equal(count, 250);
      await whole.close();
      const broken = client.query(new Cursor("select 100 / (n - 50) from generate_series(1, 100) n"));
      assert.equal((await broken.read(10)).length, 10);
      await fails("22012", () => broken.read(90));
      assert.equal(await value(client, "select 2"), 2);
      await client.query("begin");
      await client.query("declare c scroll cursor for select n from generate_series(1, 10) n");
      assert.equal((await client.query("fetch last from c")).rows[0].n, 10);
      await client.query("commit");
    });
  },

  async copy_in_and_out() {
    await connected(async (client) => {
      const name = await table(client, "copy", "id int, body text");
      const rows = function* () {
        for (let turn = 0; turn < 20_000; turn += 1) yield `${turn}\trow ${turn}\n`;
      };
      const into = client.query(copyStreams.from(`copy ${name} from stdin`));
      await pipeline(Readable.from(rows()), into);
      assert.equal(into.rowCount, 20_000);
      await client.query("begin");
      const out = client.query(copyStreams.to(`copy ${name} to stdout`));
      let lines = 0;
      for await (const chunk of out) lines += chunk.filter((byte) => byte === 10).length;
      assert.equal(lines, 20_000);
      await client.query("commit");
      const failing = client.query(copyStreams.from(`copy ${name} from stdin`));
      await fails("22P02", () => pipeline(Readable.from(["no number\tx\n"]), failing));
      assert.equal(await value(client, "select 1"), 1);
    });
  },

  async transactions_and_savepoints() {
    await connected(async (client) => {
      const name = await table(client, "tx", "id int primary key");
      await client.query("begin");
      await client.query(`insert into ${name} values (1)`);
      await client.query("savepoint one");
      await fails("23505", () => client.query(`insert into ${name} values ($1)`, [1]));
      await fails("25P02", () => client.query("select 1"));
      await client.query("rollback to one");
      await client.query(`insert into ${name} values (2)`);
      assert.equal((await client.query("commit")).command, "COMMIT");
      await client.query("begin");
      await fails("22012", () => client.query("select 1/0"));
      assert.equal((await client.query("commit")).command, "ROLLBACK");
      await client.query("begin isolation level serializable read only");
      assert.equal((await client.query(`select count(*)::int as n from ${name}`)).rows[0].n, 2);
      await fails("25006", () => client.query(`insert into ${name} values (3)`));
      await client.query("rollback");
    });
  },

  async errors_say_what_postgresql_says() {
    await connected(async (client) => {
      const name = await table(client, "errors", "id int primary key");
      await client.query(`insert into ${name} values (1)`);
      const unique = await fails("23505", () => client.query(`insert into ${name} values ($1)`, [1]));
      assert.equal(unique.constraint, `${name}_pkey`);
      assert.equal(unique.detail, "Key (id)=(1) already exists.");
      assert.equal((await fails("42601", () => client.query("selec 1"))).position, "1");
      await fails("42P01", () => client.query("select * from not_there"));
      await fails("08P01", () => client.query({ name: "two", text: "select $1::int + $2::int", values: [1] }));
      const own = await fails("MK001", () =>
        client.query("do $$ begin raise 'mine' using errcode = 'MK001', hint = 'look'; end $$"));
      assert.equal(own.hint, "look");
      const notices = [];
      client.on("notice", (notice) => notices.push(notice.message));
      await client.query("do $$ begin raise notice 'one'; raise warning 'two'; end $$");
      assert.deepEqual(notices, ["one", "two"]);
    });
  },

  async many_statements_in_one_string() {
    await connected(async (client) => {
      const results = await client.query("select 1 as a; select 2 as b, 3 as c; select 4 as d where false");
      assert.deepEqual(results.map((result) => result.rows.length), [1, 1, 0]);
      assert.deepEqual((await client.query("")).rows, []);
      const queued = await Promise.all([1, 2, 3, 4, 5].map((n) => value(client, "select $1::int", [n])));
      assert.deepEqual(queued, [1, 2, 3, 4, 5]);
    });
  },

  async listen_and_notify() {
    await twoConnected(async (listener, sender) => {
      await listener.query("listen node_channel");
      let got = once(listener, "notification");
      await sender.query("select pg_notify('node_channel', $1)", ["hello"]);
      assert.equal((await got)[0].payload, "hello");
      got = once(listener, "notification");
      await sender.query("begin; notify node_channel, 'in a block'; commit");
      assert.equal((await got)[0].payload, "in a block");
      await listener.query("unlisten *");
    });
  },

  async cancel_by_another_connection() {
    await twoConnected(async (client, other) => {
      const mark = "node_cancel";
      const slow = fails("57014", () => client.query(`select pg_sleep(60), '${mark}'`));
      await running(mark);
      // The protocol's own cancel request, as `pg` sends it.
      const canceller = new pg.Client(server);
      canceller.cancel(client, client._activeQuery ?? client.activeQuery);
      await slow;
      assert.equal(await value(client, "select 1"), 1);
      assert.equal(await value(other, "select 1"), 1);
    });
  },

  async settings_at_connect() {
    const more = {
      application_name: "node app",
      statement_timeout: 54_321,
      lock_timeout: 4321,
      idle_in_transaction_session_timeout: 33_000,
      options: "-c search_path=pg_catalog,public -c TimeZone=Asia/Tokyo -c DateStyle=German",
    };
    await connected((client) => connected(async (other) => {
      for (let turn = 0; turn < 3; turn += 1) {
        assert.equal(await value(client, "show application_name"), "node app");
        assert.equal(await value(client, "show statement_timeout"), "54321ms");
        assert.equal(await value(client, "show lock_timeout"), "4321ms");
        assert.equal(await value(client, "show idle_in_transaction_session_timeout"), "33s");
        assert.equal(await value(client, "show search_path"), "pg_catalog,public");
        assert.equal(await value(client, "select '2024-03-01 00:00:00+00'::timestamptz::text"), "01.03.2024 09:00:00 JST");
        assert.equal(await value(other, "show statement_timeout"), "0");
      }
    }), more);
    const refused = new pg.Client({ ...server, options: "-c not_a_setting=1" });
    await fails("42704", () => refused.connect());
  },

  async settings_by_set() {
    await twoConnected(async (client, other) => {
      const clean = await value(other, "show timezone");
      await client.query("set timezone = 'America/Lima'; set statement_timeout = '1min'");
      for (let turn = 0; turn < 5; turn += 1) {
        assert.equal(await value(client, "show timezone"), "America/Lima");
        assert.equal(await value(client, "show statement_timeout"), "1min");
        assert.equal(await value(other, "show timezone"), clean);
      }
      await client.query("begin; set local timezone = 'Asia/Seoul'");
      assert.equal(await value(client, "show timezone"), "Asia/Seoul");
      await client.query("rollback");
      assert.equal(await value(client, "show timezone"), "America/Lima");
      await client.query("discard all");
      assert.equal(await value(client, "show timezone"), clean);
    });
  },

  async statement_timeout() {
    await connected(async (client) => {
      const error = await fails("57014", () => client.query("select pg_sleep(60)"));
      assert.match(error.message, /statement timeout/);
      assert.equal(await value(client, "select 1"), 1);
    }, { statement_timeout: 1000 });
  },

  async pool_of_connections() {
    const name = await connected(async (client) => {
      const name = await table(client, "pool", "id int primary key, n int");
      await client.query(`insert into ${name} select n, 0 from generate_series(1, 8) n`);
      return name;
    });
    const pool = new pg.Pool({ ...server, max: 10, maxUses: 50 });
    const work = async (turn) => {
      const client = await pool.connect();
      try {
        await client.query("begin");
        await client.query({ name: "add", text: `update ${name} set n = n + 1 where id = $1`, values: [(turn % 8) + 1] });
        await client.query("commit");
      } finally {
        client.release();
      }
      return value(pool, "select $1::int", [turn]);
    };
    const turns = Array.from({ length: 400 }, (_, turn) => turn);
    assert.deepEqual(await Promise.all(turns.map(work)), turns);
    const sum = await value(pool, `with gone as (update ${name} set n = n returning n) select sum(n)::int from gone`);
    assert.equal(sum, 400);
    await pool.end();
  },

  async temporary_tables() {
    await twoConnected(async (client, other) => {
      await client.query("create temp table node_temp (id int)");
      for (let turn = 1; turn <= 5; turn += 1) {
        await client.query("insert into node_temp values ($1)", [turn]);
        assert.equal(await value(client, "select count(*)::int from node_temp"), turn);
        await fails("42P01", () => other.query("select * from node_temp"));
      }
    });
  },

  async large_values() {
    await connected(async (client) => {
      const name = await table(client, "large", "body text, raw bytea");
      const body = "äbc".repeat(2_000_000);
      const raw = Buffer.alloc(8_000_000, "xyz");
      await client.query(`insert into ${name} values ($1, $2)`, [body, raw]);
      const got = (await client.query(`select * from ${name} for update`)).rows[0];
      assert.ok(got.body === body && got.raw.equals(raw), "what was stored comes back");
      assert.equal((await client.query("select n, repeat('x', 100) from generate_series(1, 100000) n")).rowCount, 100_000);
    });
  },

  async refused_log_ins() {
    const refused = (more) => new pg.Client({ ...server, ...more }).connect();
    const wrong = await fails("28P01", () => refused({ password: "wrong" }));
    assert.equal(wrong.message, `password authentication failed for user "${server.user}"`);
    await fails("28P01", () => refused({ user: "no such user" }));
    const missing = await fails("3D000", () => refused({ database: "no such database" }));
    assert.equal(missing.message, 'database "no such database" does not exist');
  },
};

if (["direct", "session"].includes(setting("MODE"))) {
  checks.process_id_is_the_servers = () => twoConnected(async (client, other) => {
    assert.equal(await value(client, "select pg_backend_pid()"), client.processID);
    const ended = once(client, "error");
    // After the server's error comes that of the closed connection.
    client.on("error", () => {});
    assert.equal(await value(other, "select pg_terminate_backend($1)", [client.processID]), true);
    assert.equal((await ended)[0].code, "57P01");
  });
}

if (setting("CA")) {
  const ca = readFileSync(setting("CA"), "utf8");
  checks.tls_is_demanded_and_verified = async () => {
    for (const ssl of [{ ca }, { rejectUnauthorized: false }]) {
      await connected(async (client) => {
        assert.equal((await value(client, "select repeat('x', 1000000)")).length, 1_000_000);
      }, { ssl });
    }
    const other = new pg.Client({ ...server, ssl: { ca: readFileSync(setting("OTHER_CA"), "utf8") } });
    await assert.rejects(other.connect(), /certificate|signature/);
  };
  checks.tls_at_once = () =>
    connected(async (client) => assert.equal(await value(client, "select 1"), 1), { ssl: { ca }, sslnegotiation: "direct" });
}

function place(error) {
  const line = (error.stack ?? "").split("\n").find((line) => line.includes("node_checks.mjs")) ?? "";
  return line.trim().replace(/^.*node_checks\.mjs/, "node_checks.mjs").replace(/\)$/, "");
}

let unexpected = [];
process.on("uncaughtException", (error) => unexpected.push(error));
process.on("unhandledRejection", (error) => unexpected.push(error));
const wanted = process.argv.slice(2);
for (const [name, check] of Object.entries(checks)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  unexpected = [];
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("it does not end")), LIMIT);
  });
  let failure;
  try {
    await Promise.race([check(), late]);
    failure = unexpected[0];
  } catch (error) {
    failure = error;
  }
  clearTimeout(timer);
  const code = failure?.code ? ` [${failure.code}]` : "";
  const detail = failure ? `${failure.name}${code}: ${failure.message} (at ${place(failure)})` : "";
  console.log(JSON.stringify({ check: name, ok: !failure, detail }));
}
// Connections of checks that hang must not keep the process.
process.exit(0);
