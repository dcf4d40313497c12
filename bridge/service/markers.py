"""LSL markers as commands: each stream that is configured is heard, and its markers are carried out on the devices.

    inlet's thread ──bounded──> check ──a bounded queue for each device──> Control.request

The order of a stream's markers is kept for each device, and a device that is slow to answer delays no other one. What
does not fit goes oldest first, and is counted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from bridge.config import MarkerConfig
from bridge.config_changes import spell_marker
from bridge.errors import BridgeError
from bridge.pipeline import Device, Request
from bridge.service import marker_words
from bridge.service.marker_inlet import STOP_S, Heard, MarkerInlet
from bridge.service.quiet import LineBudget

log = logging.getLogger(__name__)

QUEUE: Final = 1000
MAX_SHOWN: Final = 60


class MarkerInputs:
    """All streams that are listened to. One is known by what it listens to: other settings change while it goes on."""

    def __init__(self, request: Request, devices: Callable[[], Mapping[str, Device]]) -> None:
        """``request`` carries out, ``devices`` are those that there are now."""
        self.ended = True  # with every thread that it began
        self._request, self._devices = request, devices
        self._streams: dict[tuple[str, str, str], MarkerStream] = {}
        self._group: asyncio.TaskGroup

    async def run(self, configs: Iterable[MarkerConfig]) -> None:
        """Listens until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                try:
                    await self.configure(configs)
                    await asyncio.Event().wait()
                finally:  # before the group ends, which takes no more tasks then
                    for stream in self._streams.values():
                        stream.close()
        finally:
            await self._join(self._streams.values())

    async def configure(self, configs: Iterable[MarkerConfig]) -> None:
        """From now on these are listened to. A stream that was before loses no marker."""
        wanted = {config.listens_to: config for config in configs}
        gone = [self._streams.pop(key) for key in list(self._streams) if key not in wanted]
        for key, config in wanted.items():
            stream = self._streams.get(key)
            if stream is None:
                stream = self._streams[key] = MarkerStream(config, self._request, self._devices, self._group)
                stream.inlet.start()
            stream.config = config
        for stream in gone:
            stream.close()
        await self._join(gone)

    async def _join(self, streams: Iterable[MarkerStream]) -> None:
        """Waits until threads that were asked to end have. One that has not is left: liblsl does not return to it."""
        deadline_s = asyncio.get_running_loop().time() + STOP_S
        for stream in list(streams):
            try:
                async with asyncio.timeout_at(deadline_s):
                    await stream.ended.wait()
                stream.inlet.join()
            except TimeoutError:
                log.error("marker stream %s: is still listened to after %g s", stream.name, STOP_S)
                self.ended = False

    def status(self) -> list[dict[str, Any]]:
        """What is known of every stream, JSON types only."""
        return [stream.status() for stream in self._streams.values()]

    def problems(self) -> list[str]:
        """What is wrong, in sentences. A stream that is not there is none: programs come and go."""
        problems = [(stream.name, stream.inlet.now.problem) for stream in self._streams.values()]
        return [f"marker stream {name}: {problem}" for name, problem in problems if problem is not None]


