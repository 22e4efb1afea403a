# The commands of this repository. They print what they do.
#
#   make demo                             a throw-away cluster with metako in front of it, until Ctrl-C
#   make demo SCENARIO=kill-primary       traffic, SIGKILL to the primary, and what clients saw of it
#   make test                             every check and test
#   make test-versions                    the tests on real clusters on PostgreSQL 13 and 18, which npm brings: half an hour
#   make release                          metako as it is to be run, optimized for its work: a quarter of an hour
#   make fuzz                             the fuzz targets, FUZZ_SECONDS each (60); needs a nightly compiler
#   make soak                             a thousand reloads, many more cases of property tests, ten thousand clients
#   make driver-suites                    tests of PostgreSQL and of drivers, directly and through metako: see the script
#   make bench                            direct, PgBouncer and metako side by side: half an hour on a quiet machine, and
#                                         `make release` before it
#   make bench BENCH="--rows simple-16"   the same with options of the benchmark: --help lists them
#   make bench-micro                      the frame scan alone, in nanoseconds
#
# Variables of `make demo`: SCENARIO, SYNCHRONOUS=1 (commits wait for a replica), JSON=1 (the outcome as JSON on the last
# line), LISTEN=host:port (instead of 127.0.0.1:6432). Of `make bench`: BENCH, PGBOUNCER=program (1.24 or newer) instead
# of one that is built from Debian's source, and METAKO=program instead of that of `make release`.

CARGO ?= cargo

demo_options := $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SYNCHRONOUS),--synchronous) $(if $(JSON),--json) \
	$(if $(LISTEN),--listen $(LISTEN))

.PHONY: help demo test test-versions release fuzz soak driver-suites bench bench-micro

help:
	@sed -n 's/^#//p' Makefile

demo:
	@scripts/install-missing.sh
	@echo "== building metako in release mode" >&2
	@$(CARGO) build --release --locked --quiet --package metako-proxy --bin metako
	@$(CARGO) run --release --locked --quiet --package metako-proxy --bin metako -- demo $(demo_options)

test:
	@scripts/test.sh

test-versions:
	@scripts/test-versions.sh

release:
	@scripts/build-release.sh

fuzz:
	@scripts/fuzz.sh

soak:
	@scripts/soak.sh

driver-suites:
	@scripts/driver-suites.sh

bench:
	@scripts/bench.sh $(BENCH)

bench-micro:
	@$(CARGO) bench --locked --package metako-core --bench frames
