"""The one control surface: what the command line, HTTP, ROS and LSL markers can ask of the daemon.

``COMMANDS`` names every command with its arguments. A command for a device is carried out by what its source has put
into ``Device.actions``; a device without it refuses with a sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from bridge import __version__
from bridge.errors import BridgeError, Refused, UnknownCommand
from bridge.loop_lag import LoopLag
from bridge.pipeline import Device, Pipeline
from bridge.sources import Source
from bridge.status import device_problems, device_status, process_status

LATE_S = 0.5  # of the loop: longer than streams are put in order for, and what a person notices


class NoArguments(msgspec.Struct, forbid_unknown_fields=True):
    """status, reload"""


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """record: starts or stops the recording on one device, or on all that there are."""

    action: str
    device: str | None = None
    session: str | None = None


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """event, annotate: a text at a time, which is CLOCK_MONOTONIC (LSL) seconds; None: now."""

    text: str
    device: str | None = None
    host_s: float | None = None


class Calibrate(msgspec.Struct, forbid_unknown_fields=True):
    """calibrate: starts or stops the calibration of one device."""

    action: str
    device: str | None = None


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """set: settings such as {"clock.hold_s": 2.0}, until the bridge ends."""

    settings: dict[str, bool | int | float | str]


# What can be set: nothing that opens the bridge to others or moves its files.
SETTABLE: Final = {
    "clock": ("hold_s", "unlocked", "ping_interval_s", "recording_ping_interval_s"),
    "overload": ("flood_hz",),
    "logging": ("level",),
    "service": ("memory_limit_mb",),
}

COMMANDS: Final[dict[str, type[msgspec.Struct]]] = {
    "status": NoArguments,
    "reload": NoArguments,
    "record": Record,
    "event": Event,
    "annotate": Event,
    "calibrate": Calibrate,
    "set": Settings,
}


class Owner(Protocol):
    """What Control needs of the daemon."""

    pipeline: Pipeline
    lag: LoopLag
    loaded_at: datetime
    reloads: int
    path: str | None

    @property
    def refused(self) -> str | None: ...

    @property
    def sources(self) -> list[Source]: ...

    def problems(self) -> list[str]: ...

    async def reload(self) -> str: ...

    async def set(self, settings: dict[str, dict[str, Any]]) -> str: ...


class Control:
    """Answers questions about a running daemon and carries out commands. Every answer is made of JSON types."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.markers: Callable[[], list[dict[str, Any]]] = list  # what the daemon says of marker streams; none
        self._started_ns = owner.pipeline.now_ns()

    async def request(self, command: str, arguments: dict[str, Any]) -> Any:
        """Carries out a command. Raises UnknownCommand, or BridgeError with a sentence that says why not."""
        kind = COMMANDS.get(command)
        if kind is None:
            raise UnknownCommand(f"unknown command {command[:50]!r}; there are {', '.join(COMMANDS)}")
        try:
            given = msgspec.convert(arguments, kind)
        except msgspec.ValidationError as error:
            raise BridgeError(f"{command}: {error}") from error
        match given:
            case NoArguments():
                return self.status() if command == "status" else {"changes": await self._owner.reload()}
            case Settings(settings=settings):
                return {"changes": await self._set(settings)}
            case Record(action=action) | Calibrate(action=action) if action not in ("start", "stop"):
                raise BridgeError(f"{command}: the action is 'start' or 'stop', not {action[:50]!r}")
            case Record(device=device) | Event(device=device) | Calibrate(device=device):
                return await self._act(command, device, given)

    async def _set(self, settings: dict[str, Any]) -> str:
        tables: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            table, _, key = name.partition(".")
            if key not in SETTABLE.get(table, ()):
                known = ", ".join(f"{table}.{key}" for table, keys in SETTABLE.items() for key in keys)
                raise Refused(f"{name[:50]!r} cannot be set while the bridge runs; these can: {known}")
            tables.setdefault(table, {})[key] = value
        return await self._owner.set(tables)

    async def _act(self, command: str, name: str | None, given: msgspec.Struct) -> dict[str, dict[str, str]]:
        """What the devices answered, by name, under "done" and "refused". Raises Refused when nothing was done."""
        devices = self._owner.pipeline.devices
        if name is not None and name not in devices:
            known = ", ".join(devices) or "none"
            raise Refused(f"there is no device {name[:50]!r}; known are: {known}")
        chosen = [devices[name]] if name is not None else [d for d in devices.values() if command in d.actions]
        # At once: one that does not answer takes seconds. And each for itself: what others do is not undone by it.
        answers = await asyncio.gather(
            *(self._ask(device, command, given) for device in chosen), return_exceptions=True
        )
        done, refused = dict[str, str](), dict[str, str]()
        for device, answer in zip(chosen, answers, strict=True):
            if isinstance(answer, str):
                done[device.descriptor.name] = answer
            elif isinstance(answer, Refused):
                refused[device.descriptor.name] = str(answer)
            else:
                raise answer
        if not done:
            none = f"{command}: no device that is known can do that through the bridge"
            raise Refused("; ".join(refused.values()) or none)
        return {"done": done, "refused": refused}

    async def _ask(self, device: Device, command: str, given: msgspec.Struct) -> str:
        name, action = device.descriptor.name, device.actions.get(command)
        if action is None:
            raise Refused(f"{name}: {command} is not possible with this device ({device.descriptor.model})")
        if not device.connected:
            raise Refused(f"{name}: the device is not there")
        return await action(given)

    def status(self) -> dict[str, Any]:
        """Everything that is known now: devices with clock and streams, sources, sinks, seconds since the start."""
        owner = self._owner
        now_ns = owner.pipeline.now_ns()
        now_s = now_ns / 1e9
        devices = [device_status(device, now_ns, self.sink_names) for device in owner.pipeline.devices.values()]
        return {
            "version": __version__,
            "duration_s": (now_ns - self._started_ns) / 1e9,
            "problems": self._problems(devices, now_s),
            "devices": devices,
            "sources": [{"name": source.name, **source.status()} for source in owner.sources],
            "markers": self.markers(),
            "sinks": self.sink_names,
            "sink_status": [{"name": sink.name, **sink.status()} for sink in owner.pipeline.sinks],
            "loop": {"lag_s": owner.lag.worst_since_s(now_s, 1.0), "worst_lag_s": owner.lag.worst_s},
            "process": process_status(),
            "config": {
                "path": owner.path,
                "loaded_at": owner.loaded_at.astimezone(UTC).isoformat(timespec="seconds"),
                "reloads": owner.reloads,
                "refused": owner.refused,
            },
        }

    def _problems(self, devices: list[dict[str, Any]], now_s: float) -> list[str]:
        """The one that somebody has just made and can mend comes first: the line for systemd has room for one."""
        problems: list[str] = []
        if self._owner.refused is not None:
            first = " ".join(line.strip() for line in self._owner.refused.splitlines()[:2])
            problems.append(f"the configuration was refused, the one of before goes on: {first}")
        problems += [problem for device in devices for problem in device_problems(device)]
        late_s = self._owner.lag.worst_since_s(now_s, 60.0)
        if late_s > LATE_S:
            problems.append(f"this computer is too busy: the bridge was {late_s:.1f} s late in the last minute")
        problems += self._owner.problems()
        return problems

    def summary(self) -> str:
        """One line for a person: how many devices are there, and what is wrong."""
        now_ns = self._owner.pipeline.now_ns()
        devices = [device_status(device, now_ns, ()) for device in self._owner.pipeline.devices.values()]
        there = [device["name"] for device in devices if device["connected"]]
        locked = sum(device["clock"]["state"] == "locked" for device in devices if device["connected"])
        words = f"{len(there)} of {len(devices)} devices there"
        if there:
            words += f" ({', '.join(there[:4])}{', ...' if len(there) > 4 else ''}), {locked} clocks locked"
        words += f", to {' and '.join(self.sink_names)}"
        problems = self._problems(devices, now_ns / 1e9)
        if problems:
            words += f". {problems[0]}" + (f", and {len(problems) - 1} more" if len(problems) > 1 else "")
        return words

    @property
    def sink_names(self) -> list[str]:
        return [sink.name for sink in self._owner.pipeline.sinks]
