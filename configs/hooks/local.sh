#!/bin/sh
# metako's hooks for a PostgreSQL on this machine: stop and rejoin (docs/hooks.md).
#
#   hooks:
#     stop:   { command: [/etc/metako/hooks/local.sh] }
#     rejoin: { command: [/etc/metako/hooks/local.sh] }
#
# Only where every node is on the machine that metako runs on: it acts on METAKO_PGDATA (`pgdata` of the node) right here.
# For other machines there is ssh.sh, which sends this file there.
#
# What can be set in the environment, or right here:
#   PG_BIN            folder of pg_ctl, pg_rewind, ... (else Debian's and Red Hat's by version, then PATH)
#   PG_STOP, PG_START commands for sh instead of pg_ctl, such as `sudo systemctl start postgresql@15-main`; they have to
#                     wait until it is done
#   PG_PORT           the port of PostgreSQL on its own host, where the node has another in metako's configuration
#   PG_LOG            where a server that pg_ctl starts writes (PGDATA/metako-start.log)
#   PG_KEEP           more files of the data directory that are this node's own, names with spaces between
#   PG_BASE_BACKUP    `no`: never copy the primary, leave that to a person
#   PG_STOP_TIMEOUT   seconds for a stop (50); PG_START_TIMEOUT seconds until a start counts as going on (60)
#
# What an operator should know:
# - It runs as the owner of the data directory; as root it becomes that user.
# - The data directory, PGDATA, needs a parent folder that its owner may write to: beside PGDATA lie, while a rejoin runs,
#   PGDATA.metako-saved (this node's own configuration files; kept with the epoch behind that where they may be needed) and PGDATA.metako-new (a base backup under way).
# - pg_rewind throws away what this node alone has written. Where it cannot do its work, a base backup is made, and the former
#   data directory is kept as PGDATA.before-EPOCH: it is yours to remove. That of an earlier epoch is PGDATA.metako-outdated-EPOCH
#   from then on, and goes when the server has started. The disk has to hold all three for so long.
# - Tablespaces, a pg_wal that is a link and a data directory that is a mount point are never replaced by a base backup.
# - The primary has to let METAKO_PRIMARY_CONNINFO log in to the database `postgres`, as a superuser or with the grants
#   that the manual of pg_rewind lists.
#
# Status: 0 done, 75 try again later (nothing was harmed), else failed.

set -eu

TRY_AGAIN=75

say() {
    # Whoever listens may have gone: that is no reason to stop half way.
    printf '%s\n' "$*" >&2 || :
}

fail() {
    say "$*"
    exit 1
}

later() {
    say "$*"
    exit "$TRY_AGAIN"
}

# === Where and who ===

# Finishes the swap of data directories that an earlier run was cut off in.
finish_swap() {
    if [ ! -e "$PGDATA" ] && [ -e "$PGDATA.metako-new/standby.signal" ]; then
        mv -T -- "$PGDATA.metako-new" "$PGDATA"
    fi
}

find_data() {
    PGDATA=${METAKO_PGDATA:-}
    [ -n "$PGDATA" ] || fail "the data directory of ${METAKO_NODE:-the node} is not known: set \`pgdata\` of the node in metako's configuration"
    # What lies beside it lies beside the folder itself, not beside a link to it.
    PGDATA=$(readlink -m -- "$PGDATA") || fail "readlink -m fails, which comes with coreutils"
    finish_swap
    [ -d "$PGDATA" ] || fail "$PGDATA is no folder"
    # Whatever waits in it would count as one of the server's processes.
    cd /
}

become_owner() {
    owner=$(stat -c %u -- "$PGDATA")
    [ "$(id -u)" -ne "$owner" ] || return 0
    name=$(stat -c %U -- "$PGDATA")
    [ "$(id -u)" -eq 0 ] || fail "$PGDATA belongs to $name: run this as that user, or as root"
    [ "$owner" -ne 0 ] || fail "$PGDATA belongs to root, as whom PostgreSQL does not run"
    [ -f "$0" ] || fail "$PGDATA belongs to $name: log in as that user"
    HOME=$(getent passwd "$owner" | cut -d : -f 6) || HOME=/
    export HOME
    if command -v setpriv >/dev/null; then
        exec setpriv --reuid "$owner" --regid "$(stat -c %g -- "$PGDATA")" --init-groups sh "$0" "$@"
    elif command -v runuser >/dev/null; then
        exec runuser -u "$name" -- sh "$0" "$@"
    fi
    # shellcheck disable=SC2016 # for the shell that su starts
    exec su -m -s /bin/sh "$name" -c 'exec sh "$0" "$@"' -- "$0" "$@"
}

