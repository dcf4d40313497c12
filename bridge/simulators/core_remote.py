"""What Pupil Remote answers and what Pupil Capture then says on its backbone, without sockets.

Source: the behaviour of Pupil Capture 3.6.14: the request's first letter decides for ``R r T t v``, the whole
request for the others; an empty or undecodable one raises in Capture's thread, which ends Pupil Remote for good.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

# The drift is kept as an integer in 1e-12, so that the clock is exact at any age.
_DRIFT_PER_PPM = 1_000_000
_DRIFT_UNIT = 10**12

Message = list[bytes]


class PupilClock:
    """Pupil time as a function of the host's CLOCK_MONOTONIC, both in integer ns; a step begins a new piece.

    An instant before a step keeps the time it had: what was captured then is stamped by the clock of then, which is
    why Capture still sends gaze in the old timebase for a while after a step.
    """

    def __init__(self, origin_ns: int, offset_ns: int, drift_ppm: float) -> None:
        self._drift = round(drift_ppm * _DRIFT_PER_PPM)
        self._pieces = [(origin_ns, origin_ns + offset_ns)]

    def device_ns(self, host_ns: int) -> int:
        """The clock's reading at a host instant; instants before the start belong to the first piece."""
        pieces = self._pieces
        index = len(pieces) - 1
        while index > 0 and host_ns < pieces[index][0]:
            index -= 1
        since_ns, device_ns = pieces[index]
        elapsed_ns = host_ns - since_ns
        return device_ns + elapsed_ns + elapsed_ns * self._drift // _DRIFT_UNIT

    def seconds(self, host_ns: int) -> float:
        """The same as Capture sends it: float64 seconds."""
        return self.device_ns(host_ns) / 1e9

    def step(self, host_ns: int, device_ns: int) -> None:
        """From ``host_ns`` on, which is not before the last step, the clock counts from ``device_ns``."""
        self._pieces.append((host_ns, device_ns))


class PupilRemote:
    """Capture's side of the requests. ``publish`` puts a message on the backbone; ``alive`` is False after death."""

    def __init__(
        self,
        clock: PupilClock,
        version: str,
        sub_port: int,
        pub_port: int,
        publish: Callable[[Message], object],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.alive = True
        self._clock = clock
        self._version = version
        self._ports = {"SUB_PORT": str(sub_port), "PUB_PORT": str(pub_port)}
        self._publish = publish
        self._now_ns = now_ns
        self._started_s = time.time()
        self._recording: str | None = None
        self._recordings = 0
        self._calibrating = False

    def answer(self, frames: Sequence[bytes], reply: Callable[[bytes], object]) -> None:
        """Serve one request: call ``reply`` once, log the exchange; or die of it and call nothing."""
        try:
            request = frames[0].decode()
        except UnicodeDecodeError:
            request = ""
        if not request:
            self.alive = False
            return
        if len(frames) > 1:
            self.forward(list(frames))
            response = "Message forwarded."
        elif request in self._ports:
            response = self._ports[request]
        elif request.startswith("T"):
            response = self._set_time(request[2:])
        elif request.startswith("t"):
            # Read here and not earlier: nothing but the reply comes after.
            response = repr(self._clock.seconds(self._now_ns()))
        elif request.startswith("v"):
            response = self._version
        else:
            response = self._command(request)
        reply(response.encode())
        self._log(f"Request: '{request}', Response: '{response}'")

    def forward(self, message: Message) -> None:
        """Put a message on the backbone, whoever sent it, and do what Capture does when it sees it there."""
        self._publish(message)
        if len(message) > 1 and message[0].startswith(b"notify."):
            self._react(message[0][7:], message[1])

    def _set_time(self, argument: str) -> str:
        try:
            target_ns = round(float(argument) * 1e9)
        except (ValueError, OverflowError):
            return f"'{argument}' cannot be converted to float."
        self._clock.step(self._now_ns(), target_ns)
        return "Timesync successful."

    def _command(self, request: str) -> str:
        if request.startswith("R"):
            self._notify("recording.should_start", session_name=request[2:])
        elif request.startswith("r"):
            self._notify("recording.should_stop")
        elif request in ("C", "c"):
            self._notify("calibration.should_start" if request == "C" else "calibration.should_stop")
        else:
            return "Unknown command."
        return "OK"

    def _notify(self, subject: str, **fields: Any) -> None:
        topic = f"notify.{subject}"
        self.forward([topic.encode(), msgspec.msgpack.encode({"subject": subject, **fields, "topic": topic})])

    def _react(self, subject: bytes, payload: bytes) -> None:
        if subject == b"recording.should_start" and self._recording is None:
            session = _session_name(payload) or time.strftime("%Y_%m_%d")
            self._recording = f"/recordings/{session}/{self._recordings:03d}"
            self._recordings += 1
            self._notify(
                "recording.started",
                rec_path=self._recording,
                session_name=session,
                record_eye=True,
                compression=True,
                start_time_synced=self._clock.seconds(self._now_ns()),
            )
        elif subject == b"recording.should_stop" and self._recording is not None:
            path, self._recording = self._recording, None
            self._notify("recording.stopped", rec_path=path)
        elif subject == b"calibration.should_start" and not self._calibrating:
            self._calibrating = True
            self._notify("calibration.started")
        elif subject == b"calibration.should_stop" and self._calibrating:
            self._calibrating = False
            self._notify("calibration.stopped")
            self._notify("calibration.successful")

    def _log(self, text: str) -> None:
        """Capture logs every request, and its log is on the backbone, DEBUG included."""
        created_s = time.time()
        module = "pupil_remote_controller"
        record = {
            "name": f"network_api.controller.{module}",
            "msg": text,
            "args": [],
            "levelname": "DEBUG",
            "levelno": 10,
            "pathname": f"/opt/pupil_capture/network_api/controller/{module}.py",
            "filename": f"{module}.py",
            "module": module,
            "exc_info": None,
            "exc_text": None,
            "stack_info": None,
            "lineno": 305,
            "funcName": "__on_recv",
            "created": created_s,
            "msecs": float(int(created_s % 1 * 1000)),
            "relativeCreated": (created_s - self._started_s) * 1000,
            "thread": threading.get_ident(),
            "threadName": "Thread-1 (__thread_loop)",
            "processName": "world",
            "process": os.getpid(),
            "topic": "logging.debug",
        }
        self._publish([b"logging.debug", msgspec.msgpack.encode(record)])


def _session_name(payload: bytes) -> str:
    """The session that a should_start names; what strangers put on the backbone may be anything."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return ""
    name = fields.get("session_name") if isinstance(fields, dict) else None
    return name if isinstance(name, str) else ""
