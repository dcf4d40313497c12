"""Log records as entries of systemd's journal, with fields that can be searched: ``journalctl DEVICE=core``.

The native protocol is https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. systemd-python's JournalHandler makes the entries
where it is installed, and a handler of our own elsewhere: the fields are the same. Both hand them to ``JournalSender``,
since libsystemd's own sending blocks when the journal does not read.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDENTIFIER = "pupil-bridge"
SOCKET = Path("/run/systemd/journal/socket")
FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# What JournalHandler adds and nobody needs twice: the message has the exception and the arguments in it.
LEFT_OUT = ("EXCEPTION_INFO", "EXCEPTION_TEXT", "CODE_ARGS", "PROCESS_NAME")
PRIORITIES = ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2))
EMERGENCY_PRIORITY = 1


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields that a log call gave by ``extra={"DEVICE": ...}``: names in upper case; those of None are left out."""
    return {name: value for name, value in vars(record).items() if value is not None and FIELD.fullmatch(name)}


def is_stderr_connected(journal_stream: str | None, descriptor: int = 2) -> bool:
    """Whether this descriptor is the stream to the journal that systemd names in $JOURNAL_STREAM."""
    try:
        device, inode = (int(number) for number in (journal_stream or "").split(":"))
        there = os.fstat(descriptor)
    except (ValueError, OSError):
        return False
    return (there.st_dev, there.st_ino) == (device, inode)


def handler(path: Path = SOCKET) -> logging.Handler:
    """A handler for log records, which never raises and never blocks. Its ``sender`` counts what got lost."""
    sender = JournalSender(path)
    made: logging.Handler
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        made = NativeHandler(sender)
    else:
        made = JournalHandler(sender_function=sender.send, SYSLOG_IDENTIFIER=IDENTIFIER)
    made.sender = sender  # type: ignore[attr-defined]
    return made


def release(old: logging.Handler) -> None:
    """Closes the socket of a handler that is from here, and does nothing to another."""
    sender = getattr(old, "sender", None)
    if isinstance(sender, JournalSender):
        sender.close()


class NativeHandler(logging.Handler):
    """What JournalHandler of systemd-python does, without it."""

    def __init__(self, sender: JournalSender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {
                "PRIORITY": str(_priority(record.levelno)),
                "LOGGER": record.name,
                "THREAD_NAME": record.threadName,
                "CODE_FILE": record.pathname,
                "CODE_LINE": record.lineno,
                "CODE_FUNC": record.funcName,
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                **fields_of(record),
            }
            self._sender.send(self.format(record), **fields)
        except Exception:  # noqa: BLE001 - as every handler of the standard library: a bad log call ends nothing
            self.handleError(record)


class JournalSender:
    """Sends entries to the journal. What it cannot take now is ``lost``: counted, and said when it reads again."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._unsaid = 0
        self.lost = 0

    def send(self, MESSAGE: str, **fields: Any) -> None:
        """One entry, called as JournalHandler does. Fields that are None or no journal fields are left out."""
        kept = {k: v for k, v in fields.items() if v is not None and FIELD.fullmatch(k) and k not in LEFT_OUT}
        if not self._deliver(encode({"MESSAGE": MESSAGE, **kept})):
            self.lost += 1
            self._unsaid += 1
        elif self._unsaid:
            said = {"MESSAGE": f"{self._unsaid} log lines are lost: the journal did not take them", "PRIORITY": "4"}
            if self._deliver(encode({**said, "SYSLOG_IDENTIFIER": IDENTIFIER, "LOGGER": __name__})):
                self._unsaid = 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _deliver(self, entry: bytes) -> bool:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            try:
                self._socket.sendto(entry, str(self._path))
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):  # the two ways to say: too long for a datagram
                    raise
                _send_by_memory(self._socket, entry, str(self._path))
        except OSError:  # full, stopped, not there
            return False
        return True


def encode(fields: Mapping[str, object]) -> bytes:
    """The native form of an entry: values of several lines are preceded by their length, the others by "="."""
    parts = []
    for name, value in fields.items():
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")
        if b"\n" in text:
            parts.append(name.encode("ascii") + b"\n" + len(text).to_bytes(8, "little") + text + b"\n")
        else:
            parts.append(name.encode("ascii") + b"=" + text + b"\n")
    return b"".join(parts)


def _send_by_memory(connection: socket.socket, entry: bytes, path: str) -> None:
    """What no datagram can hold goes as a sealed memory file, whose descriptor is sent. Raises OSError."""
    import fcntl

    descriptor = os.memfd_create("pupil-bridge-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(entry)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        # Not socket.send_fds: Python 3.11 ignores its address.
        connection.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))], 0, path)
    finally:
        os.close(descriptor)


def _priority(level: int) -> int:
    return next((priority for limit, priority in PRIORITIES if level <= limit), EMERGENCY_PRIORITY)
