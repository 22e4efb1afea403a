#!/bin/bash
# `make driver-suites`: the tests that PostgreSQL and drivers bring, run by hand against PostgreSQL itself, and through metako
# in session and in transaction mode, each on a fresh server. Prints how many tests passed in each.
#
#   SUITES="regress isolation pipeline"          which; all by default, but for those of Python and node without
#                                                their folders: see scripts/driver-suites
#   MODES="direct session transaction"           against what; all by default
#   METAKO=target/release/metako                 which binary; built if it is missing
#   METAKO_PG_BIN=dir                            PostgreSQL's programs, psql and pg_isready among them; Debian's by default
#
# What is downloaded and built stays in target/suites. Results of every test: target/suites/results/SUITE-MODE, and for Python and
# node the names of what passed in SUITE-MODE.passed, to compare.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
home=$root/target/suites
modes=${MODES:-direct session transaction}
export DEBIAN_FRONTEND=noninteractive

say() { echo "== $*" >&2; }
fail() { echo "driver-suites: $*" >&2; exit 1; }

scripts/install-missing.sh
bin=${METAKO_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
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

# Each file of suites adds their names to `all`, and defines `run_SUITE MODE`, which sets `counts` to what stands in the
# table: PASSED/TOTAL.
all=()
for part in scripts/driver-suites/*.sh; do
    # shellcheck source=/dev/null
    . "$part"
done
suites=${SUITES:-${all[*]}}

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
