#!/bin/sh
# Builds PgBouncer from the Debian source package of a newer suite, for `make bench`, and prints the path of the binary.
# Debian 12's own 1.18 cannot do prepared statements in transaction mode. The mirror is the one that apt uses here; the
# source is checked by apt against Debian's keys. Kept in target/pgbouncer: the second call does nothing.
#
# Variables: PGBOUNCER_SUITE (trixie), the suite that the source is taken from.
set -eu
cd "$(dirname "$0")/.."

suite=${PGBOUNCER_SUITE:-trixie}
home=${CARGO_TARGET_DIR:-target}/pgbouncer
binary=$home/pgbouncer
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "== $*" >&2; }
fail() { echo "build-pgbouncer: $*" >&2; exit 1; }

if [ -x "$binary" ]; then
    echo "$binary"
    exit 0
fi

command -v apt-get >/dev/null || fail "there is no apt-get here: set PGBOUNCER to a PgBouncer of 1.24 or newer"
[ -r "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring, or set PGBOUNCER"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || fail "apt has no index of Debian itself: run apt-get update, or set PGBOUNCER"

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
fi
packages=
for package in dpkg-dev gcc libc6-dev libevent-dev libssl-dev make pkg-config; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || packages="$packages $package"
done
if [ -n "$packages" ]; then
    say "installing:$packages"
    # The packages are words.
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $packages >&2 ||
        fail "apt-get could not install$packages: install them yourself, or set PGBOUNCER"
fi

# Lists of its own, so that nothing of the machine's apt changes.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get --quiet -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User= "$@"
}
say "fetching the source of PgBouncer of $suite"
apt update >&2 || fail "apt-get could not read the list of $suite: set PGBOUNCER"
(cd "$work/source" && apt source --only-source pgbouncer >&2) || fail "apt-get could not fetch the source: set PGBOUNCER"
for folder in "$work"/source/pgbouncer-*/; do
    source=$folder
done
[ -x "$source/configure" ] || fail "the source package of $suite has no configure: set PGBOUNCER"

say "building it"
(
    cd "$source"
    ./configure --quiet --without-cares CFLAGS="-O2 -g" >"$work/log" 2>&1 && make -j "$(nproc)" pgbouncer >>"$work/log" 2>&1
) || { tail -n 30 "$work/log" >&2; fail "it does not build: set PGBOUNCER to a PgBouncer of 1.24 or newer"; }
mkdir -p "$home"
# Whole or not at all.
cp "$source/pgbouncer" "$binary.new"
mv "$binary.new" "$binary"
say "$("$binary" --version | head -n 1)"
echo "$binary"
