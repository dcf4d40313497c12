"""What ROS can have devices do, where the configuration allows it (``control = true``). The same as the command line.

For every device, by what it can do: ``<device>/start_recording``, ``stop_recording``, ``start_calibration``,
``stop_calibration`` (std_srvs/Trigger); where pupil_msgs is there ``<device>/record`` (with a name for the session) and
``<device>/send_event`` (at a time). ``start_recording`` and ``stop_recording`` are for all devices at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from std_srvs.srv import Trigger

from bridge.clock.host import sandwich
from bridge.errors import BridgeError
from bridge.sinks.ros2.desk import Desk

NOUNS: Final = {"record": "recording", "calibrate": "calibration"}
Ask = Callable[[str, dict[str, Any]], Any]  # command, arguments -> answer; raises BridgeError


class Services:
    """Made and destroyed on the publishing thread, called on the node's."""

    def __init__(self, desk: Desk, ask: Ask) -> None:
        self._desk = desk
        self._ask = ask
        self._of: dict[tuple[str, str], list[Any]] = {}  # by device ("": all of them) and function

    def offer(self, devices: dict[str, list[str]]) -> None:
        """Offers what these devices can do (device -> functions). Services of what stays are left as they are."""
        wanted = {(device, function) for device, functions in devices.items() for function in functions}
        if any(function == "record" for _, function in wanted):
            wanted.add(("", "record"))
        for gone in self._of.keys() - wanted:
            self._end(gone)
        for device, function in sorted(wanted - self._of.keys()):
            self._of[device, function] = self._made(device, function)

    def close(self) -> None:
        for key in list(self._of):
            self._end(key)

    def _end(self, key: tuple[str, str]) -> None:
        for service in self._of.pop(key):
            self._desk.node.destroy_service(service)

    def _made(self, device: str, function: str) -> list[Any]:
        node, made = self._desk.node, []
        prefix = f"{device}/" if device else ""
        if (noun := NOUNS.get(function)) is not None:
            for action in ("start", "stop"):
                callback = self._trigger(function, device, action)
                made.append(node.create_service(Trigger, f"{prefix}{action}_{noun}", callback))
        if device and "pupil_msgs" in self._desk.packages:
            kinds = import_module("pupil_msgs.srv")
            if function == "record":
                made.append(node.create_service(kinds.Record, f"{prefix}record", self._record(device)))
            elif function == "event":
                made.append(node.create_service(kinds.SendEvent, f"{prefix}send_event", self._event(device)))
        return made

    def _answer(self, response: Any, device: str, command: str, arguments: dict[str, Any]) -> Any:
        if device:
            arguments["device"] = device
        try:
            answers = self._ask(command, arguments)
        except BridgeError as error:
            response.success, response.message = False, str(error)
        else:
            response.success = not answers["refused"]  # by others, where all were asked
            said = [f"{name}: {words}" for name, words in answers["done"].items()]
            response.message = "; ".join([*said, *answers["refused"].values()])
        return response

    def _trigger(self, command: str, device: str, action: str) -> Callable[[Any, Any], Any]:
        return lambda request, response: self._answer(response, device, command, {"action": action})

    def _record(self, device: str) -> Callable[[Any, Any], Any]:
        def record(request: Any, response: Any) -> Any:
            arguments: dict[str, Any] = {"action": "start" if request.start else "stop"}
            if request.session:
                arguments["session"] = request.session
            return self._answer(response, device, "record", arguments)

        return record

    def _event(self, device: str) -> Callable[[Any, Any], Any]:
        def send(request: Any, response: Any) -> Any:
            arguments: dict[str, Any] = {"text": request.text}
            stamp_ns = request.stamp.sec * 1_000_000_000 + request.stamp.nanosec
            if stamp_ns:
                offset_ns, _ = sandwich(time.time_ns)
                arguments["host_s"] = (stamp_ns - offset_ns) / 1e9
            return self._answer(response, device, "event", arguments)

        return send
