"""The node's parameters: they mirror the configuration, and what ROS sets counts above it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")

from geometry_msgs.msg import PointStamped
from pydantic import BaseModel, ValidationError

from bridge import config as config_module
from bridge.config import Config, Ros2Sink
from bridge.control import SETTABLE
from bridge.errors import BridgeError, Refused
from bridge.sinks.ros2.parameters import AT_START_ONLY, OTHERS, OWN, allowed
from bridge.sinks.ros2.sink import Ros2Sink as Sink
from bridge.streams import Sample
from tests.sinks.ros2.lab import (
    DEVICE,
    GAZE,
    MAPPED,
    Hearer,
    Peer,
    discovered,
    drained,
    elsewhere,
    open_sink,
    quiet_lark,
    ros_arguments,
    settings,
    soon,
    stamp_ns,
)

pytestmark = quiet_lark

NODE = "/sink_test/sink_test"
ALL = [*OWN, *OTHERS]
RULES: list[tuple[str, type[BaseModel], str]] = [
    *((key, Ros2Sink, key) for key in OWN),
    *((name, model, name.partition(".")[2]) for name, (model, _) in OTHERS.items()),
]


class Daemon:
    """Answers the sink's requests as the daemon does, by loading its file anew."""

    def __init__(self, sink: Sink, folder: Path) -> None:
        self.sink = sink
        self.file = folder / "bridge.toml"
        self.settings: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refuse = ""

    def write(self, sink: str = "", tables: str = "") -> None:
        text = '[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "ros2"\nnamespace = "sink_test"\nnode_name = "sink_test"\n'
        self.file.write_text(f"{text}queue_size = 10\n{sink}\n{tables}")

    def load(self) -> Config:
        return config_module.load(self.file, {}, self.settings)

    async def request(self, command: str, arguments: dict[str, Any]) -> Any:
        self.requests.append((command, arguments))
        if self.refuse:
            raise Refused(self.refuse)
        before = {table: dict(keys) for table, keys in self.settings.items()}
        for name, value in arguments["settings"].items():
            table, _, key = name.partition(".")
            self.settings.setdefault(table, {})[key] = value
        try:
            self.reload()
        except BridgeError:
            self.settings = before
            raise

    def reload(self) -> None:
        self.sink.configured(self.load())


@asynccontextmanager
async def served(tmp_path: Path, *arguments: str, sink: str = "", tables: str = "") -> AsyncIterator[Daemon]:
    """A sink that was started with these arguments of ROS, and serves."""
    with ros_arguments(*arguments), open_sink() as made:
        made.open_device(DEVICE)
        daemon = Daemon(made, tmp_path)
        daemon.write(sink, tables)
        loaded = daemon.load()
        made.serve(daemon.request, loaded)
        await soon(lambda: not made._tasks, "what it was started with is set")
        yield daemon


# --- what they mirror ------------------------------------------------------------------------------------------------


def test_everything_that_can_be_changed_is_a_parameter() -> None:
    assert set(OWN) == set(Ros2Sink.model_fields) - {"type", "namespace", "node_name"}
    assert set(AT_START_ONLY) == set(Ros2Sink.AT_OPENING) & set(OWN)
    assert set(OTHERS) == {f"{table}.{key}" for table, keys in SETTABLE.items() for key in keys}


@pytest.mark.parametrize(("name", "model", "key"), RULES, ids=[rule[0] for rule in RULES])
def test_the_ranges_are_those_of_the_configurations_models(name: str, model: type[BaseModel], key: str) -> None:
    """By trying the models themselves at the ends."""
    limits = allowed(model, key)
    base = {"type": "ros2"} if model is Ros2Sink else {}

    def possible(value: Any) -> bool:
        try:
            model.model_validate({**base, key: value})
        except ValidationError:
            return False
        return True

    if limits.words:
        assert all(possible(word) for word in limits.words)
        assert not possible("nonsense")
        assert limits.words == get_args(model.model_fields[key].annotation)
    if limits.least is not None and limits.most is not None:
        kind = type(model.model_fields[key].default)
        step = 1 if kind is int else 1e-6
        assert possible(kind(limits.most))
        assert not possible(kind(limits.most + step * max(1, limits.most)))
        assert not possible(kind(limits.least - step))
        assert possible(kind(limits.least)) or possible(kind(limits.least + step))  # the second: greater than
    if not limits.words and limits.least is None:
        assert isinstance(model.model_fields[key].default, bool | str)


