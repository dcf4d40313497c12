"""What the simulated Pupil Remote answers, without sockets.

Source: the behaviour of Pupil Capture 3.6.14: the request's first letter decides for ``R r T t v``, the whole
request for the others; an empty or undecodable one raises in Capture's thread, which ends Pupil Remote for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_world import World


class PupilRemote:
    """Capture's side of the requests; ``alive`` is False after death."""

    def __init__(
        self,
        clock: PupilClock,
        version: str,
        sub_port: int,
        pub_port: int,
        world: World,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.alive = True
        self._clock = clock
        self._version = version
        self._ports = {"SUB_PORT": str(sub_port), "PUB_PORT": str(pub_port)}
        self._world = world
        self._now_ns = now_ns

    def answer(self, frames: Sequence[bytes], reply: Callable[[bytes], object]) -> None:
        """Serve one request: call ``reply`` once, log the exchange; or die of it and call nothing."""
        try:
            request = frames[0].decode()
        except UnicodeDecodeError:
            request = ""
        if not request:
            self.alive = False
            return
        if len(frames) > 1:
            self._world.forward(list(frames))
            response = "Message forwarded."
        elif request in self._ports:
            response = self._ports[request]
        elif request.startswith("T"):
            response = self._set_time(request[2:])
        elif request.startswith("t"):
            # Read here and not earlier: nothing but the reply comes after.
            response = repr(self._clock.seconds(self._now_ns()))
        elif request.startswith("v"):
            response = self._version
        else:
            response = self._command(request)
        reply(response.encode())
        self._world.log(
            "DEBUG", "network_api.controller.pupil_remote_controller", f"Request: '{request}', Response: '{response}'"
        )

    def _set_time(self, argument: str) -> str:
        try:
            target_ns = round(float(argument) * 1e9)
        except (ValueError, OverflowError):
            return f"'{argument}' cannot be converted to float."
        self._world.step_clock(self._now_ns(), target_ns)
        return "Timesync successful."

    def _command(self, request: str) -> str:
        if request.startswith("R"):
            self._world.notify("recording.should_start", session_name=request[2:])
        elif request.startswith("r"):
            self._world.notify("recording.should_stop")
        elif request in ("C", "c"):
            self._world.notify("calibration.should_start" if request == "C" else "calibration.should_stop")
        else:
            return "Unknown command."
        return "OK"
