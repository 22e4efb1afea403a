#!/bin/sh
# `make release`: builds metako as it is to be run, and prints the path of the binary. The compiler optimizes it for what an
# instrumented build did in the rows of the benchmark (profile-guided optimization); docs/performance.md tells what that
# gains. Takes three builds, a quarter of an hour on two cores; does nothing where no source is newer than the binary.
#
# Variables: LLVM_PROFDATA, an llvm-profdata that reads the compiler's profiles.
set -eu
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
fail() { echo "build-release: $*" >&2; exit 1; }

cargo=${CARGO:-cargo}
home=$(mkdir -p "${CARGO_TARGET_DIR:-target}/tuned" && cd "${CARGO_TARGET_DIR:-target}/tuned" && pwd)
binary=$home/metako

sources="Cargo.toml Cargo.lock metako-core metako-strategies metako-proxy benches scripts/build-release.sh"
# The sources are words.
# shellcheck disable=SC2086
if [ -x "$binary" ] && [ -z "$(find $sources -type f -newer "$binary" -print -quit)" ]; then
    echo "$binary"
    exit 0
fi

scripts/install-missing.sh
# The instrumented metako may run as another user, who has to be able to write here.
profiles=$(mktemp -d)
trap 'rm -rf "$profiles"' EXIT
chmod 1777 "$profiles"

# Builds metako with a flag more, in a folder of its own.
build() {
    CARGO_TARGET_DIR=$home/$1 RUSTFLAGS="${RUSTFLAGS:-} $2" \
        "$cargo" build --release --locked --quiet --package metako-proxy --bin metako
}

# Merges the profiles by the first program that can read them: that of the toolchain, if it is installed, or another that
# is not much older than the compiler's LLVM.
merge() {
    for program in "${LLVM_PROFDATA:-}" "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata \
        $(ls /usr/bin/llvm-profdata-* 2>/dev/null | sort --reverse --version-sort) llvm-profdata; do
        if [ -n "$program" ] && command -v "$program" >/dev/null &&
            "$program" merge --output "$profiles/merged" "$profiles"/*.profraw 2>>"$profiles/errors"; then
            return 0
        fi
    done
    return 1
}

say "building an instrumented metako"
# Programs that run during the build leave their own profiles in this folder.
build instrumented "-Cprofile-generate=$home/build-profiles"
rm -rf "$home/build-profiles"
say "having it work"
. scripts/in-memory.sh
clusters_in_memory 4096
LLVM_PROFILE_FILE="$profiles/%p-%m.profraw" "$cargo" run --locked --quiet --package metako-bench -- \
    --train --metako "$home/instrumented/release/metako" --seconds 2 >&2
ls "$profiles"/*.profraw >/dev/null 2>&1 || fail "the instrumented metako has left no profile"
merge || { scripts/install-missing.sh --profdata && merge; } || {
    cat "$profiles/errors" >&2
    fail "no llvm-profdata reads this compiler's profiles: rustup component add llvm-tools, or set LLVM_PROFDATA; or build without a profile: cargo build --release --package metako-proxy"
}

say "building metako"
# Cargo looks at the flag and not into the file: another profile is another name.
profile=$home/$(sha256sum "$profiles/merged" | cut -c 1-16).profdata
rm -f "$home"/*.profdata
mv "$profiles/merged" "$profile"
build optimized "-Cprofile-use=$profile"
cp "$home/optimized/release/metako" "$binary.new"
mv "$binary.new" "$binary"
echo "$binary"
