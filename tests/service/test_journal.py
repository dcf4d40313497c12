"""Journal entries as journald reads them: real datagrams, and real memory files, with and without systemd-python."""

from __future__ import annotations

import array
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.service import journal

VALUES = st.text(st.characters(exclude_categories=()))  # lone surrogates too: file names can have them


class Journald:
    """The receiving end of the native protocol."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        """All entries that are there, oldest first."""
        found = []
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return found
            for _, _, descriptors in ancillary:
                (descriptor,) = array.array("i", descriptors)
                data = os.pread(descriptor, 1 << 26, 0)
                os.close(descriptor)
            found.append(decode(data))


def decode(entry: bytes) -> dict[str, str]:
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
        entry = rest
    return fields


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def journald(path: Path) -> Iterator[Journald]:
    made = Journald(path)
    yield made
    made.socket.close()


@pytest.fixture(params=["systemd-python", "without"])
def handler(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Handler]:
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
    else:
        pytest.importorskip("systemd.journal")
    made = journal.handler(path)
    assert isinstance(made, journal.NativeHandler) == (request.param == "without")
    yield made
    made.sender.close()
    made.close()


@pytest.fixture
def log(handler: logging.Handler) -> Iterator[logging.Logger]:
    logger = logging.Logger("bridge.sources.ndsi")
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_record_has_the_fields_of_its_log_call_and_the_usual_ones(journald: Journald, log: logging.Logger) -> None:
    extra = {"DEVICE": "core", "STREAM": "gaze", "SOURCE": "core", "EPOCH": 3}
    log.warning("%s is gone", "core", extra=extra)
    (entry,) = journald.entries()
    assert int(entry.pop("CODE_LINE")) > 0
    assert entry == {
        "MESSAGE": "core is gone",
        "PRIORITY": "4",
        "LOGGER": "bridge.sources.ndsi",
        "SYSLOG_IDENTIFIER": "pupil-bridge",
        "THREAD_NAME": "MainThread",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_a_record_has_the_fields_of_its_log_call_and_the_usual_ones",
        "DEVICE": "core",
        "STREAM": "gaze",
        "SOURCE": "core",
        "EPOCH": "3",
    }


def test_a_field_of_none_is_left_out(journald: Journald, log: logging.Logger) -> None:
    log.warning("hello", extra={"DEVICE": "core", "EPOCH": None})
    (entry,) = journald.entries()
    assert entry["DEVICE"] == "core"
    assert "EPOCH" not in entry


def test_names_that_are_no_journal_fields_stay_away(journald: Journald, log: logging.Logger) -> None:
    log.warning("hello", extra={"_PID": 1, "device": "x", "NO SPACE": 1, "A" * 65: 1, "2ND": 1, "OK_2": 1})
    (entry,) = journald.entries()
    assert entry["OK_2"] == "1"
    assert not entry.keys() & {"_PID", "device", "NO SPACE", "A" * 65, "2ND"}


@pytest.mark.parametrize(
    ("level", "priority"),
    [(5, "7"), (10, "7"), (15, "6"), (20, "6"), (30, "4"), (40, "3"), (50, "2"), (60, "1")],
)
def test_levels_become_priorities(journald: Journald, log: logging.Logger, level: int, priority: str) -> None:
    log.log(level, "hello")
    (entry,) = journald.entries()
    assert entry["PRIORITY"] == priority


def test_an_exception_is_in_the_message(journald: Journald, log: logging.Logger) -> None:
    try:
        raise ValueError("what\na mess")
    except ValueError:
        log.exception("it failed")
    (entry,) = journald.entries()
    assert entry["MESSAGE"].startswith("it failed\nTraceback (most recent call last):\n")
    assert entry["MESSAGE"].endswith("ValueError: what\na mess")
    assert entry["PRIORITY"] == "3"


@given(VALUES, VALUES)
def test_whatever_a_stranger_is_called_fields_stay_apart(message: str, device: str) -> None:
    decoded = decode(journal.encode({"MESSAGE": message, "DEVICE": device, "PRIORITY": 4}))
    assert list(decoded) == ["MESSAGE", "DEVICE", "PRIORITY"]
    assert decoded["MESSAGE"] == message.encode("utf-8", "backslashreplace").decode()
    assert decoded["DEVICE"] == device.encode("utf-8", "backslashreplace").decode()


def test_what_no_datagram_can_hold_arrives_whole(journald: Journald, log: logging.Logger) -> None:
    text = "long\n" * 2_000_000
    before = len(os.listdir("/proc/self/fd"))
    log.warning("%s", text, extra={"DEVICE": "core"})
    (entry,) = journald.entries()
    assert entry["MESSAGE"] == text
    assert entry["DEVICE"] == "core"
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the sender's own socket


def test_a_journal_that_does_not_read_blocks_nothing_and_hears_of_the_gap(
    journald: Journald, log: logging.Logger, handler: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    while handler.sender.lost < 3:
        log.warning("chatter")
    journald.entries()
    log.warning("again")
    again, gap = journald.entries()
    assert again["MESSAGE"] == "again"
    assert gap["MESSAGE"] == "3 log lines are lost: the journal did not take them"
    assert gap["SYSLOG_IDENTIFIER"] == "pupil-bridge"
    log.warning("and again")
    assert [entry["MESSAGE"] for entry in journald.entries()] == ["and again"]
    assert capsys.readouterr() == ("", "")


def test_a_journal_that_is_away_and_comes_back_is_found_again(
    path: Path, log: logging.Logger, handler: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    log.warning("into the void")
    first = Journald(path)
    log.warning("one")
    assert len(first.entries()) == 2
    first.socket.close()
    log.warning("refused")
    path.unlink()
    log.warning("x" * 10_000_000)
    second = Journald(path)
    log.warning("two")
    assert second.entries()[0]["MESSAGE"] == "two"
    assert handler.sender.lost == 3
    assert capsys.readouterr() == ("", "")
    second.socket.close()


def test_a_handler_that_is_released_keeps_no_socket_open_and_opens_a_new_one_if_it_must(
    journald: Journald, log: logging.Logger, handler: logging.Handler
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log.warning("one")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    journal.release(handler)
    assert len(os.listdir("/proc/self/fd")) == before
    log.warning("two")
    assert [entry["MESSAGE"] for entry in journald.entries()] == ["one", "two"]
    journal.release(logging.NullHandler())


def test_stderr_is_the_journals_when_device_and_inode_are_those_that_systemd_named(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        there = os.fstat(file.fileno())
        assert journal.is_stderr_connected(f"{there.st_dev}:{there.st_ino}", file.fileno())
        for wrong in (None, "", "x", "1:2:3", f"{there.st_dev}:{there.st_ino + 1}", f"{there.st_ino}"):
            assert not journal.is_stderr_connected(wrong, file.fileno())
    assert not journal.is_stderr_connected("1:2", 987654)