find_programs() {
    [ -r "$PGDATA/PG_VERSION" ] || fail "$PGDATA is no data directory of PostgreSQL: it holds no PG_VERSION"
    version=$(cat -- "$PGDATA/PG_VERSION")
    for folder in "${PG_BIN:-}" "/usr/lib/postgresql/$version/bin" "/usr/pgsql-$version/bin"; do
        if [ -n "$folder" ] && [ -x "$folder/pg_ctl" ]; then
            PATH=$folder:$PATH
            export PATH
            break
        fi
    done
    command -v pg_ctl >/dev/null || fail "pg_ctl is not found: set PG_BIN to its folder"
    LC_ALL=C
    export LC_ALL
}

# One at a time: metako may ask again while an earlier run still goes on here. A server that is started must not inherit
# the lock, and programs that work on its data do.
take_turn() {
    command -v flock >/dev/null || return 0
    exec 9<"$PGDATA"
    flock -n 9 || later "another hook works on $PGDATA"
}

# Without the secret that this was told: what is started would show it to whoever may see its environment.
without_secret() {
    (
        unset METAKO_PRIMARY_CONNINFO
        exec "$@"
    ) 9<&-
}

# How the server was started last: options of its command line, but for the folder.
started_with() {
    [ -r "$PGDATA/postmaster.opts" ] || return 0
    sed -n -e 's/^[^"]*//' -e 's/"-D" "[^"]*"//g' -e p "$PGDATA/postmaster.opts"
}

# === Stopping ===

# A killed postmaster that its parent has not reaped yet: to pg_ctl and to PostgreSQL it looks alive,
# and its lock files are in the way.
is_zombie() {
    postmaster=$(sed -n 1p "$PGDATA/postmaster.pid" 2>/dev/null) || return 1
    case $(sed 's/.*) //' "/proc/$postmaster/stat" 2>/dev/null) in
        Z* | X*) return 0 ;;
    esac
    return 1
}

is_running() {
    pg_ctl -D "$PGDATA" status >/dev/null 2>&1 && ! is_zombie
}

# Processes that outlive a killed postmaster can still commit for seconds.
leftovers() {
    own=$(stat -L -c %d:%i -- "$PGDATA")
    stat -L -c '%d:%i %n' /proc/[0-9]*/cwd 2>/dev/null | while read -r place process; do
        [ "$place" = "$own" ] || continue
        process=${process%/cwd}
        case $(tr '\000' ' ' 2>/dev/null <"$process/cmdline") in
            postgres:* | */postgres\ *) printf '%s\n' "${process#/proc/}" ;;
        esac
    done
}

# What runs in PGDATA has to be the node: a wrong `pgdata` must stop nobody else.
check_port() {
    port=$(sed -n 4p "$PGDATA/postmaster.pid" 2>/dev/null) || port=
    [ -n "$port" ] || later "$PGDATA/postmaster.pid does not tell a port"
    expected=${PG_PORT:-${METAKO_PORT:-$port}}
    [ "$port" = "$expected" ] || fail "what runs in $PGDATA has port $port, and ${METAKO_NODE:-the node} has $expected: is \`pgdata\` right?" \
        "Where the port that metako knows is not PostgreSQL's own, set PG_PORT"
}

