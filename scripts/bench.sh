#!/bin/sh
# `make bench`: builds what is compared and runs the benchmark with the options given here. docs/performance.md explains
# the table.
#
# Variables: PGBOUNCER, a PgBouncer of 1.24 or newer instead of one that is built here; METAKO, a metako instead of that of
# `make release`.
set -eu
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
cargo=${CARGO:-cargo}

scripts/install-missing.sh
PGBOUNCER=${PGBOUNCER:-$(scripts/build-pgbouncer.sh)}
export PGBOUNCER

. scripts/in-memory.sh
clusters_in_memory 4096

case " $* " in
    *" --list "*) ;;
    *) METAKO=${METAKO:-$(scripts/build-release.sh)} && export METAKO ;;
esac
say "building the benchmark"
"$cargo" run --release --locked --quiet --package metako-bench -- "$@"
