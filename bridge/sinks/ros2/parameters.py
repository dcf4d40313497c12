"""The node's parameters: the settings of the configuration that ROS users reach for, with their ranges.

Those of the ROS sink itself are the sink's own; the others (clock.hold_s and so on) are set through the daemon, which
checks them as it checks its file. What ROS sets counts above the file, until the bridge ends.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from bridge.config import ClockConfig, Config, LoggingConfig, OverloadConfig, Ros2Sink, ServiceConfig
from bridge.errors import BridgeError
from bridge.sinks.ros2.node import NO_SIM_TIME

log = logging.getLogger(__name__)

OWN: Final = {
    "timestamp_mode": "Which time headers have: the device's on this computer's clock, the device's own, or arrival.",
    "queue_size": "How many messages may wait when ROS is slow.",
    "when_full": "What goes when that many wait; it is counted.",
    "bound_warn_ms": "Beyond so many milliseconds of error bound, /diagnostics warns.",
    "frame_prefix": "What stands before the name of every frame.",
    "tf": "Whether the scene cameras' places are told on /tf_static.",
    "tf_gaze": "Whether the gaze is told on /tf.",
    "lifecycle": "auto: the node configures and activates itself. manual: it waits to be told.",
    "control": "Whether services may start and stop recordings and calibrations and send events.",
}
AT_START_ONLY: Final = ("lifecycle", "control")
OTHERS: Final[dict[str, tuple[type[BaseModel], str]]] = {
    "clock.hold_s": (ClockConfig, "For how many seconds samples wait for a clock's lock."),
    "clock.unlocked": (ClockConfig, "What happens to samples until then: hold or drop."),
    "clock.ping_interval_s": (ClockConfig, "Seconds between two measurements of a clock."),
    "clock.recording_ping_interval_s": (ClockConfig, "The same while the device itself records."),
    "overload.flood_hz": (OverloadConfig, "How many samples a second of one stream are taken."),
    "logging.level": (LoggingConfig, "How much the bridge logs."),
    "service.memory_limit_mb": (ServiceConfig, "Beyond so much memory, in MB, the bridge ends to be started again."),
}


class Allowed(NamedTuple):
    least: float | None
    most: float | None
    words: tuple[str, ...]


class Parameters:
    """Declared on the node when the sink opens; ``settings`` are the sink's, with what ROS was started with."""

    def __init__(self, node: Node, config: Ros2Sink) -> None:
        """Raises BridgeError where ROS was started with a value that is not possible."""
        self._node = node
        self._given: dict[str, Any] = {}  # the sink's own settings that ROS has set
        self._config = config
        self._mirroring_thread: int | None = None
        self._set_others: Callable[[dict[str, Any]], None] | None = None
        self._changed: Callable[[], None] | None = None
        for key, words in OWN.items():
            value = self._declare(key, getattr(config, key), Ros2Sink, key, words, read_only=key in AT_START_ONLY)
            if value != getattr(config, key):
                self._given[key] = value
        self.settings = self._with(self._given)
        node.add_on_set_parameters_callback(self._on_set)

    def serve(
        self, config: Config, set_others: Callable[[dict[str, Any]], None], changed: Callable[[], None]
    ) -> dict[str, Any]:
        """From now on parameters can be set. ``set_others`` raises BridgeError; ``changed``: the settings have.

        Returns what ROS was started with of the settings that are not the sink's own.
        """
        wanted: dict[str, Any] = {}
        for name, (model, words) in OTHERS.items():
            if self._node.has_parameter(name):
                continue
            table, key = name.split(".")
            value = getattr(getattr(config, table), key)
            with self._by_the_bridge():
                try:
                    given = self._declare(name, value, model, key, words)
                except BridgeError as error:
                    log.error("ROS 2: %s; the configuration's counts", " ".join(str(error).split()))
                    given = self._declare(name, value, model, key, words, overridden=False)
            if given != value:
                wanted[name] = given
        self._set_others, self._changed = set_others, changed
        return wanted

    def mirror(self, config: Config, sink: Ros2Sink) -> None:
        """Shows a configuration that has been loaded anew; what ROS has set stays."""
        self._config = sink
        self.settings = self._with(self._given)
        shown = {key: getattr(self.settings, key) for key in OWN if key not in AT_START_ONLY}
        for name in OTHERS:
            table, key = name.split(".")
            shown[name] = getattr(getattr(config, table), key)
        with self._by_the_bridge():
            self._node.set_parameters(
                [
                    Parameter(name, value=value)
                    for name, value in shown.items()
                    if self._node.has_parameter(name) and self._node.get_parameter(name).value != value
                ]
            )

    @contextlib.contextmanager
    def _by_the_bridge(self) -> Iterator[None]:
        """What this thread sets is to be shown, and not to be done."""
        self._mirroring_thread = threading.get_ident()
        try:
            yield
        finally:
            self._mirroring_thread = None

    def _declare(
        self,
        name: str,
        value: Any,
        model: type[BaseModel],
        key: str,
        words: str,
        *,
        read_only: bool = False,
        overridden: bool = True,
    ) -> Any:
        """Returns what ROS was started with, if that is to count (``overridden``), else ``value``."""
        limits = allowed(model, key)
        described = ParameterDescriptor(description=words, read_only=read_only)
        if limits.words:
            described.additional_constraints = f"one of {', '.join(limits.words)}"
        if limits.least is not None and limits.most is not None:
            least, most = limits.least, limits.most
            if isinstance(value, int):
                described.integer_range = [IntegerRange(from_value=int(least), to_value=int(most))]
            else:
                described.floating_point_range = [FloatingPointRange(from_value=float(least), to_value=float(most))]
        try:
            return self._node.declare_parameter(name, value, described, ignore_override=not overridden).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise BridgeError(f"parameter {name}: {error}") from error

    def _with(self, given: dict[str, Any]) -> Ros2Sink:
        """The sink's settings with these. Raises BridgeError for what is not possible."""
        try:
            return Ros2Sink.model_validate({**self._config.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise BridgeError(f"parameter {'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        """In ROS' own thread. All of them or none."""
        if self._mirroring_thread == threading.get_ident():
            return SetParametersResult(successful=True)
        if any(parameter.name == "use_sim_time" and parameter.value for parameter in parameters):
            return SetParametersResult(successful=False, reason=NO_SIM_TIME)
        own = {parameter.name: parameter.value for parameter in parameters if parameter.name in OWN}
        others = {parameter.name: parameter.value for parameter in parameters if parameter.name in OTHERS}
        if not own and not others:
            return SetParametersResult(successful=True)
        if self._set_others is None or self._changed is None:
            return SetParametersResult(successful=False, reason="the bridge is starting")
        try:
            self._with({**self._given, **own})
            if others:
                self._set_others(others)
            settings = self._with({**self._given, **own})  # the file may have been loaded anew meanwhile
        except BridgeError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if own:
            self._given.update(own)
            self.settings = settings
            self._changed()
        return SetParametersResult(successful=True)


def allowed(model: type[BaseModel], key: str) -> Allowed:
    """What the configuration's model allows."""
    field = model.model_fields[key]
    least = most = None
    for rule in field.metadata:
        match rule:
            case Ge(ge=limit) | Gt(gt=limit):
                least = limit
            case Le(le=limit) | Lt(lt=limit):
                most = limit
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return Allowed(least, most, words)  # type: ignore[arg-type]
