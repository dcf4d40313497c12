"""Records of the simulated Pupil Capture's log, which is on its backbone, DEBUG included."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import Final

import msgspec

Line = tuple[str, str, str]  # level, the logger's name, text

_LEVELS: Final = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
_CHATTER: Final[tuple[Line, ...]] = (
    ("INFO", "camera_models", "Calibration for camera world at resolution (1280, 720) loaded"),
    ("WARNING", "video_capture.uvc_backend", "Capture failed to provide frames. Attempting to reinit."),
)


def log_record(level: str, name: str, text: str, process: str, started_s: float) -> list[bytes]:
    """The message of one record. ``started_s``: UTC when Capture was started."""
    created_s = time.time()
    module = name.rpartition(".")[2]
    record = {
        "name": name,
        "msg": text,
        "args": [],
        "levelname": level,
        "levelno": _LEVELS[level],
        "pathname": f"/opt/pupil_capture/{name.replace('.', '/')}.py",
        "filename": f"{module}.py",
        "module": module,
        "exc_info": None,
        "exc_text": None,
        "stack_info": None,
        "lineno": 305,
        "funcName": "__on_recv",
        "created": created_s,
        "msecs": float(int(created_s % 1 * 1000)),
        "relativeCreated": (created_s - started_s) * 1000,
        "thread": threading.get_ident(),
        "threadName": "Thread-1 (__thread_loop)",
        "processName": process,
        "process": os.getpid(),
        "topic": f"logging.{level.lower()}",
    }
    return [f"logging.{level.lower()}".encode(), msgspec.msgpack.encode(record)]


def chatter(base_ns: int, every_s: float) -> Iterator[tuple[int, Line]]:
    """Lines of the log and when they are written; none when the time between them is 0."""
    for number in itertools.count(1) if every_s > 0 else ():
        yield base_ns + round(number * every_s * 1e9), _CHATTER[number % len(_CHATTER)]