async def test_each_is_described_with_its_range_and_shows_what_is_configured(tmp_path: Path, peer: Peer) -> None:
    async with served(tmp_path, sink="bound_warn_ms = 7.5", tables="[clock]\nhold_s = 3") as daemon:
        described = await elsewhere(lambda: peer.describe(NODE, *ALL))
        values = dict(zip(ALL, await elsewhere(lambda: peer.get(NODE, *ALL)), strict=True))
        loaded = daemon.load()
    for (_, model, key), found in zip(RULES, described, strict=True):
        limits = allowed(model, key)
        assert len(found.description) > 10
        assert found.read_only == (found.name in AT_START_ONLY)
        ranges = [*found.integer_range, *found.floating_point_range]
        if limits.least is None:
            assert ranges == []
        else:
            (only,) = ranges
            assert (only.from_value, only.to_value) == (limits.least, limits.most)
        assert all(word in found.additional_constraints for word in limits.words)
    assert values["queue_size"] == 10
    assert values["bound_warn_ms"] == 10.0  # the sink was opened with that; a reload shows another
    assert values["clock.hold_s"] == 3.0
    for name in OTHERS:
        table, _, key = name.partition(".")
        assert values[name] == getattr(getattr(loaded, table), key)


# --- setting ---------------------------------------------------------------------------------------------------------


async def test_a_mode_that_is_set_reaches_the_stamps(tmp_path: Path, peer: Peer) -> None:
    hearer = Hearer("gaze/pixel", PointStamped)
    try:
        async with served(tmp_path) as daemon:
            output = await elsewhere(lambda: discovered(daemon.sink, hearer, GAZE))
            assert await elsewhere(lambda: peer.set(NODE, timestamp_mode="device-raw")) == [""]
            output.push(Sample(GAZE, 1_500_000_001, 0, (1.0, 2.0)), MAPPED, 0)
            (heard,) = await elsewhere(lambda: hearer.hear(1))
            assert stamp_ns(heard) == 1_500_000_001
            assert await elsewhere(lambda: peer.get(NODE, "timestamp_mode")) == ["device-raw"]
            assert daemon.requests == []
    finally:
        hearer.close()


async def test_settings_of_the_queue_and_of_frames_take_effect(tmp_path: Path, peer: Peer) -> None:
    async with served(tmp_path) as daemon:
        sink = daemon.sink
        sink.open_stream(GAZE)
        found = await elsewhere(
            lambda: peer.set(NODE, queue_size=77, when_full="drop_newest", bound_warn_ms=2.5, frame_prefix="lab/")
        )
        assert found == [""] * 4
        await elsewhere(lambda: drained(sink))
        assert (sink.worker.size, sink.worker.drop_newest, sink.status()["queue_size"]) == (77, True, 77)
        assert sink._desk.settings.bound_warn_ms == 2.5
        (output,) = sink._stage._outputs[DEVICE.name]
        assert output.topics.header.frame_id == "lab/tracker_scene_camera_optical_frame"


