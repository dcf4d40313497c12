"""What the simulated Pupil Capture does when it sees a message on its backbone, without sockets.

Source: Pupil Capture 3.6.14: world.py, service.py, recorder.py, base_plugin.py, hmd_plugin.py and gazer_base.py of the
calibration, annotations.py, network_api_plugin.py. Its plugins see notifications, whoever sent them; an exception in
one of them ends Capture. Pupil Service records nothing, knows no annotations, and calibrates for head-mounted displays.

In the truth, as text: ``recording`` ("started <path>", "stopped <path>"), ``calibration`` ("started", "successful",
"failed"), ``annotation`` (the label, at its Pupil time). ``clock``: every step, stamped as the clock reads after it,
[ns by which it went on].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_log import log_record
from bridge.simulators.truth import TruthWriter

FRAME_FORMATS: Final = ("jpeg", "yuv", "bgr", "gray")
# What Pupil Service wants to be told before it calibrates.
_HMD_FIELDS: Final = ("translation_eye0", "translation_eye1")

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
        service: bool = False,
        frames_by_plugin: bool = False,
        missing_plugins: Collection[str] = (),
        calibration_error: str = "",
        calibration_data: Callable[[], msgspec.Raw] = lambda: msgspec.Raw(b"\x80"),
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``frames_by_plugin``: frames are there once Frame_Publisher was started, as before Pupil 2.1; that plugin is
        unknown otherwise. ``calibration_error``: the reason for which every calibration fails, "" when none does;
        ``calibration_data``: what each has gathered. ``service``: it is Pupil Service."""
        self.crashed: str | None = None
        self.frame_format: str | None = None if frames_by_plugin else "jpeg"
        self._clock = clock
        self._truth = truth
        self._publish = publish
        self._now_ns = now_ns
        self._frames_by_plugin = frames_by_plugin
        known = [*([] if service else ["Annotation_Capture"]), *(["Frame_Publisher"] if frames_by_plugin else [])]
        self._known = set(known) - set(missing_plugins)
        self._service = service
        self._name = "launchables.service" if service else "launchables.world"
        self._gazer = "GazerHMD3D" if service else "Gazer3D"
        self._calibration_data = calibration_data
        self._calibration_error = calibration_error
        self._plugins: set[str] = set()
        self._started_s = time.time()
        self._recording: str | None = None
        self._recordings = 0
        self._session = time.strftime("%Y_%m_%d")
        self._calibrating = False
        self._sequences: dict[str, int] = {}

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def step_clock(self, host_ns: int, device_ns: int) -> None:
        """From that instant on Pupil time counts from ``device_ns``."""
        step = self._clock.step(host_ns, device_ns)
        self._record("clock", device_ns, host_ns, payload=(step.change_ns,))

    def end(self) -> None:
        """Say what Capture says when it ends, crashed or not."""
        if self.crashed is not None:
            process = "Service" if self._service else "Capture"
            trace = f"Traceback (most recent call last):\n{self.crashed}\n"
            self.log("ERROR", self._name, f"Process {process} crashed with trace:\n{trace}")
        for eye in (0, 1):
            self._say("eye_process.should_stop", eye_id=eye)
        self.log("INFO", self._name, "Process shutting down.")
        self._say("service_process.stopped" if self._service else "world_process.stopped")
        if self._service:
            self._say("launcher_process.should_stop")

    def forward(self, message: Message) -> None:
        """Put a message on the backbone, whoever sent it, and do what Capture does when it sees it there."""
        self._publish(message)
        if len(message) < 2:
            return
        if message[0].startswith(b"notify."):
            fields = _fields(message[1])
            if fields is not None and "subject" not in fields:
                self.crashed = "KeyError: 'subject'"
                return
            self._react(message[0][7:], fields or {})
        elif message[0] == b"annotation" and "Annotation_Capture" in self._plugins:
            self._annotate(_fields(message[1]) or {})

    def notify(self, subject: str, **fields: Any) -> None:
        """Send a notification and do what Capture does when it sees it."""
        self.forward(_notification(subject, fields))

    def _say(self, subject: str, **fields: Any) -> None:
        """Send a notification to which nothing of what is here reacts."""
        self._publish(_notification(subject, fields))

    def _react(self, subject: bytes, fields: dict[str, Any]) -> None:
        if subject.startswith(b"recording.") and self._service:
            return
        if subject == b"recording.should_start" and self._recording is None:
            self._start_recording(fields)
        elif subject == b"recording.should_stop" and self._recording is not None:
            path, self._recording = self._recording, None
            self._tell("recording", f"stopped {path}")
            self.notify("recording.stopped", rec_path=path)
        elif subject == b"calibration.should_start" and not self._calibrating:
            self._start_calibration(fields)
        elif subject == b"calibration.should_stop" and self._calibrating:
            self._stop_calibration()
        elif subject == b"start_plugin":
            self._start_plugin(fields.get("name"))
        elif subject == b"frame_publishing.set_format":
            self._set_format(fields.get("format"))

    def _start_recording(self, fields: dict[str, Any]) -> None:
        name = fields.get("session_name")
        if name and isinstance(name, str):
            self._session = name  # and for the recordings after it
        session = self._session
        self._recording = f"/recordings/{session}/{self._recordings:03d}/"
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

    def _start_calibration(self, fields: dict[str, Any]) -> None:
        missing = next((name for name in _HMD_FIELDS if name not in fields), None) if self._service else None
        if missing is not None:
            text = f"Calibration cannot be started without {missing!r}"
            self.log("ERROR", "calibration_choreography.hmd_plugin", text)
            return
        self._calibrating = True
        self._tell("calibration", "started")
        self.notify("calibration.started")

    def _stop_calibration(self) -> None:
        self._calibrating = False
        self.notify("calibration.stopped")
        data = self._calibration_data()
        about = {"gazer_class_name": self._gazer, "timestamp": self._clock.seconds(self._now_ns()), "record": True}
        self._say("start_plugin", name=self._gazer, args={"calib_data": data})
        self._say("calibration.setup.v2", version=2, calib_data=data, **about)
        if self._calibration_error:
            self._tell("calibration", "failed")
            for text in ("Calibration Failed!", self._calibration_error):
                self.log("ERROR", "gaze_mapping.gazer_base", text)
            self.notify("calibration.failed", reason=self._calibration_error, **about)
        else:
            self._tell("calibration", "successful")
            self.notify("calibration.successful", **about)
            models: dict[str, Any] = {name: {} for name in ("left_model", "right_model", "binocular_model")}
            self._say("calibration.result.v2", version=2, params=models, **about)

    def _start_plugin(self, name: object) -> None:
        if name not in self._known:
            self.log("ERROR", self._name, f"Attempt to load unknown plugin: {name!r}")
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
        self._record(stream, device_ns, host_ns, sent=sent, payload=text)

    def _record(
        self, stream: str, device_ns: int, host_ns: int, *, payload: Sequence[float] | str, sent: bool = True
    ) -> None:
        sequence = self._sequences[stream] = self._sequences.get(stream, -1) + 1
        self._truth.record(stream, sequence, device_ns=device_ns, host_ns=host_ns, sent=sent, payload=payload)

    def log(self, level: str, name: str, text: str) -> None:
        """Capture's log is on the backbone, DEBUG included."""
        process = "service" if self._service else "world"
        self._publish(log_record(level, name, text, process, self._started_s))


def _notification(subject: str, fields: dict[str, Any]) -> Message:
    topic = f"notify.{subject}"
    return [topic.encode(), msgspec.msgpack.encode({"subject": subject, **fields, "topic": topic})]


def _fields(payload: bytes) -> dict[str, Any] | None:
    """What a message says. None if it says nothing: what strangers put on the backbone may be anything."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
