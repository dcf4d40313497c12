"""One attached sensor of a Companion device: its three sockets, its controls, and streaming switched on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq

from bridge.errors import MalformedMessage
from bridge.sources.zmqio import ZmqReader
from bridge.wire import ndsi

log = logging.getLogger(__name__)

DATA_HIGH_WATER_MARK = 4_000  # 20 s of gaze at 200 Hz
MAX_MESSAGE_BYTES = 1 << 20
ASK_AGAIN_S = 0.25
ASK_AGAIN_MAX_S = 2.0
ECHO_ANYWAY_S = 2.0


class Sensor:
    """Asks for the controls until they come, and for streaming until it is on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[Any],
        attach: ndsi.Attach,
        *,
        label: str,
        malformed: Counter[str],
        on_data: Callable[[list[bytes]], None] | None,
        on_control: Callable[[ndsi.ControlUpdate], None],
    ) -> None:
        self.attach = attach
        self.streaming = False
        self._attached_at = loop.time()
        self.controls: dict[str, object] = {}
        self._loop = loop
        self._label = label
        self._malformed = malformed
        self._on_control = on_control
        self._ask_again_s = ASK_AGAIN_S
        self._timer: asyncio.TimerHandle | None = None
        self._warned: set[str] = set()
        topic = attach.sensor_uuid.encode()
        self._readers: list[ZmqReader] = []
        self._readers.append(ZmqReader(loop, _subscriber(context, attach.notify_endpoint, topic, 1000), self._notified))
        if on_data is not None and attach.data_endpoint is not None:

            def on_frames(frames: list[bytes]) -> None:
                if frames[0] != topic:
                    return  # subscriptions match by prefix
                if "streaming" not in self.controls:
                    self.streaming = True  # data is the proof, where the control's update was lost
                on_data(frames)

            data = _subscriber(context, attach.data_endpoint, topic, DATA_HIGH_WATER_MARK)
            self._readers.append(ZmqReader(loop, data, on_frames))
        self._wants_streaming = on_data is not None
        self._command = context.socket(zmq.PUSH)
        self._command.setsockopt(zmq.LINGER, 0)
        self._command.setsockopt(zmq.SNDHWM, 100)
        self._command.connect(attach.command_endpoint)
        self._ask()

    def _ask(self) -> None:
        """Asks for what is missing. The first answers are often lost: the subscription may still be on its way."""
        self._timer = None
        if "streaming" not in self.controls and (self._wants_streaming or not self.controls):
            self._send(ndsi.encode_refresh_controls(self.attach.sensor_uuid))
        if self._wants_streaming and not self.streaming:
            self._send(ndsi.encode_set_control(self.attach.sensor_uuid, "streaming", True))
        else:
            return
        self._timer = self._loop.call_later(self._ask_again_s, self._ask)
        self._ask_again_s = min(ASK_AGAIN_MAX_S, self._ask_again_s * 1.5)

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._command.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            log.debug("%s: command not taken, the device does not read", self._label)

    def _notified(self, frames: list[bytes]) -> None:
        try:
            notification = ndsi.parse_notification(frames)
        except MalformedMessage as error:
            self._malformed["notification"] += 1
            log.debug("%s: %s", self._label, error)
            return
        match notification:
            case ndsi.ControlUpdate(control_id=control_id, value=value):
                if value is None and control_id in self.controls:
                    return  # the update is about something else than the value
                self.controls[control_id] = value
                if control_id == "streaming":
                    self._streaming_is(value is True)
                self._on_control(notification)
            case ndsi.ControlRemove(control_id=control_id):
                self.controls.pop(control_id, None)
            case ndsi.ControlError(error_str=text):
                if text not in self._warned and len(self._warned) < 20:
                    self._warned.add(text)
                    log.warning("%s: the device refuses: %s", self._label, text)

    def _streaming_is(self, on: bool) -> None:
        if self.streaming and not on and self._timer is None:
            # Somebody switched it off; the bridge's job is to have it on.
            self._ask_again_s = ASK_AGAIN_S
            self._timer = self._loop.call_later(self._ask_again_s, self._ask)
        self.streaming = on

    @property
    def may_echo(self) -> bool:
        """Whether a ping is worth sending: it streams, or has had the time to and never said."""
        return self.streaming or self._loop.time() - self._attached_at > ECHO_ANYWAY_S

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for reader in self._readers:
            reader.close()
        self._command.close(0)


def _subscriber(context: zmq.Context[Any], endpoint: str, topic: bytes, high_water_mark: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(endpoint)
    return socket