async def test_the_daemons_own_settings_go_through_the_daemon(tmp_path: Path, peer: Peer) -> None:
    async with served(tmp_path) as daemon:
        assert await elsewhere(lambda: peer.set(NODE, clock__hold_s=2.0)) == [""]
        assert daemon.requests == [("set", {"settings": {"clock.hold_s": 2.0}})]
        assert daemon.load().clock.hold_s == 2.0
        assert await elsewhere(lambda: peer.get(NODE, "clock.hold_s")) == [2.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue_size": 9}, "out of range"),
        ({"queue_size": 100_001}, "out of range"),
        ({"queue_size": 50.0}, "type"),
        ({"bound_warn_ms": 0.0}, "greater than 0"),
        ({"timestamp_mode": "wrong"}, "timestamp_mode"),
        ({"when_full": ""}, "when_full"),
        ({"frame_prefix": "a b"}, "frame_prefix"),
        ({"control": True}, "read-only"),
        ({"lifecycle": "manual"}, "read-only"),
        ({"use_sim_time": True}, "use_sim_time is not possible"),
        ({"clock__hold_s": 61.0}, "out of range"),
        ({"clock__hold_s": float("nan")}, ""),
        ({"bound_warn_ms": float("nan")}, ""),
        ({"bound_warn_ms": float("inf")}, ""),
        ({"clock__unlocked": "wrong"}, "clock.unlocked"),
        ({"logging__level": "loud"}, "logging.level"),
        ({"nonsense": 1}, ""),
    ],
)
async def test_what_is_not_possible_is_refused_with_a_reason_and_changes_nothing(
    tmp_path: Path, peer: Peer, values: dict[str, Any], words: str
) -> None:
    async with served(tmp_path) as daemon:
        before = await elsewhere(lambda: peer.get(NODE, *ALL))
        (reason,) = await elsewhere(lambda: peer.set(NODE, **values))
        assert reason
        assert words in reason
        assert await elsewhere(lambda: peer.get(NODE, *ALL)) == before
        assert daemon.sink._parameters.settings == settings()


async def test_several_are_set_all_or_none(tmp_path: Path, peer: Peer) -> None:
    async with served(tmp_path) as daemon:
        daemon.refuse = "not today"
        found = await elsewhere(lambda: peer.set(NODE, True, queue_size=50, clock__hold_s=2.0))
        assert found == ["not today"]
        assert await elsewhere(lambda: peer.get(NODE, "queue_size", "clock.hold_s")) == [10, 5.0]
        assert daemon.sink.worker.size == 10
        daemon.refuse = ""
        assert await elsewhere(lambda: peer.set(NODE, True, queue_size=50, clock__hold_s=2.0)) == [""]
        assert await elsewhere(lambda: peer.get(NODE, "queue_size", "clock.hold_s")) == [50, 2.0]
        assert daemon.sink.worker.size == 50


async def test_nothing_can_be_set_before_it_would_have_an_effect(peer: Peer) -> None:
    with open_sink() as sink:
        for values in ({"queue_size": 50}, {"use_sim_time": True}):
            (reason,) = await elsewhere(lambda values=values: peer.set(NODE, **values))
            assert reason
        assert await elsewhere(lambda: peer.get(NODE, "queue_size", "use_sim_time")) == [10, False]
        assert sink.worker.size == 10


# --- what ROS was started with ---------------------------------------------------------------------------------------


async def test_what_ros_was_started_with_counts_above_the_file(tmp_path: Path) -> None:
    arguments = ["-p", "queue_size:=33", "-p", "timestamp_mode:=arrival", "-p", "clock.hold_s:=1.5"]
    arguments += ["-p", "tf:=false", "-p", "control:=true"]
    async with served(tmp_path, *arguments, tables="[clock]\nhold_s = 3") as daemon:
        sink = daemon.sink
        assert (sink.worker.size, sink._desk.stamps.mode) == (33, "arrival")
        assert daemon.requests == [("set", {"settings": {"clock.hold_s": 1.5}})]
        daemon.write(sink='timestamp_mode = "device-raw"\nbound_warn_ms = 3.0', tables="[clock]\nhold_s = 4")
        daemon.reload()
        await elsewhere(lambda: drained(sink))
        found = sink._parameters.settings
        assert (found.queue_size, found.timestamp_mode, found.bound_warn_ms) == (33, "arrival", 3.0)
        assert (found.tf, found.control) == (False, True)
        assert sink._node.get_parameter("clock.hold_s").value == 1.5


