#!/bin/sh
# metako's hooks for a PostgreSQL on another machine: sends local.sh, which lies beside this file, over ssh (docs/hooks.md).
#
#   hooks:
#     stop:   { command: [/etc/metako/hooks/ssh.sh] }
#     rejoin: { command: [/etc/metako/hooks/ssh.sh] }
#
# What can be set in the environment, or right here:
#   METAKO_SSH_USER     who logs in there: the owner of the data directory (postgres)
#   METAKO_SSH_HOST     where (METAKO_HOST, `host` of the node)
#   METAKO_SSH_OPTIONS  more options of ssh, words with spaces between, such as `-i /etc/metako/id_ed25519`
# and all that local.sh takes, which is handed on.
#
# The key must need no passphrase and the host's key must be known: ssh asks nobody. If the connection breaks, what runs
# there goes on; a later call says 75 until that is done.

set -eu

# A value as sh reads it.
quoted() {
    printf "'"
    printf '%s' "$1" | sed -e "s/'/'\\\\''/g"
    printf "'"
}

# What is to be run there. It goes over the input of sh: a command line would show secrets to everybody on that machine.
# In braces, so that what was cut off on its way is wrong to sh and does not run, instead of ending well half way.
script() {
    echo '{'
    for name in METAKO_NODE METAKO_HOST METAKO_PORT METAKO_PGDATA METAKO_UPSTREAM_HOST METAKO_UPSTREAM_PORT METAKO_SLOT \
        METAKO_EPOCH METAKO_TIMELINE METAKO_PRIMARY_CONNINFO PG_BIN PG_STOP PG_START PG_PORT PG_LOG PG_KEEP PG_BASE_BACKUP \
        PG_STOP_TIMEOUT PG_START_TIMEOUT; do
        eval "value=\${$name:-}"
        # shellcheck disable=SC2154 # set by eval
        printf 'export %s=%s\n' "$name" "$(quoted "$value")"
    done
    printf 'set --'
    for argument in "$@"; do
        printf ' %s' "$(quoted "$argument")"
    done
    printf '\n'
    cat -- "$local_script"
    echo '}'
}

remote() {
    # shellcheck disable=SC2086,SC2029 # options are words
    ssh -T -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 \
        ${METAKO_SSH_OPTIONS:-} -- "${METAKO_SSH_USER:-postgres}@${METAKO_SSH_HOST:-$METAKO_HOST}" "$@"
}

local_script=$(dirname -- "$0")/local.sh
[ -r "$local_script" ] || { echo "$local_script cannot be read" >&2; exit 1; }
# Whether anything was done cannot be told from a connection that breaks later.
remote true </dev/null || { echo "no connection to ${METAKO_SSH_HOST:-$METAKO_HOST} by ssh" >&2; exit 75; }
script "$@" | remote sh -s
