"""The truth file: what a simulator really did, one JSON object a line, for tests and demos to compare with.

``{"stream": str, "sequence": int, "device_ns": int, "host_ns": int, "sent": bool, "payload": [numbers] | str}``
``device_ns`` is the stamp on the device's clock, ``host_ns`` the same instant on the host's CLOCK_MONOTONIC, and
``sent`` is false when the simulator lost the sample on purpose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class TruthWriter:
    """Appends to the truth file; without a path it writes nothing, so that callers need no branch.

    Every line is handed to the kernel whole and at once (about 5 us), so a SIGKILL loses nothing that was recorded and
    a restarted simulator can append to the same file. Call `record` after the sample is published, not before.
    Raises `OSError` when the file cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._file = None if path is None else open(Path(path), "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def record(
        self,
        stream: str,
        sequence: int,
        *,
        device_ns: int,
        host_ns: int,
        sent: bool,
        payload: Sequence[float] | str,
    ) -> None:
        """Write one sample; numbers must be finite."""
        if self._file is None:
            return
        line = {
            "stream": stream,
            "sequence": sequence,
            "device_ns": device_ns,
            "host_ns": host_ns,
            "sent": sent,
            "payload": payload if isinstance(payload, str) else list(payload),
        }
        self._file.write(json.dumps(line, allow_nan=False, separators=(", ", ": ")).encode() + b"\n")

    def close(self) -> None:
        """Close the file; more than once is allowed, and recording afterwards writes nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
