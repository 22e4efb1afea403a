#!/bin/sh
# `make fuzz`: runs each fuzz target for FUZZ_SECONDS (60), or those named in FUZZ_TARGETS. What they find is in
# fuzz/artifacts; `cargo +nightly fuzz run TARGET FILE` in fuzz/ shows it again.
set -eu
cd "$(dirname "$0")/../fuzz"

say() { echo "== $*" >&2; }
fail() { echo "fuzz: $*" >&2; exit 1; }

cargo +nightly --version >/dev/null 2>&1 || fail "no nightly compiler: rustup toolchain install nightly"
command -v c++ >/dev/null || fail "no C++ compiler for libFuzzer: apt-get install g++"
cargo fuzz --version >/dev/null 2>&1 || {
    say "installing cargo-fuzz"
    cargo install cargo-fuzz --locked
}
for target in ${FUZZ_TARGETS:-frames startup session}; do
    say "$target, ${FUZZ_SECONDS:-60} s"
    cargo +nightly fuzz run --fuzz-dir . "$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -max_len=4096 -timeout=10
done
