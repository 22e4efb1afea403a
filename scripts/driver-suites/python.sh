# The own suites of Python's drivers: psycopg, asyncpg, pg8000. Read by scripts/driver-suites.sh.
#
# A driver comes from PyPI. Its tests are in its repository only, of which a folder has to be given (of the same version, as
# its tags are named: 3.3.4, v0.31.0, 1.31.4):
#   PSYCOPG_TESTS=dir ASYNCPG_TESTS=dir PG8000_TESTS=dir
# A suite without its folder is left out. Not run: what is slow, what needs other servers than this one (asyncpg's clusters of
# its own, CockroachDB, pg8000's rules of pg_hba.conf), and what checks the style of the driver's source.

psycopg_version=3.3.4
asyncpg_version=0.31.0
pg8000_version=1.31.4

[ -z "${PSYCOPG_TESTS:-}" ] || all+=(psycopg)
[ -z "${ASYNCPG_TESTS:-}" ] || all+=(asyncpg)
[ -z "${PG8000_TESTS:-}" ] || all+=(pg8000)

# A virtual environment for a suite; its name is the suite's.
python_with() {
    local environment=$home/python-$suite wanted="$*"
    python=$environment/bin/python
    [ "$(cat "$environment/wanted" 2>/dev/null)" != "$wanted" ] || return 0
    say "$suite: installing $wanted"
    scripts/install-missing.sh --drivers
    rm -rf "$environment"
    python3 -m venv "$environment" || fail "python3 makes no virtual environment: apt-get install python3-venv"
    "$python" -m pip install --quiet --disable-pip-version-check "$@" >&2 || fail "pip could not install $wanted"
    echo "$wanted" >"$environment/wanted"
}

# Runs pytest in a copy of the tests, without the driver's source beside them, and counts.
#   pytest_in SOURCE FOLDER-OF-TESTS MODE ARGUMENT...
pytest_in() {
    local source=$1 folder=$2 mode=$3 copy=$work/$3/tests results=$home/results/$suite-$3 other
    shift 3
    [ -d "$source/$folder" ] || fail "$source has no $folder"
    mkdir -p "$copy"
    cp -r "$source/$folder" "$copy/"
    for other in pyproject.toml README.md; do [ ! -e "$source/$other" ] || cp "$source/$other" "$copy/"; done
    (cd "$copy" && timeout 3600 "$python" -m pytest --quiet --color=no --timeout=300 --tb=short \
        --junit-xml="$results.xml" "$@") >"$results" 2>&1 || true
    [ -s "$results.xml" ] || fail "$suite did not end: $results"
    count_junit "$results"
}

# PASSED/TOTAL without what was skipped, and the names of what passed.
count_junit() {
    counts=$(python3 - "$1" <<'PYTHON'
import sys
import xml.etree.ElementTree as tree

results = sys.argv[1]
outcomes = {}
for case in tree.parse(results + ".xml").iter("testcase"):
    name = f"{case.get('classname')}::{case.get('name')}"
    kinds = {child.tag for child in case}
    bad = bool(kinds & {"failure", "error"})
    outcome = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
    # What fails once, at its end too, has failed.
    if outcomes.get(name) != "failed":
        outcomes[name] = outcome
passed = sorted(name for name, outcome in outcomes.items() if outcome == "passed")
skipped = sum(outcome == "skipped" for outcome in outcomes.values())
with open(results + ".passed", "w") as file:
    file.writelines(ascii(name) + "\n" for name in passed)
print(f"{len(passed)}/{len(outcomes) - skipped}")
PYTHON
    )
}

run_psycopg() {
    local mode=$1 database=postgres rules='host all all all trust'
    python_with "psycopg[binary]==$psycopg_version" psycopg-pool==3.3.3 pytest pytest-timeout 'anyio>=4' 'pproxy>=2.7'
    start "$mode"
    PSYCOPG_IMPL=binary \
        PSYCOPG_TEST_DSN="host=127.0.0.1 port=$port user=postgres password=$password dbname=postgres" \
        pytest_in "${PSYCOPG_TESTS:?a folder of psycopg $psycopg_version}" tests "$mode" \
        --ignore=tests/crdb -m 'not slow and not timing and not flakey'
}

run_asyncpg() {
    local mode=$1 database=postgres rules='host all all all trust'
    python_with "asyncpg==$asyncpg_version" pytest pytest-timeout distro uvloop
    start "$mode"
    PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGPASSWORD=$password PGDATABASE=postgres \
        pytest_in "${ASYNCPG_TESTS:?a folder of asyncpg $asyncpg_version}" tests "$mode" --ignore=tests/test__sourcecode.py
}

run_pg8000() {
    local mode=$1 database=postgres rules='host all all all trust' setup='create extension hstore'
    python_with "pg8000==$pg8000_version" pytest pytest-timeout pytest-mock pytest-benchmark pytz
    start "$mode"
    PGHOST=127.0.0.1 PGPORT=$port PGPASSWORD=$password \
        pytest_in "${PG8000_TESTS:?a folder of pg8000 $pg8000_version}" test "$mode" \
        --ignore=test/dbapi/auth --ignore=test/legacy/auth --ignore=test/native/auth --ignore=test/test_readme.py \
        --benchmark-disable
}
