# Everything a person types. Each target says what it does and how long it took; none asks anything.
#   ARGS="..." is passed on by demo, cluster and bench.

PART := scripts/part
CARGO := cargo
RUN_BINARIES := -p ztunnel -p waypoint -p controller -p lab -p airglow
BENCH_BINARIES := --bin ztunnel --bin waypoint --bin controller --bin lab-run --bin bench

.PHONY: help setup demo cluster images render test lint bench profile soak fmt clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: ## install what is missing (apt-get, rustup); part of the other targets
	@$(PART) setup scripts/setup

demo: setup ## the whole system on this machine: two nodes, a shop, a mesh (root). ARGS="--waypoint", "--keep", "--json", "--kubernetes"
	$(if $(findstring --kubernetes,$(ARGS)),@$(PART) cluster scripts/cluster-binaries)
	@$(PART) build $(CARGO) build --locked --release $(RUN_BINARIES)
	@target/release/airglow demo $(ARGS)

cluster: setup ## a Kubernetes of two nodes on this machine, until Ctrl-C; prints the KUBECONFIG (root). ARGS="3" nodes
	@$(PART) programs scripts/cluster-binaries kubernetes etcd containerd runc cni coredns
	@$(PART) build $(CARGO) build --locked -p lab
	@target/debug/lab-run cluster $(ARGS)

# A merge is judged by the same cases each time; `make soak` looks for new ones.
test: export PROPTEST_RNG_SEED ?= 1
test: setup ## what has to pass before a change is merged (root)
	@$(PART) format $(CARGO) fmt --all --check
	@$(PART) lints $(CARGO) clippy --locked --quiet --workspace --all-targets -- -D warnings
	@$(PART) build $(CARGO) build --locked --workspace --all-targets
	@$(PART) cluster scripts/cluster-binaries
	@$(PART) tests $(CARGO) test --locked --workspace --no-fail-fast

images: setup ## container images FROM scratch as OCI archives in target/images, without a daemon. ARGS="DIRECTORY"
	@$(PART) images scripts/images $(ARGS)

render: setup ## the definitions of our kinds from the source, deploy/*.yaml from the Helm chart
	@$(CARGO) run --locked --quiet -p controller -- definitions > target/definitions.yaml
	@mv target/definitions.yaml deploy/chart/airglow/crds/definitions.yaml
	@mkdir -p target && for name in airglow airglow-uninstall; do \
	scripts/render $$name > target/$$name.yaml && mv target/$$name.yaml deploy/$$name.yaml || exit; done

lint: setup ## format, lints, architecture rules, and cargo-deny if it is installed
	@$(PART) format $(CARGO) fmt --all --check
	@$(PART) lints $(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(PART) rules $(CARGO) test --locked --quiet -p integration --test tidy
	@if command -v cargo-deny >/dev/null; then $(PART) cargo-deny cargo deny --locked check; \
	else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

bench: setup ## what Airglow costs, as ratios (root). ARGS="node --peer PATH", ARGS="waypoint --envoy PATH", ARGS="kubernetes"
	@$(PART) build scripts/dist $(BENCH_BINARIES)
	@target/$$(rustc -vV | sed -n 's/^host: //p')/dist/bench $(ARGS)

profile: setup ## what our programs do under the traffic of the benches, anew (root): images and benches are optimised by it
	@$(PART) profile scripts/profile

soak: setup ## many more cases of the property tests, the whole-system tests again and again (root). SOAK_RUNS=20
	@$(PART) build $(CARGO) build --locked --workspace --all-targets
	@$(PART) cluster scripts/cluster-binaries
	@scripts/soak

fmt: ## format
	@$(CARGO) fmt --all

clean: ## remove what was built
	@$(CARGO) clean
