"""sd_notify as systemd reads it: real datagrams on a real socket, and what happens when nobody reads them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.service.notify import Notifier

STRANGE_STATUS = "4 devices\n\nlocked;\x00 Gerät\tone " + "ü" * 1000


class Systemd:
    """The receiving end: a datagram socket by path or by an abstract name."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def said(self) -> list[dict[str, str]]:
        """All messages that are there, oldest first."""
        messages = []
        while True:
            try:
                text = self.socket.recv(65536).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in text.split("\n")))


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@pupil-bridge-test-{os.getpid()}-{time.time_ns()}"


@pytest.fixture
def systemd(address: str) -> Iterator[Systemd]:
    made = Systemd(address)
    yield made
    made.socket.close()


@pytest.fixture
def notifier(systemd: Systemd, address: str) -> Iterator[Notifier]:
    made = Notifier.from_environment({"NOTIFY_SOCKET": address})
    yield made
    made.close()


def test_without_systemd_nothing_happens_and_nothing_is_lost() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "10000000"})
    notifier.ready("up")
    notifier.reloading()
    notifier.watchdog()
    notifier.stopping()
    notifier.close()
    assert (notifier.enabled, notifier.watchdog_interval_s, notifier.lost) == (False, None, 0)


def test_every_call_is_one_message_of_the_assignments_that_systemd_knows(systemd: Systemd, notifier: Notifier) -> None:
    notifier.ready("4 devices")
    notifier.status("3 devices")
    notifier.watchdog()
    notifier.stopping()
    assert systemd.said() == [
        {"READY": "1", "STATUS": "4 devices"},
        {"STATUS": "3 devices"},
        {"WATCHDOG": "1"},
        {"STOPPING": "1", "STATUS": "stopping"},
    ]


def test_a_reload_carries_the_monotonic_time_in_microseconds(systemd: Systemd, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    (message,) = systemd.said()
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_a_status_is_one_line_of_bounded_length_whatever_is_in_it(systemd: Systemd, notifier: Notifier) -> None:
    notifier.status(STRANGE_STATUS + "\ud800 READY=1\nWATCHDOG=trigger")
    (message,) = systemd.said()
    assert set(message) == {"STATUS"}
    assert message["STATUS"].startswith("4 devices locked;\x00 Gerät one üüü")
    assert len(message["STATUS"].encode()) <= 500


def test_the_variables_are_taken_out_so_that_no_child_process_has_them(systemd: Systemd, address: str) -> None:
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/x"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"HOME": "/x"}
    assert notifier.watchdog_interval_s == 5.0
    notifier.close()


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [
        ("3000000", None, 1.5),
        ("3000000", "", 1.5),
        ("3000000", "1", None),  # meant for another process
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_pinged_at_half_of_systemds_patience_if_it_waits_for_this_process(
    systemd: Systemd, address: str, usec: str | None, pid: str | None, expected_s: float | None
) -> None:
    given = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    notifier = Notifier.from_environment({name: value for name, value in given.items() if value is not None})
    assert notifier.watchdog_interval_s == expected_s
    notifier.close()


@pytest.mark.parametrize(
    "address", ["", "relative/path", "vsock:2:1234", "/nowhere/at/all", "/tmp/\x00zero", "@" * 300]
)
def test_an_address_that_cannot_be_used_raises_nothing(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("up")
    notifier.watchdog()
    assert notifier.lost == (2 if notifier.enabled else 0)
    notifier.close()


def test_a_reader_that_does_not_read_blocks_nothing_and_learns_the_latest_later(
    systemd: Systemd, notifier: Notifier
) -> None:
    while not notifier.lost:  # the kernel keeps a few; then the socket is full
        notifier.watchdog()
    notifier.ready("two devices")
    notifier.status("three devices")
    notifier.watchdog()
    assert notifier.lost == 4
    assert all(message == {"WATCHDOG": "1"} for message in systemd.said())
    notifier.watchdog()
    assert systemd.said() == [{"READY": "1", "STATUS": "three devices", "WATCHDOG": "1"}]
    notifier.watchdog()
    assert systemd.said() == [{"WATCHDOG": "1"}]


def test_a_reload_that_nobody_heard_of_is_not_announced_after_its_end(systemd: Systemd, notifier: Notifier) -> None:
    while not notifier.lost:
        notifier.watchdog()
    notifier.reloading()
    systemd.said()
    notifier.ready("up")
    assert systemd.said() == [{"READY": "1", "STATUS": "up"}]


def test_a_socket_that_is_made_anew_is_found_again(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    first = Systemd(address)
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    first.socket.close()
    notifier.ready("up")
    Path(address).unlink()
    notifier.watchdog()
    assert notifier.lost == 2
    second = Systemd(address)
    notifier.watchdog()
    assert second.said() == [{"READY": "1", "STATUS": "up", "WATCHDOG": "1"}]
    notifier.close()
    second.socket.close()


def test_systemd_python_would_have_blocked(tmp_path: Path) -> None:
    """The reason for a sender of our own. When this fails, systemd-python can do it."""
    pytest.importorskip("systemd.daemon")
    receiver = Systemd(str(tmp_path / "notify"))
    code = "from systemd import daemon\nfor _ in range(10_000): daemon.notify('WATCHDOG=1')\n"
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], env=environment, timeout=2.0, check=True)
    receiver.socket.close()
