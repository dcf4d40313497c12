"""LSL outlets: irregular, stamped by the mapped device time, alive for as long as the daemon is.

Source: protocols and measurements in docs/architecture.md. The streams' names, types and channel orders are what labs
already record; identity never changes, so that a recorder finds a stream again after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from typing import Any

import pylsl

from bridge import __version__
from bridge.clock import Mapped
from bridge.clock.host import sandwich
from bridge.config import Config
from bridge.errors import BridgeError
from bridge.pipeline import ClockEvent, ClockStatus, Request
from bridge.streams import DeviceDescriptor, Frame, Sample, StreamDescriptor

log = logging.getLogger(__name__)

NAN = math.nan
CLOSE_S = 2.5
# Where liblsl looks for its configuration.
API_CFG_FILES = ("lsl_api.cfg", "~/lsl_api/lsl_api.cfg", "/etc/lsl_api/lsl_api.cfg")
SYNC_CHANNELS = (
    ("device_time", "s"),
    ("offset", "s"),
    ("bound", "s"),
    ("precision", "s"),
    ("rtt_min", "s"),
    ("rtt_median", "s"),
    ("drift", "ppm"),
    ("age", "s"),
    ("slew", "s"),
    ("state", "none"),
    ("epoch", "none"),
    ("pings_ok", "none"),
    ("samples_dropped", "none"),
)


class LslOutput:
    """One outlet for one stream of samples."""

    def __init__(self, outlet: pylsl.StreamOutlet, stream: StreamDescriptor, host_to_lsl_ns: int) -> None:
        self.samples_out = 0
        self.dropped: Counter[str] = Counter()
        self._push = outlet.push_sample
        self._newest: tuple[tuple[float, ...], float] | None = None  # of a batch, until it is known whether more comes
        self._batch = False
        self._device_time = stream.device_time
        self._host_to_lsl_ns = host_to_lsl_ns

    def push(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        stamp_s = (host_ns + self._host_to_lsl_ns) * 1e-9
        payload = sample.payload
        if isinstance(payload, str):
            self._push((payload,), stamp_s)
        elif isinstance(payload, Frame):  # pixels never go over LSL
            self._push((float(payload.index), sample.device_ns * 1e-9), stamp_s)
        else:
            values = (*payload, sample.device_ns * 1e-9) if self._device_time else payload
            if self._batch:
                self._push_newest(pushthrough=False)
                self._newest = values, stamp_s
            else:
                self._push(values, stamp_s)
        self.samples_out += 1

    def begin_batch(self) -> None:
        """From now on samples wait for each other in liblsl: its threads are woken once for all of them. That is what a
        push costs where somebody reads."""
        self._batch = True

    def end_batch(self) -> None:
        self._batch = False
        self._push_newest(pushthrough=True)

    def _push_newest(self, *, pushthrough: bool) -> None:
        newest, self._newest = self._newest, None
        if newest is not None:
            self._push(*newest, pushthrough)

    def close(self) -> None:
        """Lets go of the outlet, which ends with the last who holds it."""
        del self._push


class LslSink:
    """All outlets of the daemon."""

    name = "lsl"

    def __init__(self, max_buffered_s: int = 360) -> None:
        quiet()
        self._max_buffered_s = max_buffered_s
        self._outputs: dict[str, list[LslOutput]] = {}  # by device, as the others
        self._sync: dict[str, pylsl.StreamOutlet] = {}
        self._markers: dict[str, pylsl.StreamOutlet] = {}
        self._host_to_lsl_ns = host_to_lsl_ns()

    def serve(self, request: Request, config: Config) -> None:
        """Nobody at LSL can ask for anything yet."""

    def configured(self, config: Config) -> None:
        """Nothing of it can change while outlets are open."""

    def told(self, status: dict[str, Any]) -> None:
        """The Sync streams say it."""

    def open_device(self, device: DeviceDescriptor) -> None:
        self._outputs[device.name] = []
        info = pylsl.StreamInfo(
            f"{device.lsl_prefix}_Sync", "TimeSync", len(SYNC_CHANNELS), 0.0, "double64", f"{device.name}_Sync"
        )
        channels = info.desc().append_child("channels")
        for label, unit in SYNC_CHANNELS:
            channel = channels.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("unit", unit)
            channel.append_child_value("type", "TimeSync")
        _describe_device(info, device)
        self._sync[device.name] = self._outlet(info)
        info = pylsl.StreamInfo(f"{device.lsl_prefix}_Markers", "Markers", 1, 0.0, "string", f"{device.name}_Markers")
        channel = info.desc().append_child("channels").append_child("channel")
        channel.append_child_value("label", "bridge_state")
        channel.append_child_value("type", "Marker")
        _describe_device(info, device)
        self._markers[device.name] = self._outlet(info)

    def _outlet(self, info: pylsl.StreamInfo) -> pylsl.StreamOutlet:
        """Raises BridgeError where liblsl cannot."""
        try:
            return pylsl.StreamOutlet(info, 0, self._max_buffered_s)
        except RuntimeError as error:
            raise BridgeError(
                f"LSL: the outlet {info.name()} cannot be opened: may this process open too few files (ulimit -n)?"
            ) from error

    def open_stream(self, stream: StreamDescriptor) -> LslOutput | None:
        if not stream.lsl:
            return None
        text = not stream.channels
        info = pylsl.StreamInfo(
            stream.lsl_name,
            stream.lsl_type,
            1 if text else len(stream.channels) + stream.device_time,
            0.0,
            "string" if text else "double64",
            stream.source_id,
        )
        _describe_stream(info, stream)
        output = LslOutput(self._outlet(info), stream, self._host_to_lsl_ns)
        self._outputs[stream.device.name].append(output)
        return output

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        row = (
            _seconds(status.device_ns),
            _seconds(status.offset_ns),
            _seconds(status.bound_ns),
            _seconds(status.precision_ns),
            _seconds(status.rtt_min_ns),
            _seconds(status.rtt_median_ns),
            status.drift_ppm,
            _seconds(status.age_ns),
            _seconds(status.slew_ns),
            float(status.state),
            float(status.epoch),
            float(status.pings_accepted),
            float(status.samples_dropped),
        )
        self._sync[device.name].push_sample(row, (status.host_ns + self._host_to_lsl_ns) * 1e-9)

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        self._markers[device.name].push_sample((event.text,), (event.host_ns + self._host_to_lsl_ns) * 1e-9)

    async def close_device(self, device: DeviceDescriptor) -> None:
        await asyncio.to_thread(self._destroy, device.name)

    def _destroy(self, name: str) -> None:
        """Destroys the outlets of a device, about 25 ms each."""
        for output in self._outputs.pop(name):
            output.close()
        del self._sync[name], self._markers[name]

    def status(self) -> dict[str, object]:
        # A list first: a device may be closed in its thread meanwhile.
        outlets = sum(len(outputs) for outputs in list(self._outputs.values())) + len(self._sync) + len(self._markers)
        return {"outlets": outlets}

    def close(self) -> bool:
        """False when liblsl has not let go in time: one datagram of a stranger can keep its threads busy for ever."""
        threads = [
            threading.Thread(target=self._destroy, args=(name,), name=f"lsl close {name}", daemon=True)
            for name in list(self._outputs)
        ]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + CLOSE_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.error("LSL: the outlets have not ended within %g s", CLOSE_S)
            return False
        return True


def host_to_lsl_ns() -> int:
    """What is added to host time to get LSL's. On Linux local_clock() is CLOCK_MONOTONIC, host time itself; elsewhere
    its offset is a constant."""
    if sys.platform.startswith("linux"):
        return 0
    return sandwich(lambda: round(pylsl.local_clock() * 1e9))[0]


def quiet() -> None:
    """Keeps liblsl from writing what strangers ask it for, as they wrote it, to the terminal. Where somebody has
    configured liblsl, it is as they want it."""
    if "LSLAPICFG" not in os.environ and not any(os.path.exists(os.path.expanduser(name)) for name in API_CFG_FILES):
        with contextlib.suppress(AttributeError):  # pylsl < 1.18
            pylsl.set_config_content("[log]\nlevel = -3\n")


def _seconds(value_ns: int | None) -> float:
    return NAN if value_ns is None else value_ns * 1e-9


def _describe_device(info: pylsl.StreamInfo, device: DeviceDescriptor) -> None:
    acquisition = info.desc().append_child("acquisition")
    acquisition.append_child_value("manufacturer", device.manufacturer)
    acquisition.append_child_value("model", device.model)
    acquisition.append_child_value("device_id", device.name)
    acquisition.append_child_value("transport", device.transport)
    if device.session_id:  # lsl-relay's alignment tool knows a recording by it
        acquisition.append_child_value("session_id", device.session_id)
    acquisition.append_child_value("bridge", f"pupil-bridge {__version__}")


def _describe_stream(info: pylsl.StreamInfo, stream: StreamDescriptor) -> None:
    """Metadata by the XDF gaze specification, and what a stamp of this stream means."""
    channels = info.desc().append_child("channels")
    described = [(c.label, c.unit, c.type, c.eye, c.coordinate_system) for c in stream.channels]
    if not stream.channels:
        described.append(("marker", "", "Marker", "", ""))
    elif stream.device_time:
        described.append(("device_time", "seconds", "DeviceTime", "both", ""))
    for label, unit, kind, eye, system in described:
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", unit)
        channel.append_child_value("type", kind)
        channel.append_child_value("metatype", kind)  # the name that lsl-relay wrote
        if eye:
            channel.append_child_value("eye", eye)
        if system:
            channel.append_child_value("coordinate_system", system)
    _describe_device(info, stream.device)
    acquisition = info.desc().child("acquisition")
    if stream.expected_rate_hz is not None:
        acquisition.append_child_value("expected_srate", repr(stream.expected_rate_hz))
    synchronization = info.desc().append_child("synchronization")
    synchronization.append_child_value("offset_mean", "0")
    synchronization.append_child_value("can_drop_samples", "true")
    synchronization.append_child_value("timestamp_source", "device clock")
    synchronization.append_child_value(
        "mapping", "round trips to the device and arrivals from it, followed continuously; see docs/clock.md"
    )
    synchronization.append_child_value("sync_stream", f"{stream.device.lsl_prefix}_Sync")
    synchronization.append_child_value("instant", stream.instant)
    synchronization.append_child_value("latency_subtracted_s", repr(stream.latency_ns * 1e-9))
