.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Arguments for `test` (--test it, a name), `bench` and `dev`.
ARGS ?=

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18

.PHONY: demo
demo: ## the main job from end to end, on embedded servers, with a transcript
	@NATS_SERVER_BIN=$$(.ci/nats-server); export NATS_SERVER_BIN; \
	cargo build --locked; \
	cargo run --quiet --locked -- demo $(ARGS)

.PHONY: dev
dev: ## a worker with its own nats-server and SQLite, until Ctrl-C
	@NATS_SERVER_BIN=$$(.ci/nats-server); export NATS_SERVER_BIN; \
	cargo build --locked; \
	cargo run --quiet --locked -- dev $(ARGS)

.PHONY: test
test: ## all tests, on a nats-server and a PostgreSQL of their own
	@NATS_SERVER_BIN=$$(.ci/nats-server); export NATS_SERVER_BIN; \
	.ci/with-postgres .ci/test $(ARGS)

.PHONY: test-baseline
test-baseline: ## the integration tests on the oldest nats-server that is supported
	@NATS_SERVER_BIN=$$(.ci/nats-server --baseline); export NATS_SERVER_BIN; \
	.ci/with-postgres .ci/test --test it $(ARGS)

.PHONY: bench
bench: ## the figures of the README, in a release build (ARGS chooses among them)
	@NATS_SERVER_BIN=$$(.ci/nats-server); export NATS_SERVER_BIN; \
	cargo build --release --locked; \
	.ci/with-postgres --durable cargo bench --locked --bench pipeline -- $(ARGS)

.PHONY: lint
lint: ## everything that is checked before the tests
	@.ci/lint

.PHONY: build
build: ## the release binary
	@cargo build --release --locked

.PHONY: clean
clean: ## remove what was built and fetched
	@cargo clean
	@rm -rf .tools
