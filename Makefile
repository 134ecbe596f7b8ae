# LockstepFS. `make demo` and `make test` work on a fresh clone: they install what is missing.

# An interpreter that was compiled with profile-guided optimisation makes everything about an eighth faster. Those of
# the distributions are; one that somebody has compiled (pyenv) says so. /usr/bin/python3 is taken instead of one that
# is not if it is recent enough and has what we need, or we can install that. `make PYTHON=...` takes any.
define CHOOSE_PYTHON
optimised='import sys, sysconfig; sys.exit("--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or ""))'; \
recent='import sys; sys.exit(sys.version_info < (3, 11))'; \
complete='import ensurepip, os, sys, sysconfig, venv; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; \
may_install() { command -v apt-get && { test "$$(id -u)" = 0 || sudo -n true; }; }; \
system=/usr/bin/python3; \
if python3 -c "$$recent" && python3 -c "$$optimised"; then echo python3; \
elif $$system -c "$$recent" && { $$system -c "$$complete" || may_install >/dev/null; }; then echo $$system; \
else echo python3; fi 2>/dev/null
endef
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell $(CHOOSE_PYTHON))
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SEEDS ?= 100
STEPS ?= 20000
CYCLES ?= 10000
ENTRIES ?= 50000
MUTANTS ?=
FAULTS ?= 200
SEED ?=
SOAK_HOURS ?= 8
FAULT_LOGS ?= fault-logs
FAULTS_DATA ?= 100
TEST_TIMEOUT_S ?= 1200

.DELETE_ON_ERROR:
.PHONY: help demo test check sim model faults faults-data bench soak system clean distclean

help:
	@echo "make demo    see a metadata replica die under a running copy"
	@echo "make test    all tests (at most $(TEST_TIMEOUT_S) s)"
	@echo "make check   lint and types"
	@echo "make sim     simulated clusters, SEEDS=$(SEEDS) schedules of faults; MUTANTS=1: hunt deliberate protocol bugs"
	@echo "make model   mounts against a local directory: STEPS=$(STEPS) random system calls; and large numbers of files"
	@echo "make faults  FAULTS=$(FAULTS) faults on real replicas under load, SEED=... to repeat a run; best as root"
	@echo "make soak    make faults, run after run, for SOAK_HOURS=$(SOAK_HOURS)"
	@echo "make faults-data  writers and readers that check every byte while storage targets die, FAULTS_DATA=$(FAULTS_DATA) times"
	@echo "make bench   mdtest on a local cluster; figures go to bench/results"
	@echo "make clean   remove caches; make distclean: the virtual environment as well"

demo: $(VENV)/installed
	$(BIN)/lockstep demo

test: $(VENV)/installed-dev
	timeout --kill-after=60 $(TEST_TIMEOUT_S) $(BIN)/python -m pytest

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

sim: $(VENV)/installed-dev
	$(BIN)/python -m tests.sim $(if $(MUTANTS),--mutants,--seeds $(SEEDS))

model: $(VENV)/installed-dev
	$(BIN)/python -m tests.model --steps $(STEPS)
	$(BIN)/python -m tests.model.unlinked --cycles $(CYCLES)
	$(BIN)/python -m tests.model.listing --entries $(ENTRIES)

# These end with "N passed, 0 failed". faults and soak keep the logs of a run that fails in FAULT_LOGS.
faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) --keep $(FAULT_LOGS)

faults-data: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.data --faults $(FAULTS_DATA)

bench: $(VENV)/installed
	$(BIN)/python -m bench.on_local_cluster

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults --hours $(SOAK_HOURS) --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) --keep $(FAULT_LOGS)

# System packages, only those that are missing: fusermount3 mounts; the compiler, pkg-config and the header files build
# pyfuse3; a distribution's python3 may come without venv and header files.
system:
	@set -eu; missing=""; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; set PYTHON=..." >&2; exit 1; }; \
	command -v fusermount3 >/dev/null || missing="$$missing fuse3"; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	pkg-config --exists fuse3 2>/dev/null || missing="$$missing libfuse3-dev"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| missing="$$missing python3-dev"; \
	if test -n "$$missing"; then \
		command -v apt-get >/dev/null || { echo "please install (names of Debian):$$missing" >&2; exit 1; }; \
		sudo=""; test "$$(id -u)" = 0 || sudo="sudo"; \
		echo "installing$$missing"; \
		$$sudo apt-get update -q; \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

$(VENV)/bin/python: | system
	$(PYTHON) -m venv $(VENV)

# With faster checksums where there is a compiled package of them for this machine, else with zlib's.
$(VENV)/installed: pyproject.toml | system $(VENV)/bin/python
	$(PIP) --only-binary isal --editable '.[fast]' || $(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
