"""The ROS node: managed (lifecycle), with a thread of its own that answers services and sets parameters.

Publishing is another thread's: a service that takes long delays no sample.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle, RCLError, UnknownROSArgsError  # rclpy.exceptions lacks them
from rclpy.context import Context
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from bridge.errors import BridgeError

log = logging.getLogger(__name__)

MAX_DOMAIN_ID = 232  # beyond it a port number is too high, and Fast DDS ends the whole process without a word to Python
JOIN_TIMEOUT_S = 2.0
NO_SIM_TIME = (
    "use_sim_time is not possible: stamps come from this computer's clocks, against which the devices are measured; "
    "a recorded bag is played without the bridge"
)


class Managed(Protocol):
    """What the transitions do. Each says whether it went well."""

    def configure(self) -> bool: ...

    def activate(self) -> bool: ...

    def deactivate(self) -> bool: ...

    def cleanup(self) -> bool: ...


class BridgeNode(LifecycleNode):  # type: ignore[misc]  # rclpy has no types
    """A managed node whose transitions another object carries out."""

    def __init__(self, managed: Managed, context: Context, namespace: str, name: str) -> None:
        self._managed = managed
        self._last_state: str | None = None  # once the node is destroyed
        super().__init__(
            name,
            context=context,
            namespace=namespace,
            parameter_overrides=[Parameter("start_type_description_service", value=False)],
            enable_rosout=False,
        )
        # rclpy raises out of the executor, and never answers, where a transition is not possible in the state.
        service = self._service_change_state
        service.callback = _refusing(service.callback)

    @property
    def state(self) -> str:
        """unconfigured, inactive, active, finalized; or what it is between two of them."""
        if self._last_state is None:
            label: str = self._state_machine.current_state[1]
            return label
        return self._last_state

    def destroy_node(self) -> None:
        super().destroy_node()
        # Which rclpy forgets: the node and its services would stay on the network until Python collects its garbage.
        self._last_state = self.state
        self._state_machine.destroy_when_not_in_use()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("configured", self._managed.configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("active", self._managed.activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("inactive: nothing is published", self._managed.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("unconfigured", self._managed.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("shut down", lambda: self._managed.deactivate() and self._managed.cleanup())

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._carried_out("unconfigured after an error", self._managed.cleanup)

    @staticmethod
    def _carried_out(words: str, work: Callable[[], bool]) -> TransitionCallbackReturn:
        if not work():
            return TransitionCallbackReturn.FAILURE
        log.info("ROS 2: the node is %s", words)
        return TransitionCallbackReturn.SUCCESS


def _refusing(change_state: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RCLError:
            response.success = False
            return response

    return answer


def join(managed: Managed, context: Context, namespace: str, name: str) -> BridgeNode:
    """The node, on the network, unconfigured. Raises BridgeError with what ROS says, in one line."""
    domain_id = os.environ.get("ROS_DOMAIN_ID", "")
    with contextlib.suppress(ValueError):  # of what is no number, ROS says so itself
        if not 0 <= int(domain_id) <= MAX_DOMAIN_ID:
            raise BridgeError(f"ROS_DOMAIN_ID is {domain_id}: it must be from 0 to {MAX_DOMAIN_ID}")
    try:
        rclpy.init(
            # ROS would write a log file for every run, and not start where it cannot (a service has no HOME).
            args=[*sys.argv, "--ros-args", "--disable-external-lib-logs"],
            context=context,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        node = BridgeNode(managed, context, namespace, name)
        if node.get_parameter("use_sim_time").value:
            node.destroy_node()
            raise BridgeError(NO_SIM_TIME)
    except (RCLError, InvalidParameterTypeException) as error:
        context.try_shutdown()
        raise BridgeError(" ".join(str(error).split())) from error
    except UnknownROSArgsError as error:
        context.try_shutdown()
        raise BridgeError(f"arguments that ROS does not know: {error}") from error
    except BridgeError:
        context.try_shutdown()
        raise
    return node


class Spinner:
    """The thread in which the node's services and parameters are dealt with."""

    def __init__(self, node: BridgeNode, context: Context) -> None:
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="ros2 node", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            try:
                # Executor.spin() and EventsExecutor.spin() do not end when they are asked to.
                self._executor.spin_once(timeout_sec=0.5)
            except (ExternalShutdownException, ShutdownException):
                return
            except (RCLError, InvalidHandle) as error:  # of something that was destroyed meanwhile
                log.debug("ROS 2: %s", error)

    def close(self) -> None:
        self._ended = True
        self._executor.wake()
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("ROS 2: the node's thread did not end in time")
            return
        self._executor.shutdown(0)
