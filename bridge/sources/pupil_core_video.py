"""Camera images of one Pupil Capture: on a socket of their own, the latest first, never in the way of gaze.

Source: docs.pupil-labs.com "Network API", and Pupil Capture 3.6. Since Pupil 2.1 frames are sent to whoever subscribes
to them; before, a plugin had to be started. A format that Capture does not know ends it: see wire/pupil_remote.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import zmq

from bridge.clock.host import monotonic_ns
from bridge.config import PupilCoreSource
from bridge.errors import MalformedMessage
from bridge.pipeline import Device
from bridge.sources.pupil_remote import PupilRemote
from bridge.sources.zmqio import Lifeline, subscriber
from bridge.stream_input import StreamInput
from bridge.wire import pupil_core_frames as wire
from bridge.wire import pupil_remote
from bridge.wire.pupil_core import UnknownTopic

log = logging.getLogger(__name__)

HIGH_WATER_MARK = 10  # images that libzmq keeps; the others wait at Capture
MAX_MESSAGE_BYTES = 16 << 20  # 1920 x 1080 as bgr has 6 MB
TURN = 64  # messages that are looked at before gaze has its turn
KEPT = 8  # images of a camera that are taken in one turn: the latest, and 40 ms at 200 Hz for a loop that was late
PLUGIN_PATIENCE_S = 1.5  # without a frame, the plugin of old Captures is started
PATIENCE_S = 5.0  # without a frame of a camera, that is said


class LatestReader:
    """Hands on the latest messages of each topic, and closes the socket in the end.

    What is superseded is never copied. The descriptor is edge-triggered: it is read until nothing is left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        on_frames: Callable[[list[bytes], int], None],
        on_superseded: Callable[[bytes], None],
    ) -> None:
        """``on_frames`` gets a message and when it was received, ``on_superseded`` the topic of one that was not
        taken."""
        self.socket = socket
        self._loop = loop
        self._on_frames = on_frames
        self._on_superseded = on_superseded
        self._fd = int(socket.getsockopt(zmq.FD))
        loop.add_reader(self._fd, self._take)
        self._again: asyncio.Handle | None = loop.call_soon(self._take)

    def _take(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        latest: dict[bytes, deque[tuple[list[zmq.Frame], int]]] = {}
        for _ in range(TURN):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            topic = parts[0].bytes
            kept = latest.setdefault(topic, deque(maxlen=KEPT))
            if len(kept) == KEPT:
                self._on_superseded(topic)
            kept.append((parts, monotonic_ns()))
        else:
            self._again = self._loop.call_soon(self._take)
        for kept in latest.values():
            for parts, received_ns in kept:
                self._on_frames([part.bytes for part in parts], received_ns)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.socket.close(0)


class PupilCoreVideo:
    """The cameras that are read, for as long as one connection lasts."""

    def __init__(
        self,
        context: zmq.Context[Any],
        backbone: str,
        config: PupilCoreSource,
        device: Device,
        streams: dict[str, StreamInput],
        counts: Counter[str],
        *,
        by_plugin: bool,
    ) -> None:
        """``streams`` by camera; ``counts`` goes to the status; ``by_plugin``: frames need a plugin, as before Pupil
        2.1. Raises zmq.ZMQError without a file descriptor."""
        loop = asyncio.get_running_loop()
        self._config = config
        self._device = device
        self._streams = streams
        self._counts = counts
        self.last_frame_ns = 0
        self._by_plugin = by_plugin
        self._started_ns = monotonic_ns()
        self._missing = set(streams)
        self._other_format = False
        self._asked_format = False
        self._asked_plugin = False
        self._said_size = False
        topics = [topic for topic, camera in wire.CAMERAS.items() if camera in streams]
        socket = subscriber(context, backbone, topics, HIGH_WATER_MARK, MAX_MESSAGE_BYTES)
        self._reader = LatestReader(loop, socket, self._on_frame, self._on_superseded)
        try:
            self._lifeline = Lifeline(loop, socket, backbone)
        except zmq.ZMQError:
            self._reader.close()
            raise

    def close(self) -> None:
        self._lifeline.close()
        self._reader.close()

    def _on_frame(self, frames: list[bytes], received_ns: int) -> None:
        try:
            received = wire.decode_frame(frames)
        except MalformedMessage as error:
            unknown = isinstance(error, UnknownTopic)
            self._device.malformed["topics_unknown" if unknown else "frames_malformed"] += 1
            return
        self.last_frame_ns = received_ns
        self._missing.discard(received.camera)
        frame = received.frame
        self._other_format = frame.format != self._config.frame_format
        if received.camera == "scene" and (frame.width_px, frame.height_px) != self._config.scene_size:
            self._other_size(frame.width_px, frame.height_px)
        self._streams[received.camera].sample(received.timestamp_ns, received_ns, frame)

    def _on_superseded(self, topic: bytes) -> None:
        if (camera := wire.CAMERAS.get(topic)) is not None:
            self._streams[camera].dropped["superseded"] += 1

    def _other_size(self, width_px: int, height_px: int) -> None:
        self._counts["scene_size_differs"] += 1
        if self._said_size:
            return
        self._said_size = True
        name, (wide, high) = self._config.name, self._config.scene_size
        text = "%s: the scene camera's pictures are %d x %d, but scene_size is %d x %d: gaze in pixels is wrong"
        log.warning(text, name, width_px, height_px, wide, high, extra={"DEVICE": name})

    async def attend(self, remote: PupilRemote) -> None:
        """Asks for what does not come, each thing once; to be called often. Raises NoAnswer."""
        waited_s = (monotonic_ns() - self._started_ns) / 1e9
        if self._by_plugin and not self.last_frame_ns and waited_s > PLUGIN_PATIENCE_S and not self._asked_plugin:
            self._asked_plugin = True
            await remote.ask(*pupil_remote.start_plugin(pupil_remote.FRAME_PLUGIN))
        if self._other_format and not self._asked_format:
            self._asked_format = True
            await remote.ask(*pupil_remote.set_frame_format(self._config.frame_format))
        if self._missing and waited_s > PATIENCE_S:
            name, missing, self._missing = self._config.name, sorted(self._missing), set[str]()
            text = "%s: no pictures come of %s: are these cameras on, and can they be sent as %s?"
            log.warning(text, name, ", ".join(missing), self._config.frame_format, extra={"DEVICE": name})