stop() {
    if is_running; then
        check_port
        if [ -n "${PG_STOP:-}" ]; then
            without_secret sh -c "$PG_STOP" || fail "PG_STOP failed"
        else
            pg_ctl -D "$PGDATA" -m fast -w -t "${PG_STOP_TIMEOUT:-50}" stop || fail "PostgreSQL in $PGDATA did not stop"
        fi
        ! is_running || fail "PostgreSQL in $PGDATA still runs"
    fi
    left=$(leftovers)
    tries=0
    while [ -n "$left" ]; do
        # shellcheck disable=SC2086 # several process ids
        [ "$tries" -lt 50 ] || later "processes of a killed PostgreSQL are left in $PGDATA:" $left
        # shellcheck disable=SC2086 # several process ids
        [ "$tries" -gt 0 ] || kill -QUIT $left 2>/dev/null || :
        sleep 0.2
        tries=$((tries + 1))
        left=$(leftovers)
    done
    tries=0
    while is_zombie; do
        [ "$tries" -lt 100 ] || later "the killed postmaster $postmaster is still in the process table: its parent has not reaped it"
        sleep 0.2
        tries=$((tries + 1))
    done
}

# === What is known of both sides ===

# A line of pg_controldata.
control() {
    pg_controldata -D "$PGDATA" | sed -n "s/^$1: *//p"
}

# The primary for a connection by the name $1. By the name that the conninfo holds a connection could count as the node
# itself, and commits be acknowledged that no standby has.
primary_for() {
    printf '%s application_name=%s' "$METAKO_PRIMARY_CONNINFO" "$1"
}

ask_primary() {
    psql -X -A -t -q -w -d "$(primary_for metako_hook) dbname=postgres" -c "$1"
}

# The upstream has to be a primary of the same cluster, and its control file has to tell its timeline: until its first
# checkpoint after a promotion, pg_rewind would find nothing to do.
look_at_primary() {
    [ -n "${METAKO_PRIMARY_CONNINFO:-}" ] || fail "METAKO_PRIMARY_CONNINFO is empty"
    command -v psql >/dev/null || fail "psql is not found: install PostgreSQL's client programs beside pg_ctl"
    question="SELECT pg_is_in_recovery(), timeline_id, system_identifier FROM pg_control_checkpoint(), pg_control_system()"
    tries=0
    while :; do
        answer=$(ask_primary "$question") || later "the primary cannot be asked"
        IFS='|' read -r recovering primary_timeline primary_system <<EOF
$answer
EOF
        [ "$recovering" = f ] || later "${METAKO_UPSTREAM_HOST:-the upstream} is a standby"
        [ "$primary_timeline" -lt "${METAKO_TIMELINE:-0}" ] || break
        [ "$tries" -lt 15 ] || later "the primary has made no checkpoint on timeline $METAKO_TIMELINE yet"
        [ "$tries" -gt 0 ] || ask_primary CHECKPOINT || say "its first checkpoint on timeline $METAKO_TIMELINE is waited for"
        sleep 1
        tries=$((tries + 1))
    done
    own_system=$(control "Database system identifier")
    [ "$own_system" = "$primary_system" ] || fail "$PGDATA is not of the primary's cluster: its system identifier is $own_system, the primary's $primary_system"
}

# The newest timeline that PGDATA knows of, beyond that of its last checkpoint: a node that was promoted tells its new
# one there only some time later.
newest_timeline() {
    newest=$timeline
    for file in "$PGDATA"/pg_wal/*.history; do
        number=${file##*/}
        number=${number%.history}
        case $number in
            *[!0-9A-F]*) continue ;;
        esac
        [ "$((0x$number))" -le "$newest" ] || newest=$((0x$number))
    done
}

look_at_own() {
    state=$(control "Database cluster state")
    timeline=$(control "Latest checkpoint's TimeLineID")
    recovered=$(control "Min recovery ending loc's timeline")
    case $timeline:$recovered in
        :* | *: | *[!0-9:]*) later "pg_controldata does not tell the timeline of $PGDATA" ;;
    esac
    [ "$recovered" -le "$timeline" ] || timeline=$recovered
    newest_timeline
    [ "$newest" -le "$primary_timeline" ] || fail "$PGDATA is on timeline $newest, which is newer than $primary_timeline, the primary's:" \
        "somebody promoted it. Which of the two is right is for a person to say; nothing was thrown away"
    case $state in
        "shut down in recovery" | "in archive recovery") was_standby=1 ;;
        *) was_standby= ;;
    esac
    # A copy of the primary, or a rewound data directory, that recovery has not begun to read: it would have taken the
    # label away. Its control file is the primary's, and says nothing of the node.
    unstarted=
    [ ! -f "$PGDATA/backup_label" ] || [ ! -f "$PGDATA/standby.signal" ] || unstarted=1
}

