# make demo   the bridge on two simulated eye trackers; DEMO_ARGS="--duration 20 --report report.json"
# make test   everything that CI runs: linters, types, import rules, tests
# make clock  the clock's benchmark on simulated links; make live, make hour: on real sockets, and an hour of the daemon
# make soak   the daemon for half an hour among failing devices and readers; SOAK_MINUTES=30 SOAK_ARGS="--seed 1"
# make startup  times of --help and of the start, and memory
# Both install what they need, into .venv (and .venv-ndsi for the conformance peer). As root on Debian they also
# install the Debian packages that are missing; otherwise they say which.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
PYTEST_ARGS ?=
SOAK_MINUTES ?= 30

.PHONY: demo test check lock ndsi-env benchmark clock live hour soak startup pictures clean

demo: .venv/.ros-installed
	@.venv/bin/pupil-bridge demo $(DEMO_ARGS)

test: check .venv-ndsi/.installed
	.venv/bin/python -m pytest $(PYTEST_ARGS)

check: .venv/.test-installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

benchmark: .venv/.test-installed
	.venv/bin/python -m benchmarks.accuracy
	.venv/bin/python -m benchmarks.gaze_path

clock: .venv/.test-installed
	.venv/bin/python -m benchmarks.clock $(CLOCK_ARGS)
	.venv/bin/python -m benchmarks.clock.causal
	.venv/bin/python -m benchmarks.clock.slewed
	.venv/bin/python -m benchmarks.clock.slots

live: .venv/.test-installed
	.venv/bin/python -m benchmarks.clock.live
	.venv/bin/python -m benchmarks.clock.live --busy

hour: .venv/.test-installed
	.venv/bin/python -m benchmarks.clock.hour

soak: .venv/.test-installed
	.venv/bin/python -m benchmarks.soak --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

startup: .venv/.test-installed
	.venv/bin/python -m benchmarks.startup

pictures: .venv/.test-installed
	.venv/bin/python -m benchmarks.clock.pictures

ndsi-env: .venv-ndsi/.installed

.venv/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call debian,python3-venv)
	$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip

.venv/.ros-installed: .venv/bin/python setup.py requirements.lock
	@echo "installing pupil-bridge with ROS 2 into .venv: about 100 MB, half a minute or more ..."
	@$(PIP_INSTALL) --editable '.[ros]'
	@touch $@

.venv/.test-installed: .venv/bin/python setup.py requirements.lock
	@command -v ip >/dev/null || $(call debian,iproute2)
	@# Without root the tests of the service are skipped, and nothing is needed for them. systemd-python has no wheel.
	@# nftables is for the rules of docs/security.md, chromium for the page of status.
	@[ "$$(id -u)" != 0 ] || ( for program in systemctl gcc nft chromium; do command -v $$program || exit 1; done && \
	    pkg-config --exists libsystemd ) >/dev/null 2>&1 || \
	  $(call debian,systemd libpam-systemd dbus-user-session libsystemd-dev pkg-config gcc libc6-dev nftables chromium)
	@echo "installing pupil-bridge with ROS 2 and what its tests need into .venv: a minute or more ..."
	@$(PIP_INSTALL) --editable '.[ros,test,pictures]'
	@! pkg-config --exists libsystemd 2>/dev/null || $(PIP_INSTALL) systemd-python || \
	  echo "systemd-python cannot be built here (python3-dev?): its tests are skipped" >&2
	@touch $@

# The unmodified ndsi client lives with numpy < 2 and Python 3.11 alone, so it has an environment of its own.
.venv-ndsi/.installed: tests/system/ndsi_peer/requirements.lock | .venv/bin/python
	@echo "installing the unmodified ndsi client into .venv-ndsi ..."
	@$(PYTHON) -m venv .venv-ndsi
	@.venv-ndsi/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Needs uv: pip install uv
lock:
	uv pip compile --universal --python-version 3.11 --extra ros --extra test --extra pictures --extra systemd --no-header --upgrade setup.py -o requirements.lock

clean:
	rm -rf .venv .venv-ndsi build dist *.egg-info

define debian
{ if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null; \
  else echo "please install: $(1)" >&2; exit 1; fi; }
endef
