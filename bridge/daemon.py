"""The daemon: opens the sinks, runs the sources, and stops both in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bridge.clock import ClockSettings
from bridge.clock.host import SuspendWatch, steady_scale
from bridge.config import Config, LslSink, NdsiSource, Ros2Sink
from bridge.control import Control
from bridge.errors import BridgeError, ConfigError
from bridge.names import DeviceNames, default_state_dir
from bridge.pipeline import Pipeline, Sink
from bridge.service import control_socket
from bridge.sources import Source
from bridge.supervisor import supervise

log = logging.getLogger(__name__)

HOST_CLOCKS_S = 0.1
TICK_S = 1.0
NO_RCLPY = (
    "ROS 2: rclpy is not installed, nothing is published there (pip install 'pupil-bridge[ros]', or source a ROS)"
)
NO_ROS = "ROS 2: cannot be started, nothing is published there: %s"


def open_sinks(config: Config) -> list[Sink]:
    """The sinks of the configuration. One that this computer cannot run is said in one line and left out.

    Raises ConfigError when none is left.
    """
    sinks: list[Sink] = []
    for sink in config.sinks:
        if isinstance(sink, LslSink):
            from bridge.sinks import lsl

            sinks.append(lsl.LslSink(sink.max_buffered_s))
        elif (opened := _open_ros2(sink)) is not None:
            sinks.append(opened)
    if not sinks:
        raise ConfigError("no sink can be opened: install what it needs, or configure another one")
    return sinks


def _open_ros2(sink: Ros2Sink) -> Sink | None:
    try:
        from bridge.sinks import ros2
    except ImportError as error:
        if error.name == "rclpy":
            log.warning(NO_RCLPY)
        elif error.name is not None and error.name.startswith("bridge"):
            raise
        else:  # a ROS for another Python, or without the messages that are needed
            log.error(NO_ROS, " ".join(str(error).split()))
        return None
    try:
        return ros2.Ros2Sink(sink.namespace, sink.node_name, sink.queue_size)
    except BridgeError as error:  # a wrong environment; the traceback would say no more
        log.error(NO_ROS, error)
        return None


def make_sources(config: Config) -> list[Source]:
    """The sources of the configuration, not yet running."""
    names = DeviceNames(config.service.state_dir or default_state_dir())
    sources: list[Source] = []
    for source in config.sources:
        if isinstance(source, NdsiSource):
            from bridge.sources import ndsi

            sources.append(ndsi.NdsiDeviceSource(source, config.clock, names))
        else:
            from bridge.sources import pupil_core

            sources.append(pupil_core.PupilCoreDeviceSource(source, config.clock))
    return sources


class Daemon:
    """One run of the bridge. ``control`` answers for as long as it lasts, and once more after it."""

    def __init__(self, config: Config) -> None:
        """Opens the sinks, with the outlets of every configured device.

        Raises ConfigError, and BridgeError when another daemon has the control socket.
        """
        self._config = config
        control_socket.check_free(self.socket_path)  # before there are two outlets of every name
        clock = config.clock
        self._scale = steady_scale()
        self._suspend = SuspendWatch()
        self.pipeline = Pipeline(
            open_sinks(config),
            hold_ns=clock.hold_ns if clock.unlocked == "hold" else 0,
            clock_settings=ClockSettings(ping_interval_ns=clock.ping_interval_ns),
            scale=self._scale,
        )
        self._sources = make_sources(config)
        for source in self._sources:
            source.open(self.pipeline)
        self.control = Control(self.pipeline, self._sources)

    @property
    def socket_path(self) -> Path:
        return self._config.service.socket or control_socket.default_socket_path()

    async def run(self, until: Callable[[], Awaitable[object]]) -> None:
        """Runs until ``until()`` returns, then stops the sources, lets what waits leave, and closes the sinks."""
        try:
            async with control_socket.serve(self.socket_path, self.control):
                log.info(
                    "running: %d sources, sinks %s, control socket %s",
                    len(self._sources),
                    ", ".join(self.control.sink_names),
                    self.socket_path,
                )
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(_first_bug(), name="first bug")]
                    tasks += [group.create_task(supervise(source), name=source.name) for source in self._sources]
                    tasks.append(group.create_task(self._tick(), name="tick"))
                    tasks.append(group.create_task(self._watch_host(), name="host clocks"))
                    await until()
                    for task in tasks:
                        task.cancel()
        finally:
            self.pipeline.close()
            log.info("stopped")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.pipeline.tick()

    async def _watch_host(self) -> None:
        """Reads the host's clocks often: a slew is followed from reading to reading, and a sleep is to be known before
        the first devices answer after it."""
        while True:
            self._scale.read()
            suspended_ns = self._suspend.poll()
            if suspended_ns:
                self.pipeline.host_suspended(suspended_ns)
            await asyncio.sleep(HOST_CLOCKS_S)


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


def raise_file_limit() -> None:
    """Lets this process have as many open files as it may: every sensor, outlet and made-up peer takes some."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS has limits beyond its limits
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def stop_signal() -> None:
    """Returns at the first SIGINT or SIGTERM."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:  # Windows: a handler that only wakes the loop
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    await stopped.wait()


def run_loop(main: Awaitable[None]) -> None:
    """asyncio.run, on a loop that can watch ZeroMQ's descriptors on every system."""

    async def run() -> None:
        await main

    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())
