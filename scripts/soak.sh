#!/bin/sh
# `make soak`: what takes too long for every day. A thousand reloads under clients at work (METAKO_SOAK_RELOADS), the property
# tests of the parsers and state machines with SOAK_CASES cases each (20000), random sequences of messages against PostgreSQL
# (METAKO_CASES, 1000), and ten thousand idle clients.
set -eu
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
cargo=${CARGO:-cargo}

scripts/install-missing.sh
. scripts/in-memory.sh
clusters_in_memory 2048

say "${METAKO_SOAK_RELOADS:=1000} reloads"
export METAKO_SOAK_RELOADS
"$cargo" test --release --locked --quiet --package metako-proxy --test soak -- --nocapture
say "property tests, ${SOAK_CASES:=20000} cases each"
PROPTEST_CASES=$SOAK_CASES "$cargo" test --release --locked --quiet --package metako-core --lib
say "${METAKO_CASES:=1000} random sequences, answered by PostgreSQL and by metako"
export METAKO_CASES
"$cargo" test --release --locked --quiet --package metako-proxy --test conformance random_sequences
say "ten thousand idle clients"
scripts/bench.sh --rows idle --rounds 1
