#!/bin/sh
# Installs the drivers that the tests use into target/drivers: Python's into a virtual environment, node's by npm, in the
# versions that metako-proxy/tests/drivers names. Does nothing where they are installed already.
set -eu
cd "$(dirname "$0")/.."

say() { echo "== $*" >&2; }
fail() { echo "install-drivers: $*" >&2; exit 1; }

scripts/install-missing.sh --drivers
wanted=metako-proxy/tests/drivers
home=target/drivers
mkdir -p "$home"

# A copy of what was asked for is written last: what is half installed is installed again.
if ! cmp --silent "$wanted/requirements.txt" "$home/requirements.txt"; then
    say "drivers of Python"
    rm -rf "$home/venv"
    python3 -m venv "$home/venv" || fail "python3 makes no virtual environment: apt-get install python3-venv"
    "$home/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted/requirements.txt" >&2 ||
        fail "pip could not install $wanted/requirements.txt"
    cp "$wanted/requirements.txt" "$home/requirements.txt"
fi
if ! cmp --silent "$wanted/package-lock.json" "$home/package-lock.json"; then
    say "drivers of node"
    rm -rf "$home/node"
    mkdir -p "$home/node"
    cp "$wanted/package.json" "$wanted/package-lock.json" "$home/node/"
    npm ci --prefix "$home/node" --ignore-scripts --no-audit --no-fund --silent >&2 ||
        fail "npm could not install $wanted/package-lock.json"
    cp "$wanted/package-lock.json" "$home/package-lock.json"
fi
