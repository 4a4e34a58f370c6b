# recuse: everything there is to do with this tree. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

cache := $(shell tests/tools/cache-dir)
python := $(cache)/venv/bin/python
pytest := PYTHONPATH=agent PYTHONDONTWRITEBYTECODE=1 $(python) -m pytest
# Everything that goes into the packages; a change of any makes them anew.
sources := $(shell find agent/recuse pam_hook packaging docs/man contrib/completions \
    -type f -not -name '*.pyc' -not -name '*.o' -not -name '*.so' -not -name '*.so.*' \
    -not -path '*/build/*' 2>/dev/null | sort) README.md NEWS.md SECURITY.md
python_tests := tests bench

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  From a bare Debian 12: sudo make demo, sudo make test"

.PHONY: setup
setup: ## install what building and testing need, build the image of the test host
	@tests/tools/setup

# Whoever comes second waits, and then finds what the first has built.
.PHONY: deb
deb: ## leave the Debian packages in dist/
	@mkdir -p build
	@+flock build/deb.lock $(MAKE) --no-print-directory dist/.stamp

dist/.stamp: $(sources) Makefile
	@rm -rf build/deb dist
	@mkdir -p build/deb/recuse dist
	@echo "==> building the packages (log: build/deb.log)"
	@tar -c --exclude='*.pyc' --exclude=__pycache__ --exclude='*.o' --exclude='*.so' \
	    --exclude='*.so.*' --exclude=pam_hook/recuse-shell --exclude=build --exclude='.*_cache' \
	    agent pam_hook packaging docs contrib README.md NEWS.md SECURITY.md | \
	    tar -x -C build/deb/recuse
	@cp -r packaging/debian build/deb/recuse/debian
	@cd build/deb/recuse && { DEB_BUILD_OPTIONS=noautodbgsym dpkg-buildpackage -b -us -uc >../../deb.log 2>&1 || \
	    { tail -n 30 ../../deb.log >&2; echo "make deb: error: see build/deb.log" >&2; exit 1; }; }
	@mv build/deb/*.deb dist/
	@ls -1 dist
	@touch $@

.PHONY: lint
lint: ## ruff, mypy --strict, mandoc, gcc with its analyzer, clang, cppcheck, AppArmor profiles
	$(cache)/venv/bin/ruff check agent $(python_tests)
	$(python) -m mypy --strict --python-version 3.11 agent/recuse
	MYPYPATH=agent:tests/system $(python) -m mypy --strict --python-version 3.11 tests/system
	tests/tools/lint-man docs/man/*.[1-8]
	tests/tools/lint-c gcc
	tests/tools/lint-c clang
	apparmor_parser --skip-kernel-load --skip-cache --quiet packaging/apparmor/*

.PHONY: test-unit
test-unit: ## unit tests of the Python parts, no privilege needed
	$(pytest) tests/unit

.PHONY: test-c
test-c: ## tests of the C parts (as root)
	$(MAKE) -C pam_hook
	$(pytest) tests/c

.PHONY: test-system
test-system: deb ## tests on a booted host with the packages installed (as root)
	$(pytest) tests/system

.PHONY: fuzz
fuzz: ## fuzz the parsers, each for FUZZ_SECONDS (60)
	$(MAKE) -C pam_hook fuzz
	@mkdir -p build/fuzz
	@for target in $$($(python) tests/fuzz/fuzz_python.py --list); do \
	    echo "==> $$target"; \
	    $(python) tests/fuzz/fuzz_python.py --seeds $$target build/fuzz/$$target; \
	    $(python) tests/fuzz/fuzz_python.py $$target -max_len=70000 \
	        -max_total_time=$${FUZZ_SECONDS:-60} -artifact_prefix=build/fuzz/ build/fuzz/$$target; \
	done

.PHONY: faults
faults: deb ## kill parts of recuse FAULT_ROUNDS (1000) times, lose power FAULT_CUTS (100) (as root)
	PYTHONDONTWRITEBYTECODE=1 $(python) tests/tools/faults --rounds $${FAULT_ROUNDS:-1000} \
	    --cuts $${FAULT_CUTS:-100}

.PHONY: bench
bench: setup deb ## measure against the peers, write docs/benchmarks.md (as root, half an hour)
	$(python) bench/run.py --write docs/benchmarks.md

.PHONY: demo
demo: ## three logins into a throw-away host: recorded, exempt, refused (as root)
	@tests/tools/setup --demo
	@$(MAKE) --no-print-directory --silent deb
	@PYTHONPATH=tests/system PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/tools/demo.py

.PHONY: test
test: setup lint deb ## everything: lint, unit, C, system (as root)
	$(MAKE) -C pam_hook
	$(pytest) tests

.PHONY: install
install: ## install the host's files under DESTDIR, as the package does
	$(MAKE) -C pam_hook install DESTDIR=$(DESTDIR)

.PHONY: clean
clean: ## remove what was built in the tree
	-$(MAKE) -C pam_hook clean
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find agent tests bench -name __pycache__ -type d -exec rm -rf {} +