# That what is to be stopped is not the primary itself. Whoever may rewind may read files there.
check_not_primary() {
    question="SELECT encode(sha256(pg_read_binary_file('postmaster.pid')), 'hex')"
    if theirs=$(ask_primary "$question" 2>/dev/null); then
        own=$(sha256sum <"$PGDATA/postmaster.pid")
        [ "$theirs" != "${own%% *}" ] || fail "what runs in $PGDATA is the primary itself: is \`pgdata\` right?"
        return 0
    fi
    theirs=$(ask_primary "SELECT floor(extract(epoch FROM pg_postmaster_start_time()))") || later "the primary cannot be asked"
    # The server takes the one time somewhat later than the other.
    late=$((${theirs%%.*} - $(sed -n 3p "$PGDATA/postmaster.pid")))
    if [ "$late" -ge 0 ] && [ "$late" -le 2 ]; then
        fail "what runs in $PGDATA was started when the primary was, and may be the primary itself: is \`pgdata\` right?" \
            "With the grants that docs/hooks.md lists it can be told for sure"
    fi
}

# === This node's own configuration files ===

own_files() {
    echo postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf postmaster.opts server.crt server.key root.crt "${PG_KEEP:-}"
}

# Those of a run that was cut off may be the only ones, even where somebody has put up with others and started the server.
# The last five are kept.
keep_saved() {
    kept=$saved-${METAKO_EPOCH:-0}
    [ ! -e "$kept" ] || kept=$kept.$(date +%s)
    mv -T -- "$saved" "$kept"
    say "$PGDATA was started since an earlier rejoin was cut off: it stays with the configuration files that it has now," \
        "and those that had been set aside are kept as $kept"
    # shellcheck disable=SC2012 # the newest first, and their names are our own
    ls -td -- "$saved"-* | sed 1,5d | while IFS= read -r older; do
        rm -rf -- "$older"
    done
}

# pg_rewind and pg_basebackup bring the primary's. Those of a run that was cut off are the true ones, unless somebody
# has started the server since.
save_own_files() {
    saved=$PGDATA.metako-saved
    if [ -d "$saved" ]; then
        [ -n "$ran" ] || [ -n "$(find "$PGDATA/postmaster.opts" -newer "$saved" 2>/dev/null)" ] || return 0
        keep_saved
    fi
    rm -rf -- "$saved.part"
    mkdir -m 700 -- "$saved.part" || fail "the folder that holds $PGDATA is not writable: its owner has to be able to make folders beside it"
    for file in $(own_files); do
        [ ! -f "$PGDATA/$file" ] || cp -p -- "$PGDATA/$file" "$saved.part/"
    done
    mv -- "$saved.part" "$saved"
}

put_back_own_files() {
    for file in $(own_files); do
        [ ! -f "$saved/$file" ] || cp -p -- "$saved/$file" "$1/"
    done
}

# The value of a setting as it stands between quotes.
quoted() {
    printf '%s' "$1" | sed -e "s/[\\\\']/&&/g"
}

# Makes the folder $1 that of a standby of the primary.
follow() {
    case $METAKO_PRIMARY_CONNINFO${METAKO_SLOT:-} in
        *"
"*) fail "METAKO_PRIMARY_CONNINFO or METAKO_SLOT holds a line break" ;;
    esac
    settings=$1/postgresql.auto.conf
    (
        umask 077
        {
            [ ! -f "$settings" ] || grep -viE '^[[:space:]]*(primary_conninfo|primary_slot_name)([[:space:]]|=)' "$settings" || :
            # Not by echo, which takes backslashes for more than they are.
            printf "primary_conninfo = '%s'\n" "$(quoted "$METAKO_PRIMARY_CONNINFO")"
            [ -z "${METAKO_SLOT:-}" ] || printf "primary_slot_name = '%s'\n" "$(quoted "$METAKO_SLOT")"
        } >"$settings.metako"
        : >"$1/standby.signal"
    )
    sync -- "$settings.metako" "$1/standby.signal" || sync
    mv -- "$settings.metako" "$settings"
    rm -f -- "$1/recovery.signal"
}

# === Rewinding ===

