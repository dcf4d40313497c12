"""One attached sensor of a Companion device: its three sockets, its controls, and streaming switched on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import zmq

from bridge.errors import MalformedMessage
from bridge.service.quiet import LineBudget
from bridge.sources.zmqio import ZmqReader, subscriber
from bridge.wire import ndsi, ndsi_media

log = logging.getLogger(__name__)

DATA_HIGH_WATER_MARK = 4_000  # 20 s of gaze at 200 Hz
# A phone that sends more is not heard again before its sensor is attached anew: libzmq gives the connection up.
MAX_DATUM_BYTES = 16 << 10  # an event's text has at most 4096, a batch of the IMU 2560
# A camera's frames are large and soon old. Some more may wait in the system's buffers and at the phone.
FRAMES_HIGH_WATER_MARK = 8
MAX_FRAME_BYTES = ndsi_media.FRAME_MAX_BYTES + (1 << 10)  # one that is a little too large is counted
NOTIFICATIONS_HIGH_WATER_MARK = 200
MAX_NOTIFICATION_BYTES = 2 * ndsi.NOTIFICATION_MAX_BYTES
ASK_AGAIN_S = 0.25
ASK_AGAIN_MAX_S = 2.0
ECHO_ANYWAY_S = 2.0
MAX_CONTROLS = 64  # kept of a sensor, whatever it sends
MAX_VALUE_CHARS = 1024
MAX_REFUSAL_CHARS = 200
HOST = re.compile(r"tcp://(.+):[0-9]+")

Notification = ndsi.ControlUpdate | ndsi.ControlRemove | ndsi.ControlError


def check_endpoints(attach: ndsi.Attach, own_address: str) -> None:
    """Raises MalformedMessage unless all endpoints are IPv4 addresses that a phone can have.

    libzmq looks up host names in the one thread that moves all data: a name server that does not answer silenced
    every device for ten seconds, again and again. Services of this computer are none of a stranger's business, unless
    the bridge (at ``own_address``) listens on loopback, where simulated phones are.
    """
    for endpoint in (attach.notify_endpoint, attach.command_endpoint, attach.data_endpoint):
        if endpoint is None:
            continue
        match = HOST.fullmatch(endpoint)
        try:
            address = IPv4Address(match[1] if match else "")
        except ValueError as error:
            raise MalformedMessage(f"NDSI endpoint is not at an IPv4 address: {endpoint!r}") from error
        foreign_loopback = address.is_loopback and not IPv4Address(own_address).is_loopback
        if foreign_loopback or address.is_unspecified or address.is_multicast or address.is_reserved:
            raise MalformedMessage(f"NDSI endpoint is not at a phone's address: {endpoint!r}")


class Sensor:
    """Asks for the controls until they come, and for streaming until it is on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[Any],
        attach: ndsi.Attach,
        *,
        device: str,
        malformed: Counter[str],
        lines: LineBudget,
        on_data: Callable[[list[bytes]], None] | None,
        on_control: Callable[[ndsi.ControlUpdate], None],
    ) -> None:
        """Raises zmq.ZMQError when there are no file descriptors left."""
        self.attach = attach
        self.streaming = False
        self._attached_at = loop.time()
        self.controls: dict[str, object] = {}
        self.watchers: set[Callable[[Notification | None], None]] = set()  # of what it says; None: it has been closed
        self._loop = loop
        self._device = device
        self._label = f"{device} {attach.sensor_name!r}"
        self._malformed = malformed
        self._lines = lines
        self._on_control = on_control
        self._ask_again_s = ASK_AGAIN_S
        self._timer: asyncio.TimerHandle | None = None
        self._warned: set[str] = set()
        self._wants_streaming = on_data is not None
        self._readers: list[ZmqReader] = []
        self._command: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        try:
            self._connect(context, on_data)
        except zmq.ZMQError:
            self.close()
            raise
        self._ask()

    def _connect(self, context: zmq.Context[Any], on_data: Callable[[list[bytes]], None] | None) -> None:
        attach, topic = self.attach, self.attach.sensor_uuid.encode()

        def notified(frames: list[bytes]) -> None:
            if frames[0] == topic:  # subscriptions match by prefix
                self._notified(frames)

        notifications = subscriber(
            context, attach.notify_endpoint, [topic], NOTIFICATIONS_HIGH_WATER_MARK, MAX_NOTIFICATION_BYTES
        )
        self._readers.append(ZmqReader(self._loop, notifications, notified))
        if on_data is not None and attach.data_endpoint is not None:

            def on_frames(frames: list[bytes]) -> None:
                if frames[0] != topic:
                    return
                if "streaming" not in self.controls:
                    self.streaming = True  # data is the proof, where the control's update was lost
                on_data(frames)

            bounds = (DATA_HIGH_WATER_MARK, MAX_DATUM_BYTES)
            if attach.sensor_type == "video":
                bounds = (FRAMES_HIGH_WATER_MARK, MAX_FRAME_BYTES)
            data = subscriber(context, attach.data_endpoint, [topic], *bounds)
            self._readers.append(ZmqReader(self._loop, data, on_frames))
        self._command.setsockopt(zmq.LINGER, 0)
        self._command.setsockopt(zmq.SNDHWM, 100)
        self._command.connect(attach.command_endpoint)

    def _ask(self) -> None:
        """Asks for what is missing. The first answers are often lost: the subscription may still be on its way."""
        self._timer = None
        if self._wants_streaming:
            missing = not self.streaming
            if "streaming" not in self.controls:
                self.send(ndsi.encode_refresh_controls(self.attach.sensor_uuid))
            if missing:
                self.send(ndsi.encode_set_control(self.attach.sensor_uuid, "streaming", True))
        else:
            missing = not self.controls
            if missing:
                self.send(ndsi.encode_refresh_controls(self.attach.sensor_uuid))
        if not missing:
            return
        self._timer = self._loop.call_later(self._ask_again_s, self._ask)
        self._ask_again_s = min(ASK_AGAIN_MAX_S, self._ask_again_s * 1.5)

    def send(self, frames: list[bytes]) -> None:
        """A command. One that the device does not take now is lost."""
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
        self._take(notification)
        for watcher in tuple(self.watchers):
            watcher(notification)

    def _take(self, notification: Notification) -> None:
        match notification:
            case ndsi.ControlUpdate(control_id=control_id, value=value):
                if value is None and control_id in self.controls:
                    return  # the update is about something else than the value
                self._keep(control_id, value)
                if control_id == "streaming":
                    self._streaming_is(value is True)
                self._on_control(notification)
            case ndsi.ControlRemove(control_id=control_id):
                self.controls.pop(control_id, None)
            case ndsi.ControlError(error_str=text):
                text = text[:MAX_REFUSAL_CHARS]
                if text not in self._warned and len(self._warned) < 20:
                    self._warned.add(text)
                    level = self._lines.level(logging.WARNING)
                    fields = {"DEVICE": self._device, "STREAM": self.attach.sensor_type}
                    log.log(level, "%s: the device refuses: %r", self._label, text, extra=fields)

    def _keep(self, control_id: str, value: object) -> None:
        if control_id in self.controls or control_id == "streaming" or len(self.controls) < MAX_CONTROLS:
            self.controls[control_id] = value[:MAX_VALUE_CHARS] if isinstance(value, str) else value

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
        for watcher in tuple(self.watchers):
            watcher(None)