class MarkerStream:
    """One stream: what has come of its markers. All but ``heard`` and ``bug`` is the loop's."""

    def __init__(
        self,
        config: MarkerConfig,
        request: Request,
        devices: Callable[[], Mapping[str, Device]],
        group: asyncio.TaskGroup,
    ) -> None:
        self.config = config
        self.name = spell_marker(config)
        self.ended = asyncio.Event()
        self.inlet = MarkerInlet(config.listens_to, self.heard, self.bug, lambda: self._call(self.ended.set))
        self._request, self._devices, self._group = request, devices, group
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._arrived: deque[Heard] = deque()
        self._closed = False
        self._called = False  # so that the loop gets one callback for whatever has come meanwhile
        self._overrun = 0
        self._lanes: dict[str, deque[marker_words.Asked]] = {}  # by device, while there is something to do for it
        self._counts = Counter[str]()
        self._refused = Counter[str]()
        self._last_error: str | None = None
        self._warned: set[str] = set()  # devices and reasons, until all is well again
        self._lines = LineBudget()

    # --- the inlet's thread ---------------------------------------------------------------------------------------

    def heard(self, markers: list[Heard]) -> None:
        with self._lock:
            self._arrived.extend(markers)
            while len(self._arrived) > QUEUE:
                self._arrived.popleft()
                self._overrun += 1
            if self._called:
                return
            self._called = True
        self._call(self._take)

    def bug(self, error: Exception) -> None:
        def raise_it() -> None:
            raise error

        self._call(raise_it)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop has ended, and did not get this thread to
            log.debug("marker stream %s: nobody is there to be told", self.name)

    # --- the loop -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes no more markers, and asks the thread to end. What was taken before is carried out."""
        self._closed = True
        self.inlet.stop()

    def _take(self) -> None:
        with self._lock:
            self._called = False
            markers, self._arrived = self._arrived, deque()
            dropped, self._overrun = self._overrun, 0
        if self._closed:
            return
        self._counts["taken"] += len(markers) + dropped
        self._drop(dropped)
        now_s = time.monotonic()
        for marker in markers:
            self._sort(marker, now_s)

    def _sort(self, marker: Heard, now_s: float) -> None:
        """Puts a marker into the queues of its devices, or refuses it."""
        self._counts["cut"] += marker.cut
        fault = marker_words.moment_fault(marker.host_s, now_s)
        if fault is not None:
            return self._refuse("time", f"{_shown(marker.text)}: {fault}")
        if not marker.text:
            return self._refuse("empty", "a marker has no text")
        if self.config.does == "events":
            asked: marker_words.Asked | None = marker_words.event(marker.text, marker.host_s)
        else:
            asked = marker_words.command(marker.text, marker.host_s)
        if asked is None:
            known = ", ".join(marker_words.COMMANDS)
            return self._refuse("unknown", f"{_shown(marker.text)} is no command; there are {known}")
        names = self.config.devices or [
            name for name, device in self._devices().items() if asked.command in device.actions
        ]
        if not names:
            return self._refuse("no_device", f"{asked.command}: no device that is known can do that")
        for name in names:
            lane = self._lanes.get(name)
            if lane is None:
                lane = self._lanes[name] = deque()
                self._group.create_task(self._work(name, lane), name=f"markers {self.config.stream} {name}")
            elif len(lane) >= QUEUE:
                lane.popleft()
                self._drop(1)
            lane.append(asked)
        return None

    async def _work(self, name: str, lane: deque[marker_words.Asked]) -> None:
        """Asks a device for one thing after the other, until nothing waits."""
        while lane:
            command, arguments = lane.popleft()
            try:
                answer = await self._request(command, {**arguments, "device": name})
            except BridgeError as error:
                words = str(error)
                self._refuse(name, words if words.startswith(f"{name}: ") else f"{name}: {words}")
            else:
                self._counts["done"] += 1
                self._warned.discard(name)
                level = logging.DEBUG if command in ("event", "annotate") else self._lines.level(logging.INFO)
                action = arguments.get("action", "")
                words = f"{name}: {answer['done'][name]}"
                log.log(level, "marker stream %s: %s %s: %s", self.name, command, action, words)
        del self._lanes[name]  # nothing was awaited since it was seen to be empty

    def _drop(self, count: int) -> None:
        if count:
            self._counts["dropped"] += count
            self._complain("dropped", f"more markers than devices can take: {count} of the oldest dropped")

    def _refuse(self, reason: str, words: str) -> None:
        self._refused[reason] += 1
        self._complain(reason, words)

    def _complain(self, reason: str, words: str) -> None:
        """Warns once, and of a device again when it has done something meanwhile."""
        self._last_error = words
        level = logging.DEBUG if reason in self._warned else self._lines.level(logging.WARNING)
        self._warned.add(reason)
        log.log(level, "marker stream %s: %s", self.name, words)

    def status(self) -> dict[str, Any]:
        """Counts: ``taken`` markers; ``done`` and ``refused`` once for each device, or by reason where it is none's.

        ``name``: the stream's, with what else it is looked for by.
        """
        now = self.inlet.now
        return {
            "name": self.name,
            "stream": self.config.stream,
            "does": self.config.does,
            "devices": list(self.config.devices),
            "connected": now.connected,
            "source_id": now.source_id,
            "hostname": now.hostname,
            "channels": now.channels,
            "correction_s": now.correction_s,
            "uncertainty_s": now.uncertainty_s,
            "taken": self._counts["taken"],
            "done": self._counts["done"],
            "refused": dict(self._refused),
            "dropped": self._counts["dropped"],
            "cut": self._counts["cut"],
            "waiting": sum(map(len, self._lanes.values())),
            "last_error": self._last_error,
            "problem": now.problem,
        }


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}...")
