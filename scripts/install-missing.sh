#!/bin/sh
# Installs what `make demo` and `make test` need and the machine has not: PostgreSQL's programs and a C compiler, as
# Debian packages; with --drivers also what the tests of drivers need, with --profdata an llvm-profdata. Says what it
# does; does nothing where nothing is missing. The Rust toolchain is yours to install.
set -eu

say() { echo "== $*" >&2; }
fail() { echo "install-missing: $*" >&2; exit 1; }

# The folders that metako's playground looks in, in the same order.
server_programs() {
    for folder in "${METAKO_PG_BIN:-}" /usr/lib/postgresql/*/bin "$(pg_config --bindir 2>/dev/null || true)"; do
        if [ -n "$folder" ] && [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ] && [ -x "$folder/pg_basebackup" ]; then
            return 0
        fi
    done
    command -v postgres >/dev/null && command -v initdb >/dev/null && command -v pg_basebackup >/dev/null
}

packages=
server_programs || packages="$packages postgresql-15"
command -v psql >/dev/null || packages="$packages postgresql-client-15"
command -v pgbench >/dev/null || [ -n "$(ls /usr/lib/postgresql/*/bin/pgbench 2>/dev/null)" ] ||
    packages="$packages postgresql-15"
command -v cc >/dev/null || packages="$packages gcc libc6-dev"
# PostgreSQL refuses root; killed servers leave a shared memory segment that only ipcrm removes.
command -v ipcrm >/dev/null || packages="$packages util-linux"

if [ "${1:-}" = --drivers ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3 python3-venv"
    command -v node >/dev/null || packages="$packages nodejs"
    command -v npm >/dev/null || packages="$packages npm"
fi

command -v "${CARGO:-cargo}" >/dev/null || fail "no cargo: install a Rust toolchain (https://rustup.rs), version 1.95 or newer"

if [ "${1:-}" = --profdata ]; then
    packages="$packages llvm-19"
fi

packages=$(echo "$packages" | xargs -n 1 | sort -u | xargs)
[ -n "$packages" ] || exit 0

command -v apt-get >/dev/null ||
    fail "missing: $packages, and there is no apt-get here: install PostgreSQL's server programs (13 or newer) and a C compiler yourself, or set METAKO_PG_BIN"
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "missing: $packages. Run as root: apt-get install $packages"
    as_root=sudo
fi

say "installing: $packages"
export DEBIAN_FRONTEND=noninteractive
# Debian would make and start a server of its own on port 5432: nobody asked for that.
settings=/etc/postgresql-common/createcluster.d
$as_root mkdir -p "$settings"
echo "create_main_cluster = false" | $as_root tee "$settings/metako-install.conf" >/dev/null
trap '$as_root rm -f "$settings/metako-install.conf"; $as_root rmdir --ignore-fail-on-non-empty "$settings"' EXIT

install() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $packages >&2; }
install || { say "trying again after apt-get update" && $as_root apt-get update --quiet >&2 && install; } ||
    fail "apt-get could not install $packages"
server_programs || fail "PostgreSQL's server programs are still not found after the installation"
