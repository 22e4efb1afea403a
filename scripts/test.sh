#!/bin/bash
# `make test`: formatting, lints, and every test. Ends with what failed, if anything did.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
cargo=${CARGO:-cargo}

scripts/install-missing.sh
scripts/install-drivers.sh
for component in fmt clippy; do
    "$cargo" "$component" --version >/dev/null 2>&1 || {
        echo "test: cargo $component is missing: rustup component add rustfmt clippy" >&2
        exit 1
    }
done

# It spares the disk thousands of fsyncs.
. scripts/in-memory.sh
clusters_in_memory 2048

say "formatting"
"$cargo" fmt --all --check
say "lints"
"$cargo" clippy --workspace --all-targets --locked --quiet -- -D warnings

say "tests: unit, property, integration on real PostgreSQL, examples, documentation"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS
outcome=0
"$cargo" test --workspace --locked --no-fail-fast 2>&1 | tee "$log" || outcome=$?

say "summary"
grep -E '^ +(Running|Doc-tests) |^test result:' "$log" || true
passed=$(awk '/^test result:/ { sum += $4 } END { print sum + 0 }' "$log")
failed=$(awk '/^test result:/ { sum += $6 } END { print sum + 0 }' "$log")
ignored=$(awk '/^test result:/ { sum += $8 } END { print sum + 0 }' "$log")
say "$passed passed, $failed failed, $ignored ignored, in $((SECONDS - started)) s"
grep -E '^test .* FAILED$|^error: test failed' "$log" || true
exit "$outcome"
