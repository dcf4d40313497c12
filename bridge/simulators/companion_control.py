"""Commands to simulated phones, one a line, on a Unix socket or on standard input; the answers are JSON lines.

    [@NUMBER[,NUMBER...]] COMMAND [ARGUMENTS]

Without numbers all devices are meant. An answer is ``{"ok": true, "command": str, "devices": [state, ...]}`` once it is
done, or ``{"ok": false, "command": str, "error": str}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.simulators.companion_phone import Impossible, Phone
from bridge.simulators.companion_wire import MAX_EVENT_NAME

STDIN = "-"

_MAX_LINE_BYTES = 65536
_ANSWER_S = 1.0  # for who does not read his answers


def _flags(words: str, *allowed: str) -> set[str]:
    given = set(words.split())
    if wrong := given - set(allowed):
        raise Impossible(f"{' '.join(sorted(wrong))} is not one of: {', '.join(allowed)}")
    return given


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e9:
        raise Impossible(f"{text!r} is no number of seconds")
    return number


def _text(text: str) -> str:
    if not text:
        raise Impossible("a text is missing")
    return text


def _sleep(phone: Phone, words: str) -> None:
    if words and _seconds(words) < 0:
        raise Impossible("it cannot sleep for less than nothing")
    phone.sleep(_seconds(words) if words else None)


def _restart(phone: Phone, words: str) -> None:
    flags = _flags(words, "same-uuid", "same-sensors", "goodbye")
    same_node = "same-uuid" in flags
    phone.restart(same_node=same_node, same_sensors=same_node or "same-sensors" in flags, goodbye="goodbye" in flags)


def _refuse(phone: Phone, words: str) -> None:
    phone.app.refusal = None if _text(words) == "off" else words


def _record(phone: Phone, words: str) -> None:
    if words not in ("on", "off"):
        raise Impossible("record on, or record off")
    phone.need_awake()
    phone.app.record(words == "on")


def _attach(phone: Phone, words: str) -> None:
    names = _text(words).split()
    fresh = "new-uuid" in names
    phone.attach([name for name in names if name != "new-uuid"], same_sensors=not fresh)


def _event(phone: Phone, words: str) -> None:
    phone.need_awake()
    if not phone.app.make_event(_text(words)[:MAX_EVENT_NAME]):
        raise Impossible("its event sensor does not stream")


_COMMANDS: dict[str, Callable[[Phone, str], None]] = {
    "state": lambda phone, words: None,
    "sleep": _sleep,
    "wake": lambda phone, words: phone.wake(),
    "restart": _restart,
    "rename": lambda phone, words: phone.rename(_text(words)),
    "leave": lambda phone, words: phone.leave(),
    "join": lambda phone, words: phone.join(same_node="new-uuid" not in _flags(words, "new-uuid")),
    "detach": lambda phone, words: phone.detach(_text(words).split()),
    "attach": _attach,
    "refuse-recording": _refuse,
    "record": _record,
    "event": _event,
    "clock-step": lambda phone, words: phone.app.step_clock(round(_seconds(words) * 1e9)),
}


def execute(line: str, phones: Sequence[Phone]) -> dict[str, Any]:
    """Do what a line says and answer it. A device that cannot stops it: the ones before it have done it."""
    head, _, rest = line.strip().partition(" ")
    meant = list(phones)
    if head.startswith("@"):
        numbers = set(head[1:].split(","))
        meant = [phone for phone in phones if str(phone.number) in numbers]
        if len(meant) != len(numbers):
            return {"ok": False, "command": line.strip(), "error": f"{head} is no device: 1 to {len(phones)}"}
        head, _, rest = rest.strip().partition(" ")
    action = _COMMANDS.get(head)
    if action is None:
        return {"ok": False, "command": line.strip(), "error": f"{head!r} is not one of: {', '.join(_COMMANDS)}"}
    try:
        for phone in meant:
            action(phone, rest.strip())
    except Impossible as error:
        return {"ok": False, "command": line.strip(), "error": str(error)}
    return {"ok": True, "command": line.strip(), "devices": [phone.state() for phone in meant]}


@dataclass
class _Commander:
    """Somebody who sends lines."""

    descriptor: int
    answer: Callable[[bytes], None]
    pending: bytearray = field(default_factory=bytearray)
    close: Callable[[], None] = lambda: None


class ControlChannel:
    """Where commands come from: a Unix socket at a path, or ``-``, standard input with answers on standard output.

    Raises `OSError` when the socket cannot be bound.
    """

    def __init__(self, where: str | None) -> None:
        self._commanders: dict[int, _Commander] = {}
        self._server: socket.socket | None = None
        self._path: Path | None = None
        if where == STDIN:
            self._commanders[0] = _Commander(0, _print)
        elif where is not None:
            self._server = socket.socket(socket.AF_UNIX)
            try:
                self._server.setblocking(False)
                self._server.bind(where)
                self._server.listen()
            except OSError:
                self._server.close()
                raise
            self._path = Path(where)

    @property
    def readers(self) -> list[int]:
        """Descriptors that become readable when `lines` has something."""
        return [*self._commanders, *([] if self._server is None else [self._server.fileno()])]

    def lines(self, descriptor: int) -> Iterator[tuple[str, Callable[[bytes], None]]]:
        """The lines that have come here, each with what sends its answer."""
        if self._server is not None and descriptor == self._server.fileno():
            self._accept(self._server)
            return
        commander = self._commanders[descriptor]
        try:
            chunk = os.read(descriptor, _MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        commander.pending += chunk
        *lines, rest = bytes(commander.pending).split(b"\n")
        commander.pending = bytearray(rest)
        for line in lines:
            if line.strip():
                yield line.decode(errors="replace"), commander.answer
        if not chunk or len(rest) > _MAX_LINE_BYTES:
            del self._commanders[descriptor]
            commander.close()

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.settimeout(_ANSWER_S)

        def answer(line: bytes) -> None:
            with contextlib.suppress(OSError):  # he has gone
                connection.sendall(line)

        self._commanders[connection.fileno()] = _Commander(connection.fileno(), answer, close=connection.close)

    def close(self) -> None:
        for commander in self._commanders.values():
            commander.close()
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def encode_answer(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _print(line: bytes) -> None:
    sys.stdout.write(line.decode())
    sys.stdout.flush()
