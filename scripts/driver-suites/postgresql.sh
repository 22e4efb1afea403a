# PostgreSQL's own tests: regress, isolation, libpq_pipeline. Read by scripts/driver-suites.sh.
#
#   POSTGRESQL_TESTS=dir      its source, of any version; by default that of the server's package

all+=(regress isolation pipeline)

# The source package of the server that is installed.
fetch_postgresql() {
    source=${POSTGRESQL_TESTS:-$home/src/postgresql-$version}
    [ ! -d "$source" ] || return 0
    say "PostgreSQL $version: its source package"
    local package
    package=$(dpkg-query --show --showformat '${Version}' "postgresql-$major")
    fetch_debian "postgresql-$major=$package"
}

build_postgresql() {
    fetch_postgresql
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
    # The tester asks the server whether the process of BackendKeyData waits for a lock. In transaction mode that number is
    # metako's, so it never learns of it and cancels the step after these seconds: the test fails, and the next one runs.
    local mode=$1 database=isolation_regression output=$work/$1/isolation patience=300
    [ "$mode" != transaction ] || patience=2
    build_postgresql
    start "$mode"
    cp -r "$source/src/test/isolation" "$output"
    mkdir -p "$output/output_iso"
    give "$output"
    (cd "$output" && PGISOLATIONTIMEOUT=$patience PGPASSWORD=$password LD_LIBRARY_PATH="$source/src/interfaces/libpq" timeout 1500 \
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
