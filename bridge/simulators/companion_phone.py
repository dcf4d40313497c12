"""One simulated phone with the Companion app on it, and what may happen to it: it sleeps, restarts, is renamed, leaves.

What a real phone does then is partly unseen. A sleeping app keeps its connections and does nothing; one that is
restarted was ended by the system, without a goodbye, unless one is asked for; a renamed one comes back as another node
with the same sensors, and goes on streaming; one that leaves stops streaming and says goodbye.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_app import CompanionApp
from bridge.simulators.companion_clock import AppClock
from bridge.simulators.companion_options import CompanionOptions
from bridge.simulators.companion_setup import CompanionSockets, make_app, make_clock, make_world, sensor_uuids
from bridge.simulators.truth import TruthWriter
from bridge.simulators.zre_beacon import Beacon
from bridge.simulators.zre_peer import NAME_MAX_BYTES, ZrePeer

_GLASSES = ("gaze", "imu", "scene", "eye1", "eye0")  # what goes when they are unplugged


class Impossible(Exception):
    """What is asked of the phone cannot be now; the sentence says why."""


class Phone:
    """Only the thread that made it may use it. Raises `OSError` or `ValueError` when it cannot be.

    After `rename`, `leave`, `join` and `restart` it has other ``readers``.
    """

    def __init__(
        self, number: int, options: CompanionOptions, context: zmq.Context[Any], beacon: Beacon, started_ns: int
    ) -> None:
        self.number = number
        self.name = options.name
        self.identity = options.zre_uuid or uuid.uuid4()
        self.clean = True  # whether every node that it has had has ended as it should
        self._options = options
        self._context = context
        self._beacon = beacon
        first = make_clock(options, started_ns, number)
        self._clock = AppClock(
            first,
            follows_streaming=options.clock_follows_streaming,
            restart_step_ns=round(options.restart_step_s * 1e9),
        )
        self._world = make_world(options, first.origin_ns)
        self._asleep = False
        self._wakes_ns: int | None = None
        self._truth = TruthWriter(options.truth)
        try:
            self._start(sensor_uuids(options))
            self._appear()
        except BaseException:
            self.close(goodbye=False)
            raise

    def _start(self, uuids: dict[str, str]) -> None:
        self._sockets = CompanionSockets(self._context, self._options)
        self.app: CompanionApp = make_app(self._options, self._sockets, uuids, self._clock, self._world, self._truth)

    def _appear(self) -> None:
        peer = ZrePeer(self._context, self._beacon.where, name=self.name, identity=self.identity, beacon=self._beacon)
        peer.start(wire.GROUP)
        self.app.peer = peer
        self.app.announce()

    def _vanish(self, *, goodbye: bool) -> None:
        peer, self.app.peer = self.app.peer, None
        if peer is not None:
            self.clean = peer.stop(goodbye=goodbye) and self.clean

    def close(self, *, goodbye: bool) -> None:
        """The end of it. A sleeping phone says no goodbye."""
        if hasattr(self, "app"):
            if goodbye and not self._asleep:
                self.app.retire()
            self._vanish(goodbye=goodbye and not self._asleep)
        if hasattr(self, "_sockets"):
            self._sockets.close()
        self._truth.close()

    # --- the loop ---

    @property
    def readers(self) -> list[int]:
        """Descriptors that become readable when `receive` has something; edge-triggered."""
        sockets = [self._sockets.commands] if self.app.peer is None else [self._sockets.commands, self.app.peer.events]
        return [int(each.getsockopt(zmq.FD)) for each in sockets]

    @property
    def alive(self) -> bool:
        return self.clean and (self.app.peer is None or self.app.peer.alive)

    @property
    def next_due_ns(self) -> int | None:
        return self._wakes_ns if self._asleep else self.app.next_due_ns

    def receive(self) -> bool:
        """Take what has come; True when there may be more."""
        return not self._asleep and self.app.receive()

    def turn(self) -> bool:
        """Do what is due. True: it has just woken up, so that there may be something to `receive`."""
        woken = self._asleep and self._wakes_ns is not None and time.monotonic_ns() >= self._wakes_ns
        if woken:
            self.wake()
        if not self._asleep:
            self.app.turn()
        return woken

    # --- what may happen to it ---

    def sleep(self, duration_s: float | None) -> None:
        """Do and answer nothing for so long, or until `wake`."""
        self.need_awake()
        self._asleep = True
        self._wakes_ns = None if duration_s is None else time.monotonic_ns() + round(duration_s * 1e9)
        if self.app.peer is not None:
            self.app.peer.sleep()

    def wake(self) -> None:
        """Go on."""
        if not self._asleep:
            raise Impossible("it does not sleep")
        self._asleep, self._wakes_ns = False, None
        if self.app.peer is not None:
            self.app.peer.wake()
        self.app.wake()

    def need_awake(self) -> None:
        """Raises `Impossible` when it sleeps."""
        if self._asleep:
            raise Impossible("it sleeps")

    def restart(self, *, same_node: bool, same_sensors: bool, goodbye: bool) -> None:
        """The app is ended and started again: other ports, nothing streams, nothing is recorded, another clock."""
        was_in_network = self.app.peer is not None
        if goodbye and not self._asleep:
            self.app.retire()
        uuids = {stream: sensor.uuid for stream, sensor in self.app.sensors.items()}
        refusal = self.app.refusal
        self._vanish(goodbye=goodbye and not self._asleep)
        self._sockets.close()
        self._asleep, self._wakes_ns = False, None
        now_ns = time.monotonic_ns()
        self._clock.restart(now_ns)
        if not same_node:
            self.identity = uuid.uuid4()
        for camera in self._world.cameras.values():
            camera.pause()
        self._start(uuids if same_sensors else sensor_uuids(self._options, fresh=True))
        self.app.refusal = refusal
        self.app.record_clock(now_ns)
        if was_in_network:
            self._appear()

    def rename(self, name: str) -> None:
        """It has another name: a node of another UUID says so, after the old one's goodbye."""
        self.need_awake()
        if len(name.encode(errors="replace")) > NAME_MAX_BYTES:
            raise Impossible(f"a name has at most {NAME_MAX_BYTES} bytes")
        was_in_network = self.app.peer is not None
        self._vanish(goodbye=True)
        self.name, self.identity = name, uuid.uuid4()
        if was_in_network:
            self._appear()

    def leave(self) -> None:
        """NDSI is switched off in the app."""
        self.need_awake()
        if self.app.peer is None:
            raise Impossible("it has left already")
        self.app.stop_streaming()
        self.app.retire()
        self._vanish(goodbye=True)

    def join(self, *, same_node: bool) -> None:
        """NDSI is switched on again."""
        self.need_awake()
        if self.app.peer is not None:
            raise Impossible("it has not left")
        if not same_node:
            self.identity = uuid.uuid4()
        self._appear()

    def detach(self, names: Iterable[str]) -> None:
        """Sensors are unplugged: they stop streaming and are gone."""
        self.need_awake()
        streams = [stream for stream in self._streams(names) if self.app.sensors[stream].attached]
        if not streams:
            raise Impossible("there is no such sensor now")
        self.app.stop_streaming(streams)
        self.app.retire(streams)
        for stream in streams:
            self.app.sensors[stream].attached = False

    def attach(self, names: Iterable[str], *, same_sensors: bool) -> None:
        """Sensors are plugged in again."""
        self.need_awake()
        streams = [stream for stream in self._streams(names) if not self.app.sensors[stream].attached]
        if not streams:
            raise Impossible("they are there")
        for stream in streams:
            sensor = self.app.sensors[stream]
            sensor.attached = True
            if not same_sensors:
                sensor.become(str(uuid.uuid4()))
        self.app.announce(streams)

    def _streams(self, names: Iterable[str]) -> list[str]:
        """The sensors of these streams; "glasses" is all that are in them."""
        wanted = [stream for name in names for stream in (_GLASSES if name == "glasses" else (name,))]
        unknown = [stream for stream in wanted if stream not in self.app.sensors and stream not in _GLASSES]
        if unknown:
            raise Impossible(f"it has no sensor {', '.join(unknown)}; it has {', '.join(self.app.sensors)}")
        return [stream for stream in wanted if stream in self.app.sensors]

    # --- what it is like ---

    def ready(self) -> dict[str, Any]:
        """What there is to know of it when it can be found."""
        sensors = self.app.sensors
        options = self._options
        streams = {
            "gaze": options.gaze_rate,
            "event": options.event_rate,
            "imu": options.imu_rate,
            "scene": options.scene_rate,
        }
        if options.eyes_rate > 0:
            streams |= {"eye0": options.eyes_rate, "eye1": options.eyes_rate}
        return {
            "name": self.name,
            "zre_uuid": str(self.identity),
            # By type: of the cameras the first one, which is the scene's where there is one.
            "sensors": {s.attach.sensor_type: s.uuid for s in reversed(sensors.values())},
            "sensor_uuids": {stream: sensor.uuid for stream, sensor in sensors.items()},
            "streams": streams,
            "clock": self._clock.now.describe(),
            "number": self.number,
            "truth": None if options.truth is None else str(options.truth),
        }

    def state(self) -> dict[str, Any]:
        """How it is now."""
        sensors, hardware = self.app.sensors, self.app.sensors["hardware"].controls
        return {
            "number": self.number,
            "name": self.name,
            "zre_uuid": str(self.identity),
            "in_network": self.app.peer is not None,
            "asleep": self._asleep,
            "sensor_uuids": {stream: sensor.uuid for stream, sensor in sensors.items() if sensor.attached},
            "streaming": [stream for stream, sensor in sensors.items() if sensor.streaming],
            "recording": hardware["local_capture"].value,
            "session_name": hardware["capture_session_name"].value,
            "refuses_recording": self.app.refusal,
            "clock": self._clock.now.describe(),
        }
