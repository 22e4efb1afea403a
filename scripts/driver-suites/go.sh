# The suites of Go's drivers: pgx and lib/pq. Read by scripts/driver-suites.sh.
#
#   PGX_TESTS=dir, PQ_TESTS=dir      their sources; Debian's source packages of $GO_SUITE by default
#   GO_SUITE=sid                     the suite of Debian that Go, the sources and what they need are taken from

all+=(pgx pq)
go_home=$home/go
go_suite=${GO_SUITE:-sid}

# Go itself and the libraries that the tests need, unpacked: no module proxy is needed.
prepare_go() {
    export GO111MODULE=off GOTOOLCHAIN=local GOPATH=$go_home/path GOCACHE=$go_home/cache
    if [ ! -e "$go_home/ready" ]; then
        say "Go and the libraries of $go_suite"
        # shellcheck disable=SC2046
        unpack_debian "$go_home/unpacked" "$go_suite" $(needs_debian "$go_suite" '^golang-[0-9.]+-(go|src)$' golang-go) \
            $(needs_debian "$go_suite" '^golang-.*-dev$' golang-github-jackc-pgx-v5-dev) \
            $(needs_debian "$go_suite" '^golang-.*-dev$' golang-github-lib-pq-dev)
        mkdir -p "$GOPATH"
        cp -r "$go_home/unpacked/usr/share/gocode/src" "$GOPATH/"
        rm -rf "$GOPATH/src/github.com/jackc/pgx/v5" "$GOPATH/src/github.com/lib/pq"
        touch "$go_home/ready"
    fi
    PATH=$(ls -d "$go_home"/unpacked/usr/lib/go-*/bin):$PATH
}

# The binaries of a driver's tests, one for each of its packages.
#   build_go NAME FOLDER-OF-ITS-SOURCE IMPORT-PATH
build_go() {
    local name=$1 from=$2 at=$GOPATH/src/$3
    [ ! -e "$go_home/$name/built" ] || return 0
    say "$name: building its tests"
    mkdir -p "$at" "$go_home/$name"
    cp -r "$from/." "$at/"
    # A package that needs what is not here has its line in the log, and no binary.
    (cd "$at" && go test -vet=off -c -o "$go_home/$name/" ./...) >"$home/build-$name.log" 2>&1 || true
    [ -n "$(ls "$go_home/$name"/*.test 2>/dev/null)" ] || fail "nothing was built: $home/build-$name.log"
    touch "$go_home/$name/built"
}

# Each package's tests in its own folder, and one line of the table for all. `around` is what runs the binaries.
#   run_go NAME IMPORT-PATH MODE
run_go() {
    local name=$1 at=$GOPATH/src/$2 out=$home/results/$1-$3 folder binary
    : >"$out"
    while read -r folder; do
        binary=$go_home/$name/$(basename "$folder").test
        [ -x "$binary" ] || continue
        echo "=== ${folder#"$at"}" >>"$out"
        (cd "$folder" && timeout 900 "${around[@]}" "$binary" -test.v -test.timeout=840s -test.parallel=1 -test.count=1) >>"$out" 2>&1 || true
    done < <(find "$at" -name '*_test.go' -printf '%h\n' | sort -u)
    counts="$(grep -c '^--- PASS' "$out" || true)/$(grep -cE '^--- (PASS|FAIL)' "$out" || true)"
}

run_pgx() {
    local mode=$1 database=pgx_test certificates=$work/pgx at=github.com/jackc/pgx/v5 rules setup around=()
    local source=${PGX_TESTS:-}
    prepare_go
    if [ -z "$source" ] && [ ! -e "$go_home/pgx/built" ]; then
        fetch_debian golang-github-jackc-pgx-v5 "$go_suite"
        source=$(ls -d "$home"/src/jackc-pgx-*)
    fi
    build_go pgx "$source" "$at"
    at=$GOPATH/src/$at
    if [ ! -d "$certificates" ]; then
        mkdir "$certificates"
        (cd "$certificates" && go run "$at/testsetup/generate_certs.go" && cp ca.pem root.crt && cp localhost.crt server.crt &&
            cp localhost.key server.key && chmod 600 server.key)
    fi
    rules=$(sed 's/^host  *all  *pgx_md5/host all postgres all trust\n&/' "$at/testsetup/pg_hba.conf")
    setup=$(cat "$at/testsetup/postgresql_setup.sql")
    start "$mode"
    local to="host=127.0.0.1 port=$port dbname=pgx_test"
    local over="host=localhost port=$port dbname=pgx_test sslmode=verify-full sslrootcert=$certificates/ca.pem"
    export PGX_TEST_DATABASE="$to user=pgx_md5 password=secret"
    export PGX_TEST_TCP_CONN_STRING=$PGX_TEST_DATABASE PGX_TEST_MD5_PASSWORD_CONN_STRING=$PGX_TEST_DATABASE
    export PGX_TEST_SCRAM_PASSWORD_CONN_STRING="$to user=pgx_scram password=secret channel_binding=disable"
    export PGX_TEST_PLAIN_PASSWORD_CONN_STRING="$to user=pgx_pw password=secret"
    export PGX_TEST_SCRAM_PLUS_CONN_STRING="$over user=pgx_ssl password=secret channel_binding=require"
    export PGX_TEST_TLS_CONN_STRING="$over user=pgx_ssl password=secret channel_binding=disable"
    export PGX_TEST_TLS_CLIENT_CONN_STRING="$over user=pgx_sslcert sslcert=$certificates/pgx_sslcert.crt sslkey=$certificates/pgx_sslcert.key"
    export PGX_SSL_PASSWORD=certpw
    run_go pgx github.com/jackc/pgx/v5 "$mode"
}

run_pq() {
    local mode=$1 database=pqgotest certificates=$work/pq rules setup around=()
    local source=${PQ_TESTS:-} at=github.com/lib/pq
    prepare_go
    if [ -z "$source" ] && [ ! -e "$go_home/pq/built" ]; then
        fetch_debian golang-github-lib-pq "$go_suite"
        source=$(ls -d "$home"/src/golang-github-lib-pq-*/)
    fi
    build_go pq "$source" "$at"
    at=$GOPATH/src/$at
    mkdir -p "$certificates"
    cp "$at"/certs/* "$certificates/"
    chmod 600 "$certificates"/*.key
    rules=$(printf '%s\n' 'host all postgres all trust' 'hostnossl all pqgossltest,pqgosslcert all reject' \
        'hostssl all pqgossltest all trust' 'hostssl all pqgosslcert all cert' 'host all all all trust')
    setup="create role pqgossltest login; create role pqgosslcert login;"
    start "$mode"
    # The certificate is for a host of the name `postgres`; only root can make one, for the tests alone.
    if [ "$(id -u)" = 0 ]; then
        printf '127.0.0.1 %s\n' localhost postgres >"$work/hosts"
        # shellcheck disable=SC2016
        around=(unshare --mount bash -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$work/hosts")
    fi
    export PGUSER=postgres PGHOST=localhost PGPORT=$port PQGOSSLTESTS=1 PQSSLCERTTEST_PATH=$certificates
    run_go pq github.com/lib/pq "$mode"
    unset PGUSER PGHOST PGPORT
}
