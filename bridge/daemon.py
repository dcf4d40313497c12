"""The daemon: opens the sinks, runs the sources, changes both when its configuration does, stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bridge import heap
from bridge.clock import ClockSettings
from bridge.clock.host import SuspendWatch, steady_scale
from bridge.config import ClockConfig, Config
from bridge.config import Source as SourceConfig
from bridge.config_changes import Changes, Key, changes, opening, source_key
from bridge.control import Control
from bridge.errors import BridgeError, OutOfBounds, Refused
from bridge.loop_lag import LoopLag
from bridge.names import DeviceNames, default_state_dir
from bridge.opening import Opened, make_source, open_sinks
from bridge.pipeline import Pipeline, PipelineSettings
from bridge.reloads import Reloads, Settings
from bridge.service import control_socket, logs
from bridge.service.http_life import HttpLife
from bridge.service.markers import MarkerInputs
from bridge.service.notify import Notifier
from bridge.sources import Source
from bridge.status import rss_bytes
from bridge.supervisor import Trouble, supervise

log = logging.getLogger(__name__)

HOST_CLOCKS_S = 0.1
TICK_S = 1.0
TRIM_TICKS = 30


class _Running(NamedTuple):
    source: Source
    task: asyncio.Task[None]


class Daemon:
    """One run of the bridge. ``control`` answers for as long as it lasts, and once more after it."""

    def __init__(
        self,
        config: Config,
        *,
        load: Callable[[Settings], Config] | None = None,
        path: Path | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Opens the sinks, with the outlets of every configured device.

        ``load`` reads the configuration anew for a reload, from ``path``, under what was set since the start. Raises
        ConfigError, and BridgeError when
        another daemon has the control socket.
        """
        self.config = config
        self.path = None if path is None else str(path)
        self.loaded_at = datetime.now(UTC)
        self.reloads = 0
        self.lag = LoopLag()
        self._load = load
        self._notifier = notifier or Notifier()
        self.socket_path = config.service.socket or control_socket.default_socket_path()
        control_socket.check_free(self.socket_path)  # before there are two outlets of every name
        self._scale = steady_scale()
        self._suspend = SuspendWatch()
        opened = open_sinks(config.sinks)
        self._missing_sinks = opened.missing
        self._open_sinks = opened.configs
        self.pipeline = Pipeline(
            opened.sinks,
            settings=_pipeline_settings(config),
            clock_settings=ClockSettings(ping_interval_ns=config.clock.ping_interval_ns),
            scale=self._scale,
        )
        self._names = DeviceNames(config.service.state_dir or default_state_dir())
        self._sources: dict[Key, Source] = {}
        for source_config in config.sources:
            self._open_source(source_config, config.clock)
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._troubles: dict[Key, Trouble] = {}
        self._group: asyncio.TaskGroup
        self._reloads = Reloads(self._reload, self._notifier.reloading, self._reloaded)
        self._status_told = ""
        self._ticks = 0
        self._out_of_files = False  # at the last tick
        self.ended = False  # with everything that it began
        self.control = Control(self)
        self._http = HttpLife(self.control)
        self._markers = MarkerInputs(self.control.request, lambda: self.pipeline.devices)
        self.control.markers = self._markers.status

    @property
    def sources(self) -> list[Source]:
        return list(self._sources.values())

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Runs until ``until()`` returns, then stops the sources, lets what waits leave, and closes the sinks."""
        try:
            with _alone(OutOfBounds):
                await self._run(until)
        finally:
            await self._http.stop()
            self._names.save(at_once=True)
            self.ended = self.pipeline.close() and self._markers.ended
            self._notifier.close()
            log.info("stopped")

    async def _run(self, until: Callable[[], Awaitable[object]]) -> None:
        async with control_socket.serve(self.socket_path, self.control):
            await self._http.serve(self.config.http)
            async with asyncio.TaskGroup() as self._group:
                own = [
                    self._group.create_task(work, name=name)
                    for name, work in (
                        ("first bug", _first_bug()),
                        ("tick", self._tick()),
                        ("host clocks", self._watch_host()),
                        ("markers", self._markers.run(self.config.markers)),
                        ("reload", self._reloads.run()),
                        ("watchdog", self._feed_watchdog()),
                    )
                ]
                for sink in self.pipeline.sinks:
                    sink.serve(self.control.request, self.config)
                for key in self._sources:
                    self._start(key)
                log.info(
                    "running: %d sources, sinks %s, control socket %s",
                    len(self._sources),
                    ", ".join(self.control.sink_names),
                    self.socket_path,
                )
                self._notifier.ready(self.control.summary())
                await until()
                self._notifier.stopping()
                for task in (*own, *self._running.values()):
                    task.cancel()

    def _open_source(self, config: SourceConfig, clock: ClockConfig) -> None:
        source = self._sources[source_key(config)] = make_source(config, clock, self._names)
        source.open(self.pipeline)

    def _start(self, key: Key) -> None:
        source = self._sources[key]
        trouble = self._troubles[key] = Trouble()
        self._running[key] = self._group.create_task(supervise(source, trouble), name=source.name)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.pipeline.tick()
            status = self.control.status()
            for sink in self.pipeline.sinks:
                sink.told(status)
            self._names.save()
            self._watch_memory()
            self._ticks += 1
            if self._ticks % TRIM_TICKS == 0:
                heap.trim()
            if self._notifier.enabled and not self._reloads.busy:
                summary = self.control.summary()
                if summary != self._status_told:
                    self._status_told = summary
                    self._notifier.status(summary)

    async def _watch_host(self) -> None:
        """Reads the host's clocks often: a slew is followed from reading to reading, and a sleep is to be known before
        the first devices answer after it. How late this is tells how late everything is."""
        while True:
            self._scale.read()
            suspended_ns = self._suspend.poll()
            if suspended_ns:
                self.pipeline.host_suspended(suspended_ns)
            wanted_s = time.monotonic() + HOST_CLOCKS_S
            await asyncio.sleep(HOST_CLOCKS_S)
            now_s = time.monotonic()
            self.lag.note(now_s, now_s - wanted_s)

    async def _feed_watchdog(self) -> None:
        interval_s = self._notifier.watchdog_interval_s
        while interval_s is not None:
            self._notifier.watchdog()
            await asyncio.sleep(interval_s)

    def _watch_memory(self) -> None:
        """Raises OutOfBounds beyond the limit. A message of endless parts fills libzmq's memory, which it has no option
        against, and keeps: only a new process is without it."""
        rss = rss_bytes()
        self._out_of_files = rss is None
        rss_mb = 0.0 if rss is None else rss / 1e6
        if rss_mb > self.config.service.memory_limit_mb:
            raise OutOfBounds(
                f"{rss_mb:.0f} MB of memory are in use, more than service.memory_limit_mb: "
                "the bridge ends, to be started again without what fills it"
            )

    def problems(self) -> list[str]:
        """What is wrong with the daemon itself, in sentences."""
        found = [] if self._names.problem is None else [self._names.problem]
        troubles = [
            f"{self._sources[key].name}: {trouble.now}" for key, trouble in self._troubles.items() if trouble.now
        ]
        if self._out_of_files:
            found.append("no file can be opened: the limit of open files is reached (ulimit -n)")
        return [*troubles, *found, *self._missing_sinks, *self._markers.problems()]

    # --- reload -------------------------------------------------------------------------------------------------

    def request_reload(self) -> None:
        """For a signal's handler: reloads soon, and logs what comes of it."""
        if self._load is not None:
            self._reloads.request()

    async def reload(self) -> str:
        """Loads the configuration anew and changes what is different, in words. Devices, sources and sinks that stay
        as they are lose nothing.

        Raises BridgeError when it is refused: then nothing has changed.
        """
        if self._load is None:
            raise Refused("this bridge has no configuration file to load anew")
        return await self._reloads.ask()

    async def set(self, settings: Settings) -> str:
        """Changes settings until the end, in words. Raises BridgeError when they are refused: nothing has changed."""
        if self._load is None:
            raise Refused("this bridge has no configuration file, and no settings that could be changed")
        return await self._reloads.ask(settings)

    @property
    def refused(self) -> str | None:
        """Why the last reload was refused, if it was."""
        return self._reloads.refused

    def _reloaded(self) -> None:
        self._status_told = self.control.summary()
        self._notifier.ready(self._status_told)

    async def _reload(self, settings: Settings) -> str:
        assert self._load is not None
        wanted = await asyncio.to_thread(self._load, settings)
        owners = {name: key for key, source in self._sources.items() for name in source.device_names}
        change = changes(self.config, wanted, self._open_sinks, owners)
        were_open = set(self._open_sinks)
        await self._apply(wanted, change)
        words = change.words
        for sink in change.open_sinks:
            if sink.type not in self._open_sinks:  # that is known only once it has been tried
                words = words.replace(opening(sink.type, sink.type in were_open), f"sink {sink.type} cannot be opened")
        return words

    async def _apply(self, wanted: Config, change: Changes) -> None:
        # What can be refused comes first. ROS and liblsl take a moment to load, which the devices do not wait for.
        kept = len(self._open_sinks) - len(change.close_sinks)
        opened = await asyncio.to_thread(open_sinks, change.open_sinks, required=kept == 0)
        try:
            await self._http.serve(wanted.http)
        except BridgeError:
            for sink in opened.sinks:
                await asyncio.to_thread(sink.close)
            raise
        try:
            await self._carry_out(wanted, change, opened)
        except BridgeError as error:  # half done: only a new process is what the configuration says
            raise RuntimeError("the new configuration is good, but could not be carried out") from error

    async def _carry_out(self, wanted: Config, change: Changes, opened: Opened) -> None:
        for setting in change.later:
            log.warning("%s: takes effect at the next start", setting)
        logs.set_up(wanted.logging.level, wanted.logging.format)
        self.pipeline.clock_settings = msgspec.structs.replace(
            self.pipeline.clock_settings, ping_interval_ns=wanted.clock.ping_interval_ns
        )
        self.pipeline.set_up(_pipeline_settings(wanted))
        for key in change.stop:
            await self._remove(key)
        for kind in change.close_sinks:
            del self._open_sinks[kind]
            await asyncio.to_thread(self.pipeline.remove_sink(kind).close)
        for sink in self.pipeline.sinks:
            sink.configured(wanted)
        for sink in opened.sinks:
            self.pipeline.add_sink(sink)
            sink.serve(self.control.request, wanted)
        self._open_sinks |= opened.configs
        self._open_sinks |= {sink.type: sink for sink in wanted.sinks if sink.type in self._open_sinks}
        self._missing_sinks = opened.missing
        for source in self._sources.values():
            source.set_clock(wanted.clock)
        for ndsi in change.reconfigure:
            await self._sources[source_key(ndsi)].reconfigure(ndsi)
        for config in change.start:
            self._open_source(config, wanted.clock)
            self._start(source_key(config))
        await self._markers.configure(wanted.markers)
        self.config = wanted
        self.loaded_at = datetime.now(UTC)
        self.reloads += 1

    async def _remove(self, key: Key) -> None:
        source, task, _ = self._sources.pop(key), self._running.pop(key), self._troubles.pop(key)
        task.cancel()
        await asyncio.wait([task])
        for name in source.device_names:
            await self.pipeline.remove_device(name)


def _pipeline_settings(config: Config) -> PipelineSettings:
    hold_ns = config.clock.hold_ns if config.clock.unlocked == "hold" else 0
    return PipelineSettings(hold_ns=hold_ns, flood_hz=config.overload.flood_hz)


@contextlib.contextmanager
def _alone(kind: type[BridgeError]) -> Iterator[None]:
    """An error of this kind that ends a task group comes out of it as it is."""
    try:
        yield
    except ExceptionGroup as group:
        found = [error for error in group.exceptions if isinstance(error, kind)]
        if len(found) < len(group.exceptions):
            raise
        raise found[0] from None


async def _first_bug() -> None:
    """Raises the first error of a callback of the loop, which asyncio by itself would log and forget."""
    loop = asyncio.get_running_loop()
    bug: asyncio.Future[None] = loop.create_future()

    def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception) and not bug.done():
            bug.set_exception(error)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(on_error)
    try:
        await bug
    finally:
        loop.set_exception_handler(None)
