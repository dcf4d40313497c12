"""The ROS 2 sink: one managed node for all devices, in a context of its own, without signal handlers.

The loop puts into a queue; one thread publishes, and makes and destroys all publishers; another answers services and
parameters. rclpy is imported by this package alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from rclpy._rclpy_pybind11 import RCLError
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn

from bridge.clock.host import monotonic_ns
from bridge.config import Config
from bridge.config import Ros2Sink as Settings
from bridge.errors import BridgeError, Refused
from bridge.pipeline import ClockEvent, ClockStatus
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.node import Spinner, join
from bridge.sinks.ros2.parameters import Parameters
from bridge.sinks.ros2.services import Services
from bridge.sinks.ros2.stage import Ros2Output, Stage, VideoOutput, has_form
from bridge.sinks.ros2.worker import JOIN_TIMEOUT_S, Worker
from bridge.streams import DeviceDescriptor, StreamDescriptor, StreamKind

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 15.0  # a device that is to record takes some seconds to say so
END_S: Final = 1.0  # for a publisher that blocks while the bridge ends
REMAKE: Final = ("frame_prefix", "tf", "tf_gaze")  # settings that topics are made with


class Ros2Sink:
    """Topics by bridge/sinks/ros2/topics.py. ``active`` says whether samples are published now."""

    name = "ros2"

    def __init__(self, config: Settings) -> None:
        """Joins the ROS network. Raises BridgeError where the environment does not let it."""
        self.active = False
        self._context = Context()
        self._node = join(self, self._context, config.namespace, config.node_name)
        try:
            self._parameters = Parameters(self._node, config)
        except BridgeError:
            self._node.destroy_node()
            self._context.try_shutdown()
            raise
        settings = self._parameters.settings
        self._desk = Desk(self._node, settings)
        self._stage = Stage(self._desk)
        self.worker = Worker(settings.queue_size, settings.when_full == "drop_newest")
        self._realtime_steps = 0
        self._asked: set[concurrent.futures.Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        log.info("ROS 2: %s", self._desk.message_packages())
        if settings.lifecycle == "auto" and self._node.trigger_configure() is TransitionCallbackReturn.SUCCESS:
            self._node.trigger_activate()
        self._spinner = Spinner(self._node, self._context)

    # --- the node's transitions, on whichever thread asks for them ---------------------------------------------------

    def configure(self) -> bool:
        done = self._call(self._stage.configure)
        if not done:  # half of it may be
            self._call(self._stage.cleanup)
        return done

    def activate(self) -> bool:
        self.active = True
        return True

    def deactivate(self) -> bool:
        """Nothing is published after it."""
        self.active = False
        done = self._call(lambda: None)
        if not done and not self._ended:
            self.active = True  # as the node, whose state stays
        return done

    def cleanup(self) -> bool:
        self.active = False
        return self._call(self._stage.cleanup)

    def _call(self, work: Callable[[], None]) -> bool:
        return self.worker.call(work, END_S if self._ended else None)

    # --- on the loop ---------------------------------------------------------------------------------------------

    def serve(self, request: Callable[[str, dict[str, Any]], Awaitable[Any]], config: Config) -> None:
        """From now on ROS can set parameters and, if it is allowed to, ask devices for what they can do."""
        loop = asyncio.get_running_loop()

        async def carry_out(command: str, arguments: dict[str, Any]) -> Any:
            return await request(command, arguments)

        def ask(command: str, arguments: dict[str, Any]) -> Any:
            if self._ended:
                raise Refused("the bridge is ending")
            answer = asyncio.run_coroutine_threadsafe(carry_out(command, arguments), loop)
            self._asked.add(answer)
            if self._ended:  # since the look above: nobody else would cancel it
                answer.cancel()
            try:
                return answer.result(ASK_TIMEOUT_S)
            except concurrent.futures.CancelledError as error:
                raise Refused("the bridge is ending") from error
            except TimeoutError as error:
                answer.cancel()
                raise Refused(f"no answer within {ASK_TIMEOUT_S:g} s") from error
            finally:
                self._asked.discard(answer)

        def set_others(settings: dict[str, Any]) -> None:
            ask("set", {"settings": settings})

        async def apply(settings: dict[str, Any]) -> None:
            try:
                await request("set", {"settings": settings})
            except BridgeError as error:
                log.error("ROS 2: parameters that the node was started with are refused: %s", error)

        given = self._parameters.serve(config, set_others, self._settings_changed)
        if given:
            task = loop.create_task(apply(given), name="ros2 parameters")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._parameters.settings.control:
            services = Services(self._desk, ask)

            def offer() -> None:
                self._stage.services = services

            self.worker.put_always(offer)

    def configured(self, config: Config) -> None:
        """The configuration has been loaded anew."""
        for sink in config.sinks:
            if isinstance(sink, Settings):
                self._parameters.mirror(config, sink)
                self._settings_changed()

    def _settings_changed(self) -> None:
        before, settings = self._desk.settings, self._parameters.settings
        self.worker.size = settings.queue_size
        self.worker.drop_newest = settings.when_full == "drop_newest"
        remake = any(getattr(before, key) != getattr(settings, key) for key in REMAKE)

        def change() -> None:
            self._desk.settings = settings
            if remake:
                self._stage.rebuild()

        self.worker.put_always(change)

    def open_device(self, device: DeviceDescriptor) -> None:
        self.worker.put_always(lambda: self._stage.add_device(device))

    def open_stream(self, stream: StreamDescriptor) -> Ros2Output | None:
        if not has_form(stream, self._desk):
            return None
        output = (VideoOutput if stream.kind is StreamKind.VIDEO else Ros2Output)(self, stream)
        self.worker.put_always(lambda: self._stage.add_output(output))
        return output

    def clock_status(self, device: DeviceDescriptor, status: ClockStatus) -> None:
        if not self.worker.alive:
            raise RuntimeError("the thread that publishes to ROS 2 has died of the exception above")
        if not self._spinner.alive:
            raise RuntimeError("the thread of the ROS 2 node has died of the exception above")
        if self.active:  # where there is no room, the next one, a second later, is as good
            self.worker.put_rare(lambda: self._stage.clock_status(device, status), share=1)

    def clock_event(self, device: DeviceDescriptor, event: ClockEvent) -> None:
        if self.active:
            self.worker.put_rare(lambda: self._stage.clock_event(device, event))

    def told(self, status: dict[str, Any]) -> None:
        """Once a second: everything that is known."""
        if self.active:
            now_ns = monotonic_ns()
            self.worker.put_rare(lambda: self._publish_status(status, now_ns), share=1)

    def _publish_status(self, status: dict[str, Any], now_ns: int) -> None:
        realtime = self._desk.stamps.realtime
        self._stage.status(status, now_ns)
        if realtime.steps != self._realtime_steps:
            self._realtime_steps = realtime.steps
            log.warning("CLOCK_REALTIME was set by %+.6f s: ROS stamps follow it", realtime.step_ns / 1e9)

    async def close_device(self, device: DeviceDescriptor) -> None:
        closed = asyncio.get_running_loop().create_future()

        def close() -> None:
            self._stage.remove_device(device.name)
            closed.get_loop().call_soon_threadsafe(closed.set_result, None)

        self.worker.put_always(close)  # after what waits
        await asyncio.wait([closed], timeout=JOIN_TIMEOUT_S)
        if not closed.done():
            log.error("ROS 2: the topics of %s are closed later: publishing takes too long", device.name)

    def status(self) -> dict[str, object]:
        return {
            "queued": self.worker.waiting,
            "queue_size": self.worker.size,
            "state": self._node.state,
            "messages": sorted(self._desk.packages),
        }

    def close(self) -> bool:
        """Publishes what is queued, for at most two seconds, then takes the node off the network."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        for answer in list(self._asked):
            answer.cancel()
        self._spinner.close()
        if self.worker.alive:
            with contextlib.suppress(RCLError):  # it is shut down already
                self._node.trigger_shutdown()
        self._stage.close()
        self.worker.close()
        self._node.destroy_node()
        self._context.try_shutdown()
        return True
