# make demo   the bridge on two simulated eye trackers; DEMO_ARGS="--duration 20 --report report.json"
# make test   everything that CI runs: linters, types, import rules, tests
# make clock  the clock's benchmark on simulated links; make live, make hour: on real sockets, and an hour of the daemon
# make soak   the daemon for half an hour among failing devices and readers; SOAK_MINUTES=30 SOAK_ARGS="--seed 1"
# make core, make fleet  CPU with a busy Pupil Core beside the bare libraries, and with many Companion devices
# make startup  times of --help and of the start, and memory
# make messages   pupil_msgs, built and installed into .venv; `make demo` and `make test` do it by themselves
# Both install what they need, into .venv (and .venv-ndsi for the conformance peer, .venv-msgs to build messages with,
# .venv-colcon for colcon). As root on Debian they also install the Debian packages that are missing; otherwise they
# say which.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
PYTEST_ARGS ?=
# Processes that run tests side by side, most of which wait; each in a network namespace of its own, or one by one.
TEST_WORKERS ?= $(shell unshare -n true 2>/dev/null && expr $$(nproc) + 1 || echo 0)
SOAK_MINUTES ?= 30
MESSAGES_SOURCES := $(wildcard pupil_msgs/*.* pupil_msgs/*/*)
TEST_MESSAGES := tests/ros_packages/tf2_msgs tests/ros_packages/foxglove_msgs
# A wheel out of each of these folders into .venv. Versions are pinned, and pip would ask PyPI for pupil_msgs.
INSTALL_MESSAGES = .venv-msgs/bin/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
    --wheel-dir $(1) $(2) && \
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall $(1)/*.whl

# Two pips in one environment break it.
.NOTPARALLEL:

.PHONY: demo test check messages lock ndsi-env benchmark clock live hour soak core fleet startup pictures clean

demo: .venv/.ros-installed
	@$(MAKE) --silent messages || \
	  echo "pupil_msgs cannot be built here, for the reason above: the demo runs with ROS' own messages alone" >&2
	@.venv/bin/pupil-bridge demo $(DEMO_ARGS)

test: check .venv-ndsi/.installed .venv-colcon/.installed .venv/.messages-installed .venv/.test-messages-installed
	.venv/bin/python -m pytest -c tests/pytest.ini --rootdir=. $(or $(PYTEST_ARGS),-n $(TEST_WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder tests)

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

core: .venv/.test-installed .venv/.messages-installed
	.venv/bin/python -m benchmarks.core_path

fleet: .venv/.test-installed
	.venv/bin/python -m benchmarks.fleet

startup: .venv/.test-installed
	.venv/bin/python -m benchmarks.startup

pictures: .venv/.test-installed
	.venv/bin/python -m benchmarks.clock.pictures

ndsi-env: .venv-ndsi/.installed

messages: .venv/.ros-installed .venv/.messages-installed

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
	@$(PIP_INSTALL) --editable '.[ros,test,pictures,bag]'
	@! pkg-config --exists libsystemd 2>/dev/null || $(PIP_INSTALL) systemd-python || \
	  echo "systemd-python cannot be built here (python3-dev?): its tests are skipped" >&2
	@touch $@

# Messages are compiled; the wheels of ROS have the generators. .venv-msgs sees what is in .venv, and .venv-colcon what
# is in .venv-msgs, so that neither holds ROS a second time and .venv holds nothing that only a build needs.
.venv-msgs/.installed: pupil_msgs/build.lock | .venv/bin/python
	@command -v g++ >/dev/null && .venv/bin/python -c '$(HAS_PYTHON_H)' || $(call debian,g++ python3-dev)
	@echo "installing what builds ROS messages into .venv-msgs: ten seconds or more ..."
	@$(call overlay,.venv-msgs,.venv)
	@.venv-msgs/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.venv/.messages-installed: .venv-msgs/.installed $(MESSAGES_SOURCES)
	@echo "building the ROS messages of pupil_msgs: twenty seconds or more ..."
	@rm -rf .venv-msgs/dist
	@$(call INSTALL_MESSAGES,.venv-msgs/dist,./pupil_msgs)
	@touch $@

.venv/.test-messages-installed: .venv-msgs/.installed $(foreach folder,$(TEST_MESSAGES),$(wildcard $(folder)/*.* $(folder)/*/*))
	@echo "building the ROS messages that tests need: twenty seconds or more ..."
	@rm -rf .venv-msgs/dist-test
	@$(call INSTALL_MESSAGES,.venv-msgs/dist-test,$(addprefix ./,$(TEST_MESSAGES)))
	@touch $@

.venv-colcon/.installed: tests/system/colcon.lock .venv-msgs/.installed
	@echo "installing colcon into .venv-colcon ..."
	@$(call overlay,.venv-colcon,.venv-msgs .venv)
	@.venv-colcon/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# The unmodified ndsi client lives with numpy < 2 and Python 3.11 alone, so it has an environment of its own.
.venv-ndsi/.installed: tests/system/ndsi_peer/requirements.lock | .venv/bin/python
	@echo "installing the unmodified ndsi client into .venv-ndsi ..."
	@$(PYTHON) -m venv .venv-ndsi
	@.venv-ndsi/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Needs uv: pip install uv
lock:
	uv pip compile --universal --python-version 3.11 --extra ros --extra test --extra pictures --extra bag --extra systemd --no-header --upgrade setup.py -o requirements.lock
	uv pip compile --universal --python-version 3.11 --no-header --upgrade --constraint requirements.lock pupil_msgs/build.in -o pupil_msgs/build.lock
	uv pip compile --universal --python-version 3.11 --no-header --upgrade tests/system/colcon.in -o tests/system/colcon.lock

clean:
	rm -rf .venv .venv-ndsi .venv-msgs .venv-colcon build dist *.egg-info

HAS_PYTHON_H := import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))

# overlay,ENVIRONMENT,SEEN ...: an environment without a pip of its own, in which everything of the seen ones is seen.
define overlay
rm -rf $(1) && $(PYTHON) -m venv --without-pip $(1) && \
  .venv/bin/python -c 'import pathlib, sys; version = "lib/python%d.%d/site-packages" % sys.version_info[:2]; \
    pathlib.Path("$(1)", version, "seen.pth").write_text("".join( \
      "import site; site.addsitedir(%r)\n" % str(pathlib.Path(seen, version).resolve()) for seen in "$(2)".split()))'
endef

define debian
{ if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null; \
  else echo "please install: $(1)" >&2; exit 1; fi; }
endef
