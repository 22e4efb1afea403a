# node-postgres' own suites: pg, pg-pool, pg-cursor and pg-query-stream. Read by scripts/driver-suites.sh.
#
# The packages come from npm. Their tests are in the repository only, of which a folder has to be given (tag pg@8.23.0):
#   NODE_POSTGRES_TESTS=dir
# Without it the suite is left out. Not run: what needs TLS, libpq's bindings or Cloudflare's workers.

node_packages=(pg@8.23.0 pg-cursor@2 pg-query-stream@4 async@2.6.4 bluebird@3.7.2 co@4.6.0 pg-copy-streams@0.3.0 mocha@11
    expect.js@0.3.1 lodash@4 ts-node@10 typescript@5 @types/node@20 @types/mocha @types/chai@4 @types/pg chai@4
    JSONStream@1.3.5 concat-stream@1.0.1 stream-spec@0.3.5)

[ -z "${NODE_POSTGRES_TESTS:-}" ] || all+=(node-postgres)

install_node_packages() {
    local wanted="${node_packages[*]}"
    [ "$(cat "$home/node/wanted" 2>/dev/null)" != "$wanted" ] || return 0
    say "node-postgres: installing $wanted"
    scripts/install-missing.sh --drivers
    rm -rf "$home/node"
    mkdir -p "$home/node"
    echo '{ "private": true }' >"$home/node/package.json"
    npm install --prefix "$home/node" --ignore-scripts --no-audit --no-fund --silent "${node_packages[@]}" >&2 ||
        fail "npm could not install $wanted"
    echo "$wanted" >"$home/node/wanted"
}

# A file of pg's tests is one test: it ends at its first failure. Of the others each test counts.
run_node_postgres() {
    local mode=$1 database=postgres rules='host all all all trust' copy=$work/$1/tests out=$home/results/node-postgres-$1
    local packages=${NODE_POSTGRES_TESTS:?a folder of node-postgres}/packages package file
    install_node_packages
    start "$mode"
    mkdir -p "$copy"
    for package in pg pg-pool pg-cursor pg-query-stream; do cp -r "$packages/$package" "$copy/"; done
    ln -s "$home/node/node_modules" "$copy/node_modules"
    # Five seconds are few where a machine is busy.
    sed -i 's/this\.timeout = 5000/this.timeout = 30000/' "$copy/pg/test/suite.js"
    (
        export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGPASSWORD=$password PGDATABASE=postgres PGTESTNOSSL=true
        export TEST_TIMEOUT=20000 TS_NODE_TRANSPILE_ONLY=1
        mocha=("$copy/node_modules/.bin/mocha" --exit --timeout 20000 --reporter tap)
        cd "$copy/pg"
        find test/integration -name '*-tests.js' ! -name ssl-tests.js ! -name tls-tests.js | sort | while read -r file; do
            if timeout 60 node "$file" >"$copy/said" 2>&1 </dev/null; then echo "ok $file"; else
                echo "not ok $file"
                sed 's/^/    /' "$copy/said"
                echo
            fi
        done
        cd ../pg-pool
        for file in test/*.js; do timeout 120 "${mocha[@]}" "$file" || true; done
        cd ../pg-cursor
        timeout 300 "${mocha[@]}" || true
        cd ../pg-query-stream
        timeout 300 "${mocha[@]}" --require ts-node/register 'test/**/*.ts' || true
    ) >"$out" 2>&1
    grep -E '^ok ' "$out" | grep -v '# SKIP' | sed -E 's/^ok ([0-9]+ )?//' | sort >"$out.passed" || true
    counts="$(wc -l <"$out.passed")/$(grep -E '^(not )?ok ' "$out" | grep -vc '# SKIP' || true)"
}