# Brings a crashed data directory to a clean end: pg_rewind wants that, and does it only where the configuration lies in
# the data directory. WAL is kept for pg_rewind by having it wait for an archive.
recover() {
    case $state in
        "shut down" | "shut down in recovery") return 0 ;;
    esac
    recovered=1
    say "$PGDATA was not shut down cleanly: it is recovered first"
    # A single-user server does not start as a standby. The trap puts it back if this is cut off.
    [ ! -e "$PGDATA/standby.signal" ] || signal_removed=1
    rm -f -- "$PGDATA/standby.signal"
    status=0
    eval "postgres --single -D \"\$PGDATA\" $(started_with) -c archive_mode=on -c archive_command=false template1" >/dev/null || status=$?
    put_back_signal
    [ "$status" -eq 0 ] || say "the recovery failed"
    return "$status"
}

put_back_signal() {
    [ -z "$signal_removed" ] || : >"$PGDATA/standby.signal"
    signal_removed=
}

# A standby that has a part of a record which begins at the fork and reaches into a later file of WAL asks for that file
# only, and ends when it gets it. Where it finds no record at the fork it asks for the file of the fork, on the new
# timeline. What both histories have stays.
cut_at_fork() {
    fork=$(printf '%s\n' "$said" | sed -n 's/.* diverged at WAL location \([0-9A-Fa-f]*\/[0-9A-Fa-f]*\) on timeline .*/\1/p')
    size=$(control "Bytes per WAL segment")
    case $fork:$size in
        :* | *: | *:*[!0-9]*) return 0 ;;
    esac
    at=$((0x${fork#*/}))
    file=$PGDATA/pg_wal/$(printf '%08X%08X%08X' "$timeline" "0x${fork%/*}" "$((at / size))")
    [ -f "$file" ] || return 0
    dd if=/dev/zero of="$file" bs=64k seek="$((at % size))" count="$((size - at % size))" \
        oflag=seek_bytes iflag=count_bytes conv=notrunc,fsync status=none || fail "$file cannot be written"
}

# Whether it can follow after this.
rewind() {
    if [ "$timeline" -eq "$primary_timeline" ]; then
        if [ -n "$unstarted" ]; then
            say "$PGDATA is ready to follow and was not started yet"
            return 0
        fi
        # Nothing tells two histories of one timeline apart, so pg_rewind would find nothing to do.
        [ -n "$was_standby" ] || say "$PGDATA was itself a primary of timeline $timeline: pg_rewind cannot help"
        [ -n "$was_standby" ]
        return
    fi
    recovered=
    recover || return 1
    set --
    if [ -f "$PGDATA/postgresql.conf" ] && [ -n "$(postgres -D "$PGDATA" -C restore_command 2>/dev/null)" ]; then
        set -- --restore-target-wal
    fi
    # With -R, because at no moment after the rewinding may it start as a primary.
    status=0
    said=$(pg_rewind --target-pgdata="$PGDATA" --source-server="$(primary_for metako_rewind) dbname=postgres" -R "$@" 2>&1) || status=$?
    say "$said"
    case $status:$said in
        0:*"no rewind required"*)
            # Where it was recovered it has records of its own at its end, whatever pg_rewind says.
            [ -z "$recovered" ] || return 1
            [ -z "$was_standby" ] || cut_at_fork
            return 0
            ;;
        0:*) return 0 ;;
    esac
    case $said in
        *postmaster.pid*) later "the process of a PostgreSQL that ended is still there" ;;
    esac
    return 1
}

# === A base backup in the place of the data directory ===

refuse_to_copy() {
    fail "pg_rewind did not help, and $1: a base backup is yours to make"
}

# Where the former data directory goes: the first of an epoch is never replaced, because it may be the only copy of rows.
choose_former() {
    former=$PGDATA.before-${METAKO_EPOCH:-0}
    for old in "$former" "$former.2" "$former.3"; do
        [ -e "$old" ] || return 0
    done
    refuse_to_copy "three former data directories of this epoch are kept already ($former, ...)"
}

# Copies of earlier epochs make room for that of this one, but only when the server has started.
outdate() {
    for copy in "$PGDATA".before-*; do
        case $copy in
            "$former" | "$former".[23]) continue ;;
        esac
        [ ! -d "$copy" ] || mv -T -- "$copy" "$PGDATA.metako-outdated-${copy##*.before-}" || say "$copy stays"
    done
}

