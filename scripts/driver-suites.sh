#!/bin/bash
# `make driver-suites`: PostgreSQL's own tests, run by hand against PostgreSQL itself, and against metako in session and in
# transaction mode, each on a fresh server. Prints how many tests passed in each.
#
#   SUITES="regress isolation pipeline"          which; all by default
#   MODES="direct session transaction"           against what; all by default
#   METAKO=target/release/metako                 which binary; built if it is missing
#
# What is downloaded and built stays in target/suites. Results of every test: target/suites/results/SUITE-MODE.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
home=$root/target/suites
suites=${SUITES:-regress isolation pipeline}
modes=${MODES:-direct session transaction}
export DEBIAN_FRONTEND=noninteractive

say() { echo "== $*" >&2; }
fail() { echo "driver-suites: $*" >&2; exit 1; }

scripts/install-missing.sh
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
major=$(basename "$(dirname "$bin")")
version=$("$bin/postgres" --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
metako=${METAKO:-$root/target/release/metako}
if [ ! -x "$metako" ]; then
    say "building metako in release mode"
    cargo build --release --locked --quiet --package metako-proxy --bin metako
fi

# PostgreSQL refuses root.
as_server=()
if [ "$(id -u)" = 0 ]; then
    account=postgres
    id "$account" >/dev/null 2>&1 || account=nobody
    as_server=(runuser -u "$account" --)
fi
# The server reads and writes files of the regression tests: a folder that both may enter.
work=$(mktemp -d "${TMPDIR:-/tmp}/metako-suites.XXXXXX")
chmod 755 "$work"
mkdir -p "$home/results"
processes=()
stop_all() {
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || true; done
    for process in "${processes[@]}"; do wait "$process" 2>/dev/null || true; done
    processes=()
}
trap 'stop_all; rm -rf "$work"' EXIT

# --- sources -----------------------------------------------------------------------------------------------------

# The source package of the server that is installed, by apt's own configuration with sources in the place of binaries.
fetch_postgresql() {
    local apt=$home/apt source
    source=$(ls -d "$home"/src/postgresql-"$version" 2>/dev/null || true)
    [ -z "$source" ] || return 0
    say "PostgreSQL $version: its source package"
    mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial} "$home/src"
    find /etc/apt/sources.list.d -name '*.sources' -exec cp {} "$apt/parts/" \;
    find "$apt/parts" -name '*.sources' -exec sed -i 's/^Types: *deb *$/Types: deb-src/' {} +
    if [ -s /etc/apt/sources.list ]; then
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$apt/parts/main.list"
    fi
    local options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt/parts"
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=root")
    apt-get "${options[@]}" --quiet update >&2
    local package
    package=$(dpkg-query --show --showformat '${Version}' "postgresql-$major")
    (cd "$apt" && apt-get "${options[@]}" --quiet source --download-only "postgresql-$major=$package" >&2)
    tar xf "$apt"/postgresql-"$major"_"$version".orig.tar.* -C "$home/src"
}

build_postgresql() {
    fetch_postgresql
    source=$home/src/postgresql-$version
    [ ! -e "$source/built" ] || return 0
    say "PostgreSQL $version: building its tests"
    (
        cd "$source"
        ./configure --without-readline --without-zlib --without-icu CFLAGS=-O1
        make -C src/backend generated-headers
        for part in src/port src/common src/test/regress src/test/isolation src/interfaces/libpq \
            src/test/modules/libpq_pipeline contrib/spi; do
            make -C "$part" all
        done
        touch built
    ) >"$home/build.log" 2>&1 || fail "the build failed: $home/build.log"
}

# --- servers ------------------------------------------------------------------------------------------------------

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

# --- suites: each sets `counts` to PASSED/TOTAL ----------------------------------------------------------------------------

count_regress() {
    local out=$1 passed total
    passed=$(grep -cE '\.\.\. ok +[0-9]+ ms|^ok ' "$out" || true)
    total=$(grep -cE '\.\.\. (ok|FAILED|failed)|^(not )?ok ' "$out" || true)
    counts="$passed/$total"
}

run_regress() {
    local mode=$1 database=regression output=$work/$1/regress
    build_postgresql
    start "$mode"
    "$bin/psql" -Xq -h 127.0.0.1 -p "$direct" -U postgres -d regression <<SQL
alter database regression set lc_messages to 'C';
alter database regression set lc_monetary to 'C';
alter database regression set lc_numeric to 'C';
alter database regression set lc_time to 'C';
alter database regression set bytea_output to 'hex';
alter database regression set timezone_abbreviations to 'Default';
SQL
    cp -r "$source/src/test/regress" "$output"
    cp "$source/contrib/spi/"{refint,autoinc}.so "$output/"
    give "$output"
    (cd "$output" && PGPASSWORD=$password timeout 900 "${as_server[@]}" ./pg_regress --use-existing --inputdir=. --outputdir=. \
        --dlpath="$output" --bindir="$bin" --host=127.0.0.1 --port="$port" --user=postgres --dbname=regression \
        --schedule=parallel_schedule) >"$home/results/regress-$mode" 2>&1 || true
    cp "$output/regression.diffs" "$home/results/regress-$mode.diffs" 2>/dev/null || true
    count_regress "$home/results/regress-$mode"
}

run_isolation() {
    local mode=$1 database=isolation_regression output=$work/$1/isolation
    build_postgresql
    start "$mode"
    cp -r "$source/src/test/isolation" "$output"
    mkdir -p "$output/output_iso"
    give "$output"
    (cd "$output" && PGPASSWORD=$password LD_LIBRARY_PATH="$source/src/interfaces/libpq" timeout 600 \
        "${as_server[@]}" ./pg_isolation_regress --use-existing --inputdir=. --outputdir=. --bindir="$bin" --host=127.0.0.1 \
        --port="$port" --user=postgres --dbname=isolation_regression --schedule=isolation_schedule) \
        >"$home/results/isolation-$mode" 2>&1 || true
    cp "$output/regression.diffs" "$home/results/isolation-$mode.diffs" 2>/dev/null || true
    count_regress "$home/results/isolation-$mode"
}

run_pipeline() {
    local mode=$1 database=regression tests test passed=0 total=0
    build_postgresql
    start "$mode"
    local program=$source/src/test/modules/libpq_pipeline/libpq_pipeline
    export LD_LIBRARY_PATH=$source/src/interfaces/libpq
    tests=$("$program" tests)
    : >"$home/results/pipeline-$mode"
    for test in $tests; do
        total=$((total + 1))
        if PGPASSWORD=$password timeout 60 "$program" "$test" \
            "host=127.0.0.1 port=$port user=postgres dbname=regression" >>"$home/results/pipeline-$mode" 2>&1; then
            passed=$((passed + 1))
            echo "ok $test" >>"$home/results/pipeline-$mode"
        else
            echo "not ok $test" >>"$home/results/pipeline-$mode"
        fi
    done
    unset LD_LIBRARY_PATH
    counts="$passed/$total"
}

declare -A table
for suite in $suites; do
    for mode in $modes; do
        say "$suite, $mode"
        counts=none
        "run_${suite//-/_}" "$mode"
        stop_all
        table[$suite,$mode]=$counts
        say "$suite, $mode: ${table[$suite,$mode]}"
    done
done

printf '%-16s' suite
for mode in $modes; do printf '%16s' "$mode"; done
printf '\n'
for suite in $suites; do
    printf '%-16s' "$suite"
    for mode in $modes; do printf '%16s' "${table[$suite,$mode]}"; done
    printf '\n'
done
