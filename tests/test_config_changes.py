"""From one configuration to another: which sources and sinks begin, end, change or go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bridge.config import Config, Ros2Sink, Sink, Source, parse
from bridge.config_changes import Changes, Key, changes, source_key

SINK = '[[sink]]\ntype = "lsl"\n'


def config(text: str, sinks: str = SINK) -> Config:
    return parse(text + sinks, "test")


def phones(*names: str, interface: str = "auto", **keys: str) -> str:
    """An NDSI source; each of its devices is matched by its name."""
    devices = "".join(
        f'[[source.device]]\nname = "{name}"\nmatch = "{name}"\n'
        + "".join(f"{key} = {value}\n" for key, value in keys.items())
        for name in names
    )
    return f'[[source]]\ntype = "ndsi"\ninterface = "{interface}"\n{devices}'


def core(name: str, port: int = 50020, extra: str = "") -> str:
    return f'[[source]]\ntype = "pupil_core"\nname = "{name}"\naddress = "127.0.0.1:{port}"\n{extra}'


def opened(tree: Config) -> dict[str, Sink]:
    return {sink.type: sink for sink in tree.sinks}


def names_of(source: Source) -> set[str]:
    return {device.name for device in source.devices} if source.type == "ndsi" else {source.name}


def owners(tree: Config, **discovered: Key) -> dict[str, Key]:
    return {**{name: source_key(source) for source in tree.sources for name in names_of(source)}, **discovered}


def between(old: Config, new: Config, **discovered: Key) -> Changes:
    return changes(old, new, opened(old), owners(old, **discovered))


def keys(sources: tuple[Source, ...]) -> list[Key]:
    return [source_key(source) for source in sources]


AUTO: Key = ("ndsi", "None", "5670")
OTHER: Key = ("ndsi", "10.0.0.1", "5670")


# --- sources ---------------------------------------------------------------------------------------------------------


def test_the_same_configuration_changes_nothing() -> None:
    text = phones("a") + core("c")
    assert between(config(text), config(text)) == Changes((), (), (), (), (), (), "nothing has changed")


def test_another_order_of_sources_and_sinks_changes_nothing() -> None:
    ros = '[[sink]]\ntype = "ros2"\n'
    old, new = config(phones("a") + core("c"), SINK + ros), config(core("c") + phones("a"), ros + SINK)
    assert between(old, new) == Changes((), (), (), (), (), (), "nothing has changed")


def test_a_source_that_is_new_begins_and_one_that_is_not_there_any_more_ends() -> None:
    change = between(config(phones("a") + core("c")), config(phones("a") + core("d")))
    assert change.stop == (("pupil_core", "c"),)
    assert keys(change.start) == [("pupil_core", "d")]
    assert change.reconfigure == ()
    assert change.words == "added d, removed c"


def test_a_core_that_has_changed_begins_anew_with_its_new_configuration() -> None:
    change = between(config(core("c") + phones("a")), config(core("c", port=50021) + phones("a")))
    assert change.stop == (("pupil_core", "c"),)
    (begun,) = change.start
    assert begun.type == "pupil_core"
    assert begun.port == 50021
    assert change.words == "changed c"


def test_an_ndsi_source_with_other_devices_is_changed_while_it_runs() -> None:
    new = config(phones("a", "b"))
    change = between(config(phones("a")), new)
    assert (change.stop, change.start) == ((), ())
    assert change.reconfigure == new.sources
    assert change.words == "changed ndsi on auto"


def test_an_ndsi_source_on_another_network_is_another_one() -> None:
    change = between(config(phones("a")), config(phones("a", interface="10.0.0.1")))
    assert change.stop == (AUTO,)
    assert keys(change.start) == [OTHER]
    assert change.words == "added ndsi on 10.0.0.1, removed ndsi on auto"


def test_a_device_that_moves_is_let_go_of_before_the_other_source_takes_it() -> None:
    old = config(phones("a", "b") + phones("x", interface="10.0.0.1"))
    new = config(phones("b") + phones("x", "a", interface="10.0.0.1"))
    change = between(old, new)
    assert change.stop == (AUTO,)
    assert keys(change.reconfigure) == [OTHER]
    assert keys(change.start) == [AUTO]


def test_devices_that_change_places_let_both_sources_begin_anew() -> None:
    old = config(phones("a") + phones("b", interface="10.0.0.1"))
    change = between(old, config(phones("b") + phones("a", interface="10.0.0.1")))
    assert set(change.stop) == {AUTO, OTHER}
    assert set(keys(change.start)) == {AUTO, OTHER}
    assert change.reconfigure == ()


def test_the_name_of_a_discovered_device_that_another_source_is_to_have_is_freed() -> None:
    old = config(phones("a"))
    change = between(old, config(phones("a") + core("found")), found=AUTO)
    assert change.stop == (AUTO,)
    assert keys(change.start) == [AUTO, ("pupil_core", "found")]


def test_a_discovered_device_that_its_own_source_is_to_expect_stays_there() -> None:
    change = between(config(phones("a")), config(phones("a", "found")), found=AUTO)
    assert (change.stop, change.start) == ((), ())
    assert keys(change.reconfigure) == [AUTO]


# --- sinks -----------------------------------------------------------------------------------------------------------


def test_a_sink_that_has_changed_is_closed_and_opened() -> None:
    old, new = config(phones("a")), config(phones("a"), SINK + "max_buffered_s = 5\n")
    change = between(old, new)
    assert (change.close_sinks, change.open_sinks) == (("lsl",), new.sinks)
    assert change.words == "changed sink lsl"
    assert (change.stop, change.start, change.reconfigure) == ((), (), ())


def test_a_sink_that_is_new_is_opened_and_one_that_is_not_there_any_more_is_closed() -> None:
    ros = '[[sink]]\ntype = "ros2"\n'
    old, new = config(phones("a"), SINK), config(phones("a"), ros)
    change = between(old, new)
    assert (change.close_sinks, change.open_sinks) == (("lsl",), new.sinks)
    assert change.words == "opened sink ros2, closed sink lsl"


def test_a_sink_that_could_not_be_opened_is_tried_again() -> None:
    both = config(phones("a"), SINK + '[[sink]]\ntype = "ros2"\n')
    change = changes(both, both, {"lsl": both.sinks[0]}, owners(both))
    assert change.open_sinks == (both.sinks[1],)
    assert change.close_sinks == ()


ROS = '[[sink]]\ntype = "ros2"\n'
# Every setting of the ROS sink with another value than its own.
OTHER_ROS = {
    "namespace": '"other"',
    "node_name": '"other"',
    "queue_size": "50",
    "when_full": '"drop_newest"',
    "timestamp_mode": '"arrival"',
    "bound_warn_ms": "3.0",
    "frame_prefix": '"lab/"',
    "tf": "false",
    "tf_gaze": "true",
    "lifecycle": '"manual"',
    "control": "true",
}


@pytest.mark.parametrize("key", OTHER_ROS)
def test_settings_of_the_ros_sink_change_in_place_but_for_those_of_its_node(key: str) -> None:
    old, new = config(phones("a"), SINK + ROS), config(phones("a"), f"{SINK}{ROS}{key} = {OTHER_ROS[key]}\n")
    change = between(old, new)
    assert change.words == "changed sink ros2"
    if key in Ros2Sink.AT_OPENING:
        assert (change.close_sinks, change.open_sinks) == (("ros2",), (new.sinks[1],))
    else:
        assert (change.close_sinks, change.open_sinks) == ((), ())
    assert (change.stop, change.start, change.reconfigure, change.later) == ((), (), (), ())


def test_every_setting_of_the_ros_sink_is_looked_at() -> None:
    assert set(OTHER_ROS) == set(Ros2Sink.model_fields) - {"type"}


def test_a_ros_sink_that_could_not_be_opened_is_opened_with_what_is_configured_now() -> None:
    old, new = config(phones("a"), SINK + ROS), config(phones("a"), SINK + ROS + "queue_size = 50\n")
    change = changes(old, new, {"lsl": old.sinks[0]}, owners(old))
    assert (change.close_sinks, change.open_sinks) == ((), (new.sinks[1],))


# --- what applies to all ---------------------------------------------------------------------------------------------


def test_changes_of_single_tables_are_said_and_touch_no_source() -> None:
    text = phones("a")
    new = config(text, SINK + "[clock]\nhold_s = 1\n[overload]\nflood_hz = 100\n[http]\nlisten = '127.0.0.1:80'\n")
    change = between(config(text), new)
    assert change == Changes((), (), (), (), (), (), "changed [clock], changed [http], changed [overload]")


def test_a_secret_that_has_changed_is_said_and_not_shown() -> None:
    old, new = (config(phones("a"), SINK + f"[http]\ntoken = '{letter * 20}'\n") for letter in "xy")
    change = between(old, new)
    assert change.words == "changed [http]"
    assert "yyyy" not in repr(change)


def test_what_takes_effect_at_the_next_start_is_told_apart() -> None:
    text = phones("a")
    new = config(text, SINK + "[service]\nsocket = '/run/x'\nstate_dir = '/var/x'\n")
    change = between(config(text), new)
    assert change.later == ("service.socket", "service.state_dir")
    assert change.words == "service.socket and service.state_dir take effect at the next start"
    assert (change.stop, change.start) == ((), ())


def test_marker_streams_are_told_by_what_they_are_looked_for() -> None:
    def with_markers(*markers: str) -> Config:
        return config(phones("a"), SINK + "".join(f"[[marker]]\n{marker}\n" for marker in markers))

    one, other, third = "stream = 'P'", "stream = 'P'\nsource_id = 'x'\nhostname = 'lab2'", "stream = 'Q'"
    assert between(with_markers(one, third), with_markers(third, one)).words == "nothing has changed"
    change = between(with_markers(one, third), with_markers(one + "\ndoes = 'commands'", other))
    words = "added marker stream P (source_id x, on lab2), removed marker stream Q, changed marker stream P"
    assert change == Changes((), (), (), (), (), (), words)


# --- every pair of configurations ------------------------------------------------------------------------------------

NAMES = [f"d{number}" for number in range(5)]
WHERE = ["auto", "10.0.0.1", "10.0.0.2"]


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any devices at any sources; each name once."""
    text = ""
    at: dict[str, Any] = {name: draw(st.sampled_from([None, "core", *WHERE])) for name in NAMES}
    empty = draw(st.sets(st.sampled_from(WHERE)))
    for where in WHERE:
        there = [name for name in NAMES if at[name] == where]
        if there or where in empty:
            text += phones(*there, interface=where, path_asymmetry_ms=str(draw(st.integers(0, 1))))
    for number, name in enumerate(NAMES):
        if at[name] == "core":
            text += core(name, port=50000 + number, extra=f"path_asymmetry_ms = {draw(st.integers(0, 1))}\n")
    assume(text)
    sinks = draw(st.sampled_from([SINK, SINK + "max_buffered_s = 1\n", SINK + '[[sink]]\ntype = "ros2"\n']))
    return config(text, sinks)


