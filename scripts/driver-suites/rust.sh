# The suites of Rust's drivers: tokio-postgres, and postgres, which is built on it. Read by scripts/driver-suites.sh.
#
#   TOKIO_POSTGRES_TESTS=dir, POSTGRES_TESTS=dir     their packages; the newest of crates.io by default

all+=(tokio-postgres postgres)
rust_home=$home/rust

# Where cargo keeps the package of a driver.
find_rust() {
    local manifest=$rust_home/wanted/Cargo.toml
    mkdir -p "$rust_home/wanted/src"
    : >"$rust_home/wanted/src/lib.rs"
    printf '%s\n' '[package]' 'name = "wanted"' 'version = "0.0.0"' 'edition = "2024"' '[dependencies]' \
        'tokio-postgres = "0.7"' 'postgres = "0.19"' '[workspace]' >"$manifest"
    cargo metadata --quiet --format-version 1 --manifest-path "$manifest" | python3 -c '
import json, os, sys
print(*(os.path.dirname(package["manifest_path"]) for package in json.load(sys.stdin)["packages"] if package["name"] == sys.argv[1]))
' "$1"
}

# The binaries of a driver's tests. Its tests know one port, which is written into their copy: all modes have it as theirs.
#   build_rust NAME SOURCE CARGO-OPTION...
build_rust() {
    local name=$1 from=$2
    shift 2
    [ ! -e "$rust_home/$name/built" ] || return 0
    say "$name: building its tests"
    [ -n "$from" ] || from=$(find_rust "$name")
    rm -rf "${rust_home:?}/$name"
    mkdir -p "$rust_home/$name"
    cp -r "$from/." "$rust_home/$name/"
    rm -f "$rust_home/$name/Cargo.lock"
    printf '\n[workspace]\n' >>"$rust_home/$name/Cargo.toml"
    [ -s "$rust_home/port" ] || free_port >"$rust_home/port"
    find "$rust_home/$name" -name '*.rs' -exec sed -i "s/\<5433\>/$(cat "$rust_home/port")/g" {} +
    CARGO_TARGET_DIR=$rust_home/target cargo test --no-run --quiet --message-format json "$@" \
        --manifest-path "$rust_home/$name/Cargo.toml" 2>"$home/build-$name.log" | python3 -c '
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    if said.get("executable") and said["profile"]["test"]:
        print(said["executable"])
' >"$rust_home/$name/binaries"
    [ -s "$rust_home/$name/binaries" ] || fail "nothing was built: $home/build-$name.log"
    touch "$rust_home/$name/built"
}

#   run_rust NAME MODE
run_rust() {
    local name=$1 mode=$2 database=postgres entrance out=$home/results/$1-$2 rules setup binary
    entrance=$(cat "$rust_home/port")
    rules='local all postgres trust
host all postgres all trust
host all pass_user all password
host all md5_user all md5
host all scram_user all scram-sha-256
hostssl all ssl_user all trust'
    setup="create role pass_user password 'password' login;
create role md5_user password 'password' login;
create role scram_user password 'password' login;
create role ssl_user login;
create extension hstore; create extension citext; create extension ltree;"
    start "$mode"
    : >"$out"
    while read -r binary; do
        (cd "$rust_home/$name" && timeout 300 "$binary" --test-threads 4) >>"$out" 2>&1 || true
    done <"$rust_home/$name/binaries"
    counts="$(grep -cE '^test .* \.\.\. ok$' "$out" || true)/$(grep -cE '^test .* \.\.\. (ok|FAILED)$' "$out" || true)"
}

run_tokio_postgres() {
    build_rust tokio-postgres "${TOKIO_POSTGRES_TESTS:-}" --test test --all-features
    run_rust tokio-postgres "$1"
}

run_postgres() {
    build_rust postgres "${POSTGRES_TESTS:-}" --lib
    run_rust postgres "$1"
}