async def test_other_settings_that_ros_was_started_with_and_are_wrong_are_said_and_do_not_end_the_bridge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, "-p", "clock.hold_s:=2", "-p", "overload.flood_hz:=1.0") as daemon:
        assert daemon.requests == []
        assert daemon.sink._node.get_parameter("clock.hold_s").value == 5.0
        assert daemon.sink._node.get_parameter("overload.flood_hz").value == 2000.0
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2
    assert "clock.hold_s" in said[0]
    assert "overload.flood_hz" in said[1]


async def test_what_the_daemon_refuses_of_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path, "-p", "logging.level:=loud"):
        pass
    assert "parameters that the node was started with are refused" in caplog.text


# --- a file that is loaded anew --------------------------------------------------------------------------------------


async def test_a_reload_is_shown_and_keeps_what_ros_has_set(tmp_path: Path, peer: Peer) -> None:
    async with served(tmp_path) as daemon:
        assert await elsewhere(lambda: peer.set(NODE, timestamp_mode="arrival")) == [""]
        daemon.write(sink='timestamp_mode = "device-raw"\nbound_warn_ms = 3.5', tables="[overload]\nflood_hz = 500")
        daemon.reload()
        names = ("timestamp_mode", "bound_warn_ms", "overload.flood_hz")
        assert await elsewhere(lambda: peer.get(NODE, *names)) == ["arrival", 3.5, 500.0]
        await elsewhere(lambda: drained(daemon.sink))
        assert daemon.sink._desk.settings.bound_warn_ms == 3.5
        assert daemon.requests == []  # what is shown is not set once more


async def test_a_file_that_was_changed_meanwhile_counts_for_what_is_not_set(tmp_path: Path, peer: Peer) -> None:
    """Setting one of the daemon's settings loads the file; what it says of the sink must not be lost."""
    async with served(tmp_path) as daemon:
        daemon.write(sink="bound_warn_ms = 3.5")
        assert await elsewhere(lambda: peer.set(NODE, True, when_full="drop_newest", clock__hold_s=2.0)) == [""]
        assert daemon.sink._parameters.settings.bound_warn_ms == 3.5
        assert daemon.sink._parameters.settings.when_full == "drop_newest"
        await elsewhere(lambda: drained(daemon.sink))
        assert daemon.sink._desk.settings.bound_warn_ms == 3.5


async def test_many_clients_and_reloads_at_once_end_with_one_truth(tmp_path: Path) -> None:
    async with served(tmp_path) as daemon:
        peers = [Peer(f"setter{number}") for number in range(3)]
        try:

            def trouble(peer: Peer, number: int) -> None:
                for step in range(15):
                    size = 20 + 10 * ((step + number) % 5)
                    peer.set(NODE, True, queue_size=size, clock__hold_s=float(1 + step % 3))
                    peer.set(NODE, frame_prefix=f"p{step % 2}/")

            working = [
                asyncio.create_task(elsewhere(lambda peer=peer, number=number: trouble(peer, number)))
                for number, peer in enumerate(peers)
            ]
            while not all(task.done() for task in working):
                daemon.write(sink=f"bound_warn_ms = {2.0 + len(daemon.requests) % 7}")
                daemon.reload()
                await asyncio.sleep(0.01)
            await asyncio.gather(*working)
        finally:
            for peer in peers:
                peer.close()
        daemon.reload()
        sink = daemon.sink
        await elsewhere(lambda: drained(sink))
        shown = {name: sink._node.get_parameter(name).value for name in ALL}
        kept = sink._parameters.settings
        assert shown == {
            **{key: getattr(kept, key) for key in OWN},
            **{
                name: getattr(getattr(daemon.load(), name.partition(".")[0]), name.partition(".")[2]) for name in OTHERS
            },
        }
        assert sink._desk.settings == kept
        assert sink.worker.size == kept.queue_size
        assert sink.status()["state"] == "active"
