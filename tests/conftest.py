"""What every test runs under: LSL and ROS 2 confined to this machine, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.service.loopback import write_lsl_api_cfg
from tests import networks

# One of several processes that run tests side by side (pytest-xdist): what the others do on the network is not here.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1 and not networks.why_not():
    networks.leave()
# Fast DDS' shared memory goes by these, whatever the network.
ROS_DOMAINS = range(1 + WORKER, 100, WORKERS)

# Before anything imports pylsl or rclpy, which read these when they are loaded; child processes inherit them.
_DIRECTORY = tempfile.TemporaryDirectory(prefix="pupil-bridge-tests-")
_CFG = Path(_DIRECTORY.name) / "lsl_api.cfg"
write_lsl_api_cfg(_CFG, f"pupil-bridge-test-{random.randrange(10**9)}")
os.environ["LSLAPICFG"] = str(_CFG)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(random.choice(ROS_DOMAINS))  # while modules are imported: each has its own, below
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
os.environ["ROS_LOG_DIR"] = _DIRECTORY.name
os.environ["XDG_STATE_HOME"] = _DIRECTORY.name
os.environ["STATE_DIRECTORY"] = _DIRECTORY.name

# A shell makes what it runs in the background ignore SIGINT, and its children after it; tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

THREADS_END_S = 10.0


def pytest_sessionfinish() -> None:
    _DIRECTORY.cleanup()


@pytest.fixture(autouse=True, scope="module")
def _a_ros_domain_of_its_own() -> Iterator[None]:
    """Nodes of an earlier module, which Fast DDS may show for some seconds more, are not this module's peers."""
    with pytest.MonkeyPatch.context() as patch:
        others = [number for number in ROS_DOMAINS if number != int(os.environ["ROS_DOMAIN_ID"])]
        patch.setenv("ROS_DOMAIN_ID", str(random.choice(others)))
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREADS_END_S
    while True:
        left = [t for t in threading.enumerate() if t not in before and t.is_alive()]
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {left}")
        left[0].join(0.05)


@pytest.fixture(autouse=True)
async def _no_task_is_left_behind(request: pytest.FixtureRequest) -> object:
    before = asyncio.all_tasks()
    yield
    left = [t for t in asyncio.all_tasks() if t not in before and t is not asyncio.current_task() and not t.done()]
    assert not left, f"tasks left behind: {left}"