class World:
    """A model of the daemon: which source has which device, and which began when."""

    def __init__(self, tree: Config, discovered: Mapping[str, Key]) -> None:
        self.sources: dict[Key, Source] = {}
        self.devices: dict[str, Key] = {}
        self.begun: list[Key] = []
        for source in tree.sources:
            self.start(source)
        for name, key in discovered.items():
            if key in self.sources:
                self.devices.setdefault(name, key)

    def start(self, source: Source) -> None:
        key = source_key(source)
        assert key not in self.sources, "runs already"
        self.sources[key] = source
        self.begun.append(key)
        self._declare(key, names_of(source))

    def _declare(self, key: Key, names: set[str]) -> None:
        for name in names:
            assert self.devices.setdefault(name, key) == key, f"{name} still belongs to another source"

    def stop(self, key: Key) -> None:
        del self.sources[key]
        self.devices = {name: owner for name, owner in self.devices.items() if owner != key}

    def reconfigure(self, source: Source) -> None:
        key = source_key(source)
        for name in names_of(self.sources[key]) - names_of(source):
            del self.devices[name]
        self.sources[key] = source
        self._declare(key, names_of(source))

    def apply(self, change: Changes) -> None:
        for key in change.stop:
            self.stop(key)
        for source in change.reconfigure:
            self.reconfigure(source)
        for source in change.start:
            self.start(source)