remove_outdated() {
    for copy in "$PGDATA".metako-outdated-* "$PGDATA.metako-unused"; do
        [ ! -d "$copy" ] || rm -rf -- "$copy" || say "$copy cannot be removed"
    done
}

copy_primary() {
    [ "${PG_BASE_BACKUP:-yes}" != no ] || refuse_to_copy "PG_BASE_BACKUP is \`no\`"
    [ -z "$(ls -A -- "$PGDATA/pg_tblspc")" ] || refuse_to_copy "$PGDATA has tablespaces"
    [ ! -L "$PGDATA/pg_wal" ] || refuse_to_copy "pg_wal in $PGDATA is a link"
    [ "$(stat -c %d -- "$PGDATA")" = "$(stat -c %d -- "${PGDATA%/*}/")" ] || refuse_to_copy "$PGDATA is a mount point"
    choose_former
    new=$PGDATA.metako-new
    rm -rf -- "$new" "$PGDATA.metako-unused"
    set --
    [ -z "${METAKO_SLOT:-}" ] || set -- --slot "$METAKO_SLOT"
    say "the primary is copied"
    if ! pg_basebackup -D "$new" -d "$(primary_for metako_base_backup)" -X stream -c fast -w "$@"; then
        rm -rf -- "$new"
        fail "the base backup failed; $PGDATA is as it was left"
    fi
    put_back_own_files "$new"
    follow "$new"
    # What was never started holds nothing of its own, and took the place of what is kept already.
    [ -z "$unstarted" ] || old=$PGDATA.metako-unused
    [ -n "$unstarted" ] || outdate
    mv -T -- "$PGDATA" "$old"
    mv -T -- "$new" "$PGDATA"
    take_turn
    [ -n "$unstarted" ] || say "the former data directory is kept as $old"
}

# === Starting ===

start() {
    if [ -n "${PG_START:-}" ]; then
        without_secret sh -c "$PG_START" || fail "PG_START failed"
        ! is_running || remove_outdated
        return 0
    fi
    # Nor is anything else of a hook for the server and for what it runs, such as a restore_command.
    others=$(env | sed -n 's/^\(METAKO_[A-Za-z0-9_]*\)=.*/-u \1/p')
    # shellcheck disable=SC2086 # words
    if ! without_secret env $others pg_ctl -D "$PGDATA" -w -t "${PG_START_TIMEOUT:-60}" -l "${PG_LOG:-$PGDATA/metako-start.log}" -o "$(started_with)" start >/dev/null; then
        is_running || fail "PostgreSQL in $PGDATA does not start: $(tail -n 3 -- "${PG_LOG:-$PGDATA/metako-start.log}" 2>/dev/null)"
        say "PostgreSQL in $PGDATA has begun to recover, which takes longer than ${PG_START_TIMEOUT:-60} seconds"
        return 0
    fi
    remove_outdated
}

rejoin() {
    case ${PG_KEEP:-} in
        */*) fail "PG_KEEP takes names of files that lie in the data directory itself, and \`$PG_KEEP\` holds a slash" ;;
    esac
    look_at_primary
    ran=
    if is_running; then
        ran=1
        check_port
        check_not_primary
    fi
    look_at_own
    saved=
    signal_removed=
    stop
    save_own_files
    trap put_back_signal EXIT
    trap 'exit 143' TERM HUP INT
    look_at_own
    if rewind; then
        put_back_own_files "$PGDATA"
        follow "$PGDATA"
    else
        copy_primary
    fi
    rm -rf -- "$saved"
    start
}

main() {
    hook=${1:-}
    case $hook in
        stop | rejoin) ;;
        *) fail "usage: local.sh stop|rejoin NODE UPSTREAM, with METAKO_PGDATA and more in the environment (docs/hooks.md)" ;;
    esac
    trap '' PIPE
    find_data
    become_owner "$@"
    find_programs
    take_turn
    case $hook in
        stop) stop ;;
        rejoin) rejoin ;;
    esac
}

# In one line, so that all of it was read before anything is done: it may come over a connection that breaks.
main "$@" </dev/null; exit
