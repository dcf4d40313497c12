"""pupil_msgs: what its files say, and every message and service through DDS to another process and back.

Run as a script this file is that other process: it sends every message back, and answers every service.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")
pytest.importorskip("pupil_msgs", reason="needs pupil_msgs: make messages")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions

from tests.system.harness import running, wait_until

# What the wheels' rosidl_parser is made with is older than Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")

PACKAGE = Path(__file__).parents[2] / "pupil_msgs"
# Issue 5: gaze, eye state, pupil, fixation, saccade, blink, surface gaze, event, device info, clock status.
TOPICS = {"Gaze", "EyeState", "Pupil", "Fixation", "Saccade", "Blink"}
TOPICS |= {"SurfaceGaze", "Event", "DeviceInfo", "ClockStatus"}
PARTS = {"Eye", "StampQuality"}
SERVICES = {"Record", "SendEvent"}
# A count has no unit. Everything else that is a number has one, in its comment or at the end of its name.
COUNTS = {"ClockStatus.pings_accepted", "ClockStatus.samples_dropped"}
UNIT = re.compile(
    r"(^|[\s(])(s|ns|m|rad|rad/s|pixels|unit vector|one of the above|counts|number|RIGHT or LEFT|to 1)(\W|$)"
)
IN_THE_NAME = re.compile(r"_ppm$")
NUMBERS = re.compile(r"^(float|int|uint|geometry_msgs/(Point|Vector3))")
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def fields(path: Path) -> Iterator[tuple[str, str, str]]:
    """Type, name and comment of every field of a message or service."""
    for line in path.read_text(encoding="utf-8").splitlines():
        declaration, _, comment = line.partition("#")
        if declaration.strip() and declaration.strip() != "---" and "=" not in declaration:
            kind, name = declaration.split()
            yield kind, name, comment.strip()


def kinds(folder: str) -> dict[str, Any]:
    module = importlib.import_module(f"pupil_msgs.{folder}")
    return {path.stem: getattr(module, path.stem) for path in sorted((PACKAGE / folder).iterdir())}


def filled(kind: Any, chance: random.Random) -> Any:
    """A message in which every field has a value that is not its default."""
    message = kind()
    for name, text in kind.get_fields_and_field_types().items():
        setattr(message, name, _value(text, chance))
    return message


def _value(text: str, chance: random.Random) -> Any:
    if inner := re.fullmatch(r"sequence<(.*)>", text):
        return [_value(inner[1], chance) for _ in range(3)]
    if "/" in text:
        package, name = text.split("/")
        return filled(getattr(importlib.import_module(f"{package}.msg"), name), chance)
    if integer := re.fullmatch(r"(u?)int(\d+)", text):
        return chance.randrange(1, 2 ** (int(integer[2]) - 1))
    by_type = {
        "boolean": lambda: True,
        "double": lambda: chance.uniform(-1e3, 1e3),
        "string": lambda: "".join(chance.choices("aäß眼 \n", k=20)) + "x",
    }
    return by_type[text]()


@contextlib.contextmanager
def spinning(name: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = Node(name, context=context, start_parameter_services=False, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def test_the_messages_are_those_that_were_asked_for() -> None:
    assert {path.name for path in (PACKAGE / "msg").iterdir()} == {f"{name}.msg" for name in TOPICS | PARTS}
    assert {path.name for path in (PACKAGE / "srv").iterdir()} == {f"{name}.srv" for name in SERVICES}


def test_every_topic_has_a_header_and_says_how_far_its_stamp_can_be_trusted() -> None:
    for name in TOPICS - {"DeviceInfo"}:
        first = [(kind, field) for kind, field, _ in fields(PACKAGE / "msg" / f"{name}.msg")][:2]
        assert first == [("std_msgs/Header", "header"), ("pupil_msgs/StampQuality", "quality")], name


def test_every_number_has_a_unit_and_every_name_is_in_snake_case() -> None:
    checked = 0
    for path in [*(PACKAGE / "msg").iterdir(), *(PACKAGE / "srv").iterdir()]:
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path.name} does not say what it is"
        for kind, name, comment in fields(path):
            where = f"{path.stem}.{name}"
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name), where
            if NUMBERS.match(kind) and where not in COUNTS:
                assert UNIT.search(comment) or IN_THE_NAME.search(name), f"{where} has no unit: {comment!r}"
                checked += 1
    assert checked > 50


def test_what_is_built_has_the_fields_of_the_files() -> None:
    for name, kind in kinds("msg").items():
        assert [field for _, field, _ in fields(PACKAGE / "msg" / f"{name}.msg")] == list(
            kind.get_fields_and_field_types()
        )


def test_the_makefile_builds_with_what_pip_would_build_with() -> None:
    required = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    listed = (PACKAGE / "build.in").read_text(encoding="utf-8").splitlines()
    assert [line for line in listed if not line.startswith("#")] == required


def test_every_message_and_service_comes_back_equal_from_another_process(tmp_path: Path) -> None:
    chance = random.Random(5)
    sent = {name: filled(kind, chance) for name, kind in kinds("msg").items()}
    back: dict[str, Any] = {}
    with (
        running([sys.executable, "-m", "tests.system.test_messages"], tmp_path / "echo.log") as echo,
        spinning("asking") as (node, executor),
    ):
        assert echo.line() == "ready\n"
        for name, message in sent.items():
            node.create_subscription(
                type(message), f"from_echo/{name}", lambda got, name=name: back.update({name: got}), LATCHED
            )
            # Kept for the other process: it gets it also if it finds this one later.
            node.create_publisher(type(message), f"to_echo/{name}", LATCHED).publish(message)

        def all_back() -> bool:
            executor.spin_once(timeout_sec=0.02)
            return set(back) == set(sent)

        wait_until(all_back, f"all messages back; log: {echo.errors()}", interval_s=0)
        for name, kind in kinds("srv").items():
            client = node.create_client(kind, name)
            wait_until(client.service_is_ready, f"service {name}; log: {echo.errors()}")
            request = filled(kind.Request, chance)
            future = client.call_async(request)
            executor.spin_until_future_complete(future, timeout_sec=10)
            answer = future.result()
            assert answer.success is True
            assert answer.message == repr(request)
    assert back == sent
    for name, message in sent.items():
        assert message != type(message)(), f"{name} was sent empty"


def test_a_field_of_the_wrong_type_is_refused() -> None:
    gaze = kinds("msg")["Gaze"]
    with pytest.raises(AssertionError, match="worn"):
        gaze(worn=256)
    with pytest.raises(AssertionError, match="pixel_x"):
        gaze(pixel_x="1")


def _echo() -> None:
    with spinning("echo") as (node, executor):
        for name, kind in kinds("msg").items():
            publisher = node.create_publisher(kind, f"from_echo/{name}", LATCHED)
            node.create_subscription(kind, f"to_echo/{name}", publisher.publish, LATCHED)
        for name, kind in kinds("srv").items():

            def answer(request: Any, response: Any) -> Any:
                response.success, response.message = True, repr(request)
                return response

            node.create_service(kind, name, answer)
        print("ready", flush=True)
        while True:  # until it is ended
            executor.spin_once(timeout_sec=0.5)


if __name__ == "__main__":
    _echo()
