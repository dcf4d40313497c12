"""What the simulated Pupil Capture does when it sees a message on its backbone, without sockets.

Source: Pupil Capture 3.6.14: world.py, recorder.py, base_plugin.py and gazer_base.py of the calibration,
annotations.py, network_api_plugin.py. Its plugins see notifications, whoever sent them; an exception in one of them
ends Capture.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.truth import TruthWriter

FRAME_FORMATS: Final = ("jpeg", "yuv", "bgr", "gray")
_GAZER: Final = "Gazer3D"

Message = list[bytes]


class World:
    """The world process. ``crashed`` is the last line of its traceback once it has ended, ``frame_format`` that of
    frames, None while there are none."""

    def __init__(
        self,
        clock: PupilClock,
        truth: TruthWriter,
        publish: Callable[[Message], object],
        *,
        frames_by_plugin: bool = False,
        missing_plugins: Collection[str] = (),
        calibration_error: str = "",
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``frames_by_plugin``: frames are there once Frame_Publisher was started, as before Pupil 2.1; that plugin is
        unknown otherwise. ``calibration_error``: the reason for which every calibration fails, "" when none does."""
        self.crashed: str | None = None
        self.frame_format: str | None = None if frames_by_plugin else "jpeg"
        self._clock = clock
        self._truth = truth
        self._publish = publish
        self._now_ns = now_ns
        self._frames_by_plugin = frames_by_plugin
        self._known = {"Annotation_Capture", *(["Frame_Publisher"] if frames_by_plugin else [])} - set(missing_plugins)
        self._calibration_error = calibration_error
        self._plugins: set[str] = set()
        self._started_s = time.time()
        self._recording: str | None = None
        self._recordings = 0
        self._calibrating = False
        self._sequences: dict[str, int] = {}

    def forward(self, message: Message) -> None:
        """Put a message on the backbone, whoever sent it, and do what Capture does when it sees it there."""
        self._publish(message)
        if len(message) < 2:
            return
        if message[0].startswith(b"notify."):
            self._react(message[0][7:], _fields(message[1]))
        elif message[0] == b"annotation" and "Annotation_Capture" in self._plugins:
            self._annotate(_fields(message[1]))

    def notify(self, subject: str, **fields: Any) -> None:
        topic = f"notify.{subject}"
        self.forward([topic.encode(), msgspec.msgpack.encode({"subject": subject, **fields, "topic": topic})])

    def _react(self, subject: bytes, fields: dict[str, Any]) -> None:
        if subject == b"recording.should_start" and self._recording is None:
            self._start_recording(fields)
        elif subject == b"recording.should_stop" and self._recording is not None:
            path, self._recording = self._recording, None
            self._tell("recording", f"stopped {path}")
            self.notify("recording.stopped", rec_path=path)
        elif subject == b"calibration.should_start" and not self._calibrating:
            self._calibrating = True
            self._tell("calibration", "started")
            self.notify("calibration.started")
        elif subject == b"calibration.should_stop" and self._calibrating:
            self._stop_calibration()
        elif subject == b"start_plugin":
            self._start_plugin(fields.get("name"))
        elif subject == b"frame_publishing.set_format":
            self._set_format(fields.get("format"))

    def _start_recording(self, fields: dict[str, Any]) -> None:
        name = fields.get("session_name")
        session = name if name and isinstance(name, str) else time.strftime("%Y_%m_%d")
        self._recording = f"/recordings/{session}/{self._recordings:03d}"
        self._recordings += 1
        self._tell("recording", f"started {self._recording}")
        self.notify(
            "recording.started",
            rec_path=self._recording,
            session_name=session,
            record_eye=True,
            compression=True,
            start_time_synced=self._clock.seconds(self._now_ns()),
        )

    def _stop_calibration(self) -> None:
        self._calibrating = False
        self.notify("calibration.stopped")
        about = {"gazer_class_name": _GAZER, "timestamp": self._clock.seconds(self._now_ns()), "record": True}
        if self._calibration_error:
            self._tell("calibration", "failed")
            self.notify("calibration.failed", reason=self._calibration_error, **about)
        else:
            self._tell("calibration", "successful")
            self.notify("calibration.successful", **about)

    def _start_plugin(self, name: object) -> None:
        if name not in self._known:
            self.log("ERROR", "launchables.world", f"Attempt to load unknown plugin: {name!r}")
            return
        self._plugins.add(str(name))
        if name == "Frame_Publisher":
            self._set_format(self.frame_format or "jpeg")

    def _set_format(self, name: object) -> None:
        if self._frames_by_plugin and "Frame_Publisher" not in self._plugins:
            return
        if name not in FRAME_FORMATS:
            self.crashed = f"ValueError: {name!r} is not a valid FrameFormat"
            return
        self.frame_format = str(name)
        self.notify("frame_publishing.started", format=name)

    def _annotate(self, fields: dict[str, Any]) -> None:
        """The truth has every annotation that the plugin took; ``sent`` when a recording keeps it."""
        if "label" not in fields or not isinstance(at_s := fields.get("timestamp"), float):
            self.crashed = "KeyError: an annotation without a label or a timestamp"
            return
        age_s = self._clock.seconds(self._now_ns()) - at_s
        device_ns = round(at_s * 1e9)
        self._tell("annotation", str(fields["label"]), device_ns, sent=self._recording is not None)
        self.log("INFO", "annotations", f"{fields['label']} annotation ({age_s:.3f} seconds ago)")

    def _tell(self, stream: str, text: str, device_ns: int | None = None, *, sent: bool = True) -> None:
        """Into the truth, at a Pupil time or now."""
        if device_ns is None:
            host_ns = self._now_ns()
            device_ns = self._clock.device_ns(host_ns)
        else:
            host_ns = self._clock.host_ns(device_ns)
        sequence = self._sequences[stream] = self._sequences.get(stream, -1) + 1
        self._truth.record(stream, sequence, device_ns=device_ns, host_ns=host_ns, sent=sent, payload=text)

    def log(self, level: str, name: str, text: str) -> None:
        """Capture's log is on the backbone, DEBUG included."""
        created_s = time.time()
        module = name.rpartition(".")[2]
        record = {
            "name": name,
            "msg": text,
            "args": [],
            "levelname": level,
            "levelno": {"DEBUG": 10, "INFO": 20, "ERROR": 40}[level],
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
            "relativeCreated": (created_s - self._started_s) * 1000,
            "thread": threading.get_ident(),
            "threadName": "Thread-1 (__thread_loop)",
            "processName": "world",
            "process": os.getpid(),
            "topic": f"logging.{level.lower()}",
        }
        self._publish([f"logging.{level.lower()}".encode(), msgspec.msgpack.encode(record)])


def _fields(payload: bytes) -> dict[str, Any]:
    """What a message says; what strangers put on the backbone may be anything."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
