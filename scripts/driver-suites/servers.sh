# Servers for one run of a suite: a fresh PostgreSQL, and metako before it. Read by scripts/driver-suites.sh.

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# A fresh server, and metako before it if the mode is one of metako's; sets `port` to where the tests connect and
# `direct` to the server's own port. The database is named `$database`; everybody may log in at the server itself.
#
# A suite may set before it: `server_settings`, lines of postgresql.conf; `rules`, lines of pg_hba.conf, for the one that the
# tests connect to; `certificates`, a folder with server.crt, server.key and root.crt for it; `setup`, SQL for the database;
# `entrance`, the port that the tests connect to.
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
${server_settings:-}
SETTINGS
    local towards=disable
    if [ -n "${certificates:-}" ]; then
        cp "$certificates"/{server.crt,server.key,root.crt} "$data/data/"
        give "$data/data"
        chmod 600 "$data/data/server.key"
        printf '%s\n' "ssl = on" "ssl_ca_file = 'root.crt'" | "${as_server[@]}" tee -a "$data/data/postgresql.conf" >/dev/null
        towards=require
    fi
    if [ "$mode" = direct ] && [ -n "${rules:-}" ]; then
        echo "$rules" | "${as_server[@]}" tee "$data/data/pg_hba.conf" >/dev/null
    fi
    if [ "$mode" = direct ] && [ -n "${entrance:-}" ]; then
        direct=$entrance
        echo "port = $direct" | "${as_server[@]}" tee -a "$data/data/postgresql.conf" >/dev/null
    fi
    "${as_server[@]}" "$bin/postgres" -D "$data/data" >"$home/results/$suite-$mode.server.log" 2>&1 &
    processes+=($!)
    until "$bin/pg_isready" --quiet --host 127.0.0.1 --port "$direct"; do
        kill -0 "${processes[-1]}" || fail "PostgreSQL ended: $home/results/$suite-$mode.server.log"
        sleep 0.1
    done
    [ "$database" = postgres ] ||
        "$bin/psql" -Xq -h 127.0.0.1 -p "$direct" -U postgres -d postgres -c "create database \"$database\" template template0"
    if [ -n "${setup:-}" ]; then
        echo "$setup" | "$bin/psql" -Xq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$direct" -U postgres -d "$database" >&2
    fi
    port=$direct
    [ "$mode" != direct ] || return 0
    port=${entrance:-$(free_port)}
    local more=${METAKO_MORE:-}
    if [ -n "${certificates:-}" ]; then
        more+="
security: { tls_enabled: true, cert_file: $certificates/server.crt, key_file: $certificates/server.key, client_ca_file: $certificates/root.crt }"
    fi
    if [ -n "${rules:-}" ]; then
        echo "$rules" >"$data/hba.conf"
        more+="
auth: { hba_file: $data/hba.conf, query: 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = \$1 AND rolcanlogin' }"
    fi
    cat >"$data/metako.yaml" <<YAML
listen: 127.0.0.1:$port
state_dir: $data/state
nodes:
  - { name: node-1, host: 127.0.0.1, port: $direct, role: primary, username: postgres, password: "$password", database: $database, sslmode: $towards }
users:
  - { name: app, password: "$password" }
  - { name: postgres, password: "$password" }
load_balancer: { split: off }
pool: { mode: $mode, size: 60 }
log: { level: warn }
$more
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