@settings(max_examples=150, deadline=None)
@given(
    configs(),
    configs(),
    st.dictionaries(
        st.sampled_from([*NAMES, "found"]),
        st.sampled_from([AUTO, OTHER, ("ndsi", "10.0.0.2", "5670")]),
        max_size=2,
    ),
)
def test_every_pair_of_configurations_leads_to_the_right_devices_and_leaves_the_others_alone(
    old: Config, new: Config, discovered: dict[str, Key]
) -> None:
    world = World(old, discovered)
    before = dict(world.devices)
    change = changes(old, new, opened(old), before)
    world.apply(change)
    assert world.sources == {source_key(source): source for source in new.sources}
    assert owners(new).items() <= world.devices.items()
    # Nobody is disturbed without a reason: its own change, or a device that another source is to have.
    wanted = owners(new)
    for key in {source_key(source) for source in old.sources} & {source_key(source) for source in new.sources}:
        loses = any(before[name] == key and wanted.get(name, key) != key for name in before)
        same = {source_key(s): s for s in old.sources}[key] == {source_key(s): s for s in new.sources}[key]
        anew = key in change.stop
        assert anew == (loses or (key[0] == "pupil_core" and not same))
        assert (key in keys(change.reconfigure)) == (not same and not anew)
    assert len(set(change.stop)) == len(change.stop)
    kept = dict(opened(old))
    for kind in change.close_sinks:
        del kept[kind]
    for sink in change.open_sinks:
        assert sink.type not in kept
        kept[sink.type] = sink
    assert kept == opened(new)
    assert (change.words == "nothing has changed") == (
        sorted(map(repr, old.sources)) == sorted(map(repr, new.sources)) and opened(old) == opened(new)
    )


@pytest.mark.parametrize("table", ["clock", "logging", "http", "overload", "service"])
def test_every_single_table_is_looked_at(table: str) -> None:
    other = {
        "clock": "hold_s = 1",
        "logging": "level = 'debug'",
        "http": "allow_remote = true",
        "overload": "flood_hz = 100",
        "service": "socket = '/run/x'",
    }
    single = {name for name in Config.model_fields if name not in ("sources", "sinks", "markers")}
    assert single == set(other), "a new table: what does a reload do about it?"
    change = between(config(phones("a")), config(phones("a"), f"{SINK}[{table}]\n{other[table]}\n"))
    assert f"[{table}]" in change.words or f"{table}.socket" in change.later
