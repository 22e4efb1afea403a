# Servers for one run of a suite: a fresh PostgreSQL, and metako before it. Read by scripts/driver-suites.sh.

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# A fresh server, and metako before it if the mode is one of metako's; sets `port` to where the tests connect and
# `direct` to the server's own port. The database is named `$database`; everybody may log in at the server itself.
start() {
    local mode=$1
    password=$(head -c 18 /dev/urandom | base64 | tr -d '/+=')
    data=$work/$mode
    rm -rf "$data"
    mkdir -p "$data"
    give "$data"
    printf '%s' "$password" >"$work/password"
    chmod 644 "$work/password"
    "${as_server[@]}" "$bin/initdb" -D "$data/data" -U postgres --auth=trust --pwfile="$work/password" \
        --encoding=UTF8 --locale=C --no-sync >"$data/initdb.log"
    direct=$(free_port)
    "${as_server[@]}" tee -a "$data/data/postgresql.conf" >/dev/null <<SETTINGS
port = $direct
listen_addresses = '127.0.0.1'
unix_socket_directories = '$data'
max_connections = 150
max_prepared_transactions = 10
wal_level = logical
fsync = off
password_encryption = 'scram-sha-256'
log_autovacuum_min_duration = 0
max_wal_senders = 10
SETTINGS
    "${as_server[@]}" "$bin/postgres" -D "$data/data" >"$home/results/$suite-$mode.server.log" 2>&1 &
    processes+=($!)
    until "$bin/pg_isready" --quiet --host 127.0.0.1 --port "$direct"; do
        kill -0 "${processes[-1]}" || fail "PostgreSQL ended: $home/results/$suite-$mode.server.log"
        sleep 0.1
    done
    "$bin/psql" -Xq -h 127.0.0.1 -p "$direct" -U postgres -d postgres -c "create database \"$database\" template template0"
    port=$direct
    [ "$mode" != direct ] || return 0
    port=$(free_port)
    cat >"$data/metako.yaml" <<YAML
listen: 127.0.0.1:$port
state_dir: $data/state
nodes:
  - { name: node-1, host: 127.0.0.1, port: $direct, role: primary, username: postgres, password: "$password", database: $database, sslmode: disable }
users:
  - { name: app, password: "$password" }
load_balancer: { split: off }
pool: { mode: $mode, size: 60 }
log: { level: warn }
${METAKO_MORE:-}
YAML
    "$metako" --config "$data/metako.yaml" >"$home/results/$suite-$mode.metako.log" 2>&1 &
    processes+=($!)
    local tries=0
    until PGPASSWORD=$password "$bin/psql" -Xqc 'select 1' -h 127.0.0.1 -p "$port" -U postgres -d "$database" >/dev/null 2>&1; do
        kill -0 "${processes[-1]}" || fail "metako ended: $home/results/$suite-$mode.metako.log"
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "metako serves nobody: $home/results/$suite-$mode.metako.log"
        sleep 0.1
    done
}

# The server writes files into a folder of the tests.
give() {
    [ "${#as_server[@]}" = 0 ] || chown -R "$account" "$1"
}
