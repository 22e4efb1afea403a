#!/bin/sh
# Builds PgBouncer from the Debian source package of a newer suite, for `make bench`, and prints the path of the binary.
# Debian 12's own 1.18 cannot do prepared statements in transaction mode: it is taken only where the newer one cannot be
# built, and the benchmark then says which rows do not compare. The mirror is the one that apt uses here; apt checks the
# source against Debian's keys. Kept in target/pgbouncer: the second call does nothing.
#
# Variables: PGBOUNCER_SUITE (trixie), the suite that the source is taken from.
set -eu
cd "$(dirname "$0")/.."

suite=${PGBOUNCER_SUITE:-trixie}
home=${CARGO_TARGET_DIR:-target}/pgbouncer
binary=$home/pgbouncer
own=$home/debian/usr/sbin/pgbouncer
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "== $*" >&2; }
give_up() { echo "build-pgbouncer: $*: set PGBOUNCER to a PgBouncer of 1.24 or newer" >&2; exit 1; }

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
fi
# The packages are words.
# shellcheck disable=SC2086
install() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $packages >&2; }

# The package of this suite, unpacked and not installed: the installation would start a server.
fail() {
    say "no newer PgBouncer: $*"
    mkdir -p "$home/debian"
    if [ ! -x "$own" ]; then
        say "fetching this suite's own"
        (cd "$work" && apt-get --quiet download pgbouncer >&2) || give_up "apt-get could not fetch this suite's own either"
        dpkg-deb --extract "$work"/pgbouncer_*.deb "$home/debian"
    fi
    packages="libc-ares2 libevent-2.1-7"
    "$own" --version >/dev/null 2>&1 || install || give_up "apt-get could not install $packages"
    "$own" --version >&2 || give_up "this suite's own does not run here"
    echo "$own"
    exit 0
}

if [ -x "$binary" ]; then
    echo "$binary"
    exit 0
fi

command -v apt-get >/dev/null || give_up "there is no apt-get here"
[ -r "$keyring" ] || fail "$keyring is missing (package debian-archive-keyring)"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || fail "apt has no index of Debian itself (apt-get update)"

packages=
for package in dpkg-dev gcc libc6-dev libevent-dev libssl-dev make pkg-config; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || packages="$packages $package"
done
if [ -n "$packages" ]; then
    say "installing:$packages"
    install || { say "trying again after apt-get update" && $as_root apt-get update --quiet >&2 && install; } ||
        fail "apt-get could not install$packages"
fi

# Lists of its own, so that nothing of the machine's apt changes.
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get --quiet -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User= "$@"
}
say "fetching the source of PgBouncer of $suite"
apt update >&2 || fail "apt-get could not read the list of $suite"
(cd "$work/source" && apt source --only-source pgbouncer >&2) || fail "apt-get could not fetch the source"
for folder in "$work"/source/pgbouncer-*/; do
    source=$folder
done
[ -x "$source/configure" ] || fail "the source package of $suite has no configure"

say "building it"
(
    cd "$source"
    ./configure --quiet --without-cares CFLAGS="-O2 -g" >"$work/log" 2>&1 && make -j "$(nproc)" pgbouncer >>"$work/log" 2>&1
) || { tail -n 30 "$work/log" >&2; fail "it does not build"; }
mkdir -p "$home"
# Whole or not at all.
cp "$source/pgbouncer" "$binary.new"
mv "$binary.new" "$binary"
say "built $("$binary" --version | head -n 1)"
echo "$binary"
