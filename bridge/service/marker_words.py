"""What a marker says: its text, the command in it, and whether its moment can be. Values only, no LSL.

What LSL carries is anything at all: text in any encoding and of any length, or numbers.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

MAX_LETTERS: Final = 1000  # what every device takes: Pupil Capture's limit here, a phone's is 1024
PAST_S: Final = 3600.0
FUTURE_S: Final = 10.0  # programs give the stamp of the picture's next refresh
COMMANDS: Final = (
    "record start [SESSION]",
    "record stop",
    "calibrate start",
    "calibrate stop",
    "event TEXT",
    "annotate TEXT",
)


class Asked(NamedTuple):
    """A command of the control surface with its arguments, without the device."""

    command: str
    arguments: dict[str, Any]


def text_of(value: object) -> tuple[str, bool]:
    """The text of a marker, which is bytes or a number, and whether it had to be cut. A number is written as an integer
    where it is one. What cannot be printed is replaced; "" is no text."""
    if not isinstance(value, bytes):
        return _number(value), False
    begin = value[: 4 * MAX_LETTERS].decode("utf-8", "replace")  # no more than is needed of what may be megabytes
    shown = "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in begin)
    return shown[:MAX_LETTERS].strip(), len(value) > 4 * MAX_LETTERS or len(begin) > MAX_LETTERS


def _number(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else str(value)  # numpy's: 0.1 also where it has 32 bits


def moment_fault(host_s: float, now_s: float) -> str | None:
    """Why a marker cannot have this time, if so. Both are seconds of CLOCK_MONOTONIC."""
    if not math.isfinite(host_s):
        return "its time is not known"
    if now_s - PAST_S <= host_s <= now_s + FUTURE_S:
        return None
    before = "before" if host_s < now_s else "after"
    return f"its time is {abs(host_s - now_s):.0f} s {before} now: is it of LSL's clock?"


def event(text: str, host_s: float) -> Asked:
    """The event that a marker becomes."""
    return Asked("event", {"text": text, "host_s": host_s})


def command(text: str, host_s: float) -> Asked | None:
    """The command that a marker is, None when it is none."""
    first, _, rest = text.partition(" ")
    rest = rest.strip()
    if first in ("event", "annotate"):
        return Asked(first, {"text": rest, "host_s": host_s}) if rest else None
    action, _, session = rest.partition(" ")
    if (first, action) == ("record", "start"):
        return Asked(first, {"action": action, "session": session.strip() or None})
    if first in ("record", "calibrate") and action in ("start", "stop") and not session:
        return Asked(first, {"action": action})
    return None
