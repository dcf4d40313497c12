"""The configuration: the shipped file, the defaults, and one error that names every fault at its line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from datetime import date, datetime, time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import Config, LslSink, MarkerConfig, NdsiSource, PupilCoreSource, Ros2Sink, load, parse
from bridge.config_faults import tables_of
from bridge.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config" / "bridge.toml"
SMALLEST = '[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n'
SINK = '[[sink]]\ntype = "lsl"\n'
# A key that has its default value, or a table of which there is none by default: "#" directly before it. Explanations
# have a space there.
COMMENTED_KEY = re.compile(r"(?m)^#(?=[a-z][a-z0-9_.]* = |\[\[)")


def faults(text: str) -> list[str]:
    """The lines of the error that ``text`` gives, without the heading, which is checked here."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"x.toml: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def core(**keys: str) -> str:
    """A Pupil Core source with these keys, values as they are written in TOML."""
    return "".join(["[[source]]\n", 'type = "pupil_core"\n', *(f"{key} = {value}\n" for key, value in keys.items())])


# --- the shipped file ------------------------------------------------------------------------------------------------


def test_the_shipped_file_names_one_companion_and_one_core_and_sends_to_lsl_and_ros() -> None:
    config = load(SHIPPED)
    phones, capture = config.sources
    assert isinstance(phones, NdsiSource)
    assert isinstance(capture, PupilCoreSource)
    assert [(device.name, device.lsl_prefix) for device in phones.devices] == [("companion", "pupil_labs")]
    assert (capture.name, capture.lsl_prefix) == ("core", "pupil_capture")
    assert [type(sink) for sink in config.sinks] == [LslSink, Ros2Sink]


def test_the_commented_out_keys_of_the_shipped_file_are_the_defaults() -> None:
    text, uncommented = COMMENTED_KEY.subn("", SHIPPED.read_text())
    assert uncommented >= 20
    found = parse(text, "uncommented")
    assert found.markers == (MarkerConfig(stream="PsychoPy"),)
    assert found.model_copy(update={"markers": ()}) == load(SHIPPED)


def test_every_key_of_every_table_is_in_the_shipped_file() -> None:
    tree = tomllib.loads(COMMENTED_KEY.sub("", SHIPPED.read_text()))
    written: set[tuple[str, ...]] = set()

    def walk(value: Any, place: tuple[str, ...]) -> None:
        written.add(place)
        for key, inner in value.items() if isinstance(value, dict) else ():
            written.add((*place, key))
            for item in inner if isinstance(inner, list) else [inner]:
                tag = (item["type"],) if isinstance(item, dict) and "type" in item else ()
                walk(item, (*place, key, *tag))

    walk(tree, ())
    wanted = {
        (*place, field.alias or name)
        for place, table in tables_of(Config)
        for name, field in table.model_fields.items()
    }
    assert len(wanted) > 35
    assert wanted - written == set()


def test_every_key_of_the_shipped_file_is_explained_above_it() -> None:
    lines = SHIPPED.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"#?[a-z][a-z0-9_.]* = ", line)]
    assert [lines[number] for number in keys if not lines[number - 1].startswith("# ")] == []


# --- what the tree holds ---------------------------------------------------------------------------------------------


def test_the_smallest_file_is_one_source_with_its_type_and_one_sink_with_its_type() -> None:
    config = parse(SMALLEST, "smallest")
    assert config.sources == (NdsiSource(type="ndsi"),)
    assert config.sinks == (LslSink(type="lsl"),)


def test_a_measured_asymmetry_of_a_path_is_either_way_and_in_milliseconds() -> None:
    text = core(path_asymmetry_ms="-1.25") + SINK
    config = parse(text + '[[source]]\ntype = "ndsi"\ndevice = [{name = "a", path_asymmetry_ms = 1000}]', "x")
    capture, phones = config.sources
    assert isinstance(capture, PupilCoreSource)
    assert isinstance(phones, NdsiSource)
    assert capture.path_asymmetry_ns == -1_250_000
    assert [device.path_asymmetry_ns for device in phones.devices] == [1_000_000_000]


def test_what_is_left_out_has_the_documented_default() -> None:
    config = parse(f'{core()}{SINK}[[sink]]\ntype = "ros2"\n[[source]]\ntype = "ndsi"\ndevice = [{{name = "a"}}]', "x")
    capture, phones = config.sources
    lsl, ros = config.sinks
    assert isinstance(capture, PupilCoreSource)
    assert isinstance(phones, NdsiSource)
    assert isinstance(lsl, LslSink)
    assert isinstance(ros, Ros2Sink)
    assert (capture.name, capture.lsl_prefix) == ("pupil_core", "pupil_labs_pupil_core")
    assert (capture.address, capture.host, capture.port) == ("127.0.0.1:50020", "127.0.0.1", 50020)
    assert capture.scene_size == (1280, 720)
    assert capture.topics == ("gaze", "pupil")
    assert capture.reorder_window_ns == 300_000_000
    assert capture.path_asymmetry_ns == 0
    assert [device.path_asymmetry_ns for device in phones.devices] == [0]
    assert (capture.gaze.expected_rate_hz, capture.gaze.latency_ns) == (None, 0)
    assert (phones.interface, phones.beacon_port) == (None, 5670)
    assert [(device.match, device.lsl_prefix) for device in phones.devices] == [("*", "pupil_labs_a")]
    assert lsl.max_buffered_s == 360
    assert (ros.namespace, ros.node_name, ros.queue_size) == ("pupil_bridge", "pupil_bridge", 1000)
    assert (config.clock.hold_ns, config.clock.unlocked) == (5_000_000_000, "hold")
    assert (config.clock.ping_interval_ns, config.clock.recording_ping_interval_ns) == (10**9, 10**10)
    assert (config.logging.level, config.logging.format) == ("info", "auto")
    assert (config.service.socket, config.service.state_dir) == (None, None)
    assert config.markers == (), "LSL has no password: nobody is listened to who is not named"


def test_what_is_written_is_what_the_tree_holds() -> None:
    config = parse(
        """
        [[source]]
        type = "ndsi"
        interface = "127.0.0.1"
        beacon_port = 5671
        [[source.device]]
        match = "Lab 2*"
        name = "left_1"
        lsl_prefix = "Lab 2"
        gaze = { expected_rate_hz = 66, latency_ms = 12.5 }
        event.latency_ms = -1000
        [[source]]
        type = "pupil_core"
        address = "[::1]:50021"
        topics = ["pupil"]
        scene_size = [640, 480]
        reorder_window_ms = 0
        pupil.expected_rate_hz = 200.0
        [[sink]]
        type = "ros2"
        namespace = "lab/eyes"
        [logging]
        level = "WARNING"
        [service]
        socket = "/run/pupil-bridge.sock"
        """,
        "x",
    )
    phones, capture = config.sources
    assert isinstance(phones, NdsiSource)
    assert isinstance(capture, PupilCoreSource)
    (device,) = phones.devices
    assert (phones.interface, phones.beacon_port) == (IPv4Address("127.0.0.1"), 5671)
    assert (device.match, device.name, device.lsl_prefix) == ("Lab 2*", "left_1", "Lab 2")
    assert (device.gaze.expected_rate_hz, device.gaze.latency_ns, device.event.latency_ns) == (66, 12_500_000, -(10**9))
    assert (capture.host, capture.port) == ("::1", 50021)
    assert (capture.topics, capture.scene_size, capture.reorder_window_ns) == (("pupil",), (640, 480), 0)
    assert capture.pupil.expected_rate_hz == 200
    assert config.logging.level == "warning"
    assert config.service.socket == Path("/run/pupil-bridge.sock")


def test_a_device_is_known_by_a_glob_on_the_name_it_gives_itself() -> None:
    config = parse(f'[[source]]\ntype = "ndsi"\ndevice = [{{name = "a", match = "Lab 2*"}}]\n{SINK}', "x")
    (phones,) = config.sources
    assert isinstance(phones, NdsiSource)
    assert [name for name in ("Lab 2", "Lab 21", "lab 2", "Lab 3") if phones.devices[0].matches(name)] == [
        "Lab 2",
        "Lab 21",
    ]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_are_named_at_once_in_the_order_of_the_file_with_their_lines() -> None:
    text = """# a comment
[[source]]
type = "ndsi"
interface = "999.1.1.1"
device = [
  { name = "core" },
]

[[source]]
type = "pupil_core"
adress = "127.0.0.1:50020"
gaze.latency_ms = 1e9
scene_size = [
  1280,
]
name = "core"
note = '''
[[sink]]
'''

[clock]
unlocked = "hol"
hold_s = true
"""
    assert faults(text) == [
        "source[0].interface (line 4): '999.1.1.1' is not an IPv4 address",
        "source[1].adress (line 11): unknown key; did you mean 'address'?",
        "source[1].gaze.latency_ms (line 12): 1000000000.0 is out of range: it must be at most 1000",
        "source[1].scene_size (line 13): must be [width, height] in pixels, two whole numbers from 1 to 16384",
        "source[1].name (line 16): 'core' is the name of source[0].device[0] already",
        "source[1].note (line 17): unknown key; known here: name, lsl_prefix, intrinsics, path_asymmetry_ms, type, "
        "address, scene_size, topics, reorder_window_ms, late, live, surfaces, annotations, notifications, compat, "
        "pupillometry_only, time_sync, interface, beacon_port, frame_format, gaze, pupil, scene, eyes",
        "clock.unlocked (line 22): 'hol' is not possible; did you mean 'hold'?",
        "clock.hold_s (line 23): must be a finite number, not true",
        "sink: there must be at least one [[sink]]",
    ]


def test_lines_are_right_in_a_file_with_windows_line_ends() -> None:
    text = (SMALLEST + "[clock]\nhold_s = 61\n").replace("\n", "\r\n")
    assert faults(text) == ["clock.hold_s (line 6): 61 is out of range: it must be at most 60"]


def test_an_empty_file_lacks_a_source_and_a_sink() -> None:
    assert faults("") == ["source: there must be at least one [[source]]", "sink: there must be at least one [[sink]]"]
    assert faults("source = []\n" + SINK) == ["source (line 1): there must be at least one [[source]]"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[[source]]\ntype = "pupil-core"\n',
         "source[0].type (line 2): 'pupil-core' is no type of source; did you mean 'pupil_core'?"),
        ('[[source]]\ntype = "tobii"\n',
         "source[0].type (line 2): 'tobii' is no type of source; one of 'ndsi', 'pupil_core'"),
        ("[[source]]\ntype = 3\n", "source[0].type (line 2): 3 is no type of source; one of 'ndsi', 'pupil_core'"),
        ("[[source]]\n", "source[0].type (line 1): missing; one of 'ndsi', 'pupil_core'"),
        ('[source]\ntype = "ndsi"\n',
         "source (line 1): must be a list of tables: write [[source]] with double brackets"),
        ("source = [1]\n", "source[0] (line 1): must be a table, not 1"),
        ('[[source]]\ntype = "ndsi"\n[source.device]\nname = "a"\n',
         "source[0].device (line 3): must be a list of tables: write [[source.device]] with double brackets"),
        ('[[source]]\ntype = "ndsi"\n[[source.device]]\n',
         "source[0].device[0].name (line 3): missing; it has no default"),
        ('[[source]]\ntype = "ndsi"\ninterface = "0.0.0.0"\n',
         "source[0].interface (line 3): '0.0.0.0' is not the address of one network interface"),
        ('[[source]]\ntype = "ndsi"\nbeacon_port = "5670"\n',
         "source[0].beacon_port (line 3): must be a whole number, not '5670'"),
        (core(name='"Core"'),
         "source[0].name (line 3): 'Core' must be a-z, 0-9 and _, begin with a letter, and have at most 40 characters"),
        (core(name="5"), 'source[0].name (line 3): must be text in "quotes", not 5'),
        (core(gaze="5"), "source[0].gaze (line 3): must be a table, not 5"),
        (core(gaze="{ latency_ms = nan }"), "source[0].gaze.latency_ms (line 3): must be a finite number, not nan"),
        (core(gaze="{ expected_rate_hz = -1 }"),
         "source[0].gaze.expected_rate_hz (line 3): -1 is out of range: it must be more than 0"),
        (core(gaze="{ expected_rate_hz = false }"),
         "source[0].gaze.expected_rate_hz (line 3): must be a finite number, not false"),
        (core(topics='["gaze", "gase"]'), "source[0].topics[1] (line 3): 'gase' is not possible; did you mean 'gaze'?"),
        (core(topics="[]"), "source[0].topics (line 3): must not be empty"),
        (core(topics='"gaze"'), "source[0].topics (line 3): must be a list in [ ], not 'gaze'"),
        (core(topics='["gaze", "gaze"]'), "source[0].topics (line 3): names something twice"),
        (core(address='"tcp://127.0.0.1:50020"'),
         "source[0].address (line 3): 'tcp://127.0.0.1:50020' is not an address: "
         "write host:port, such as 127.0.0.1:50020"),
        (core(path_asymmetry_ms="1000.1"),
         "source[0].path_asymmetry_ms (line 3): 1000.1 is out of range: it must be at most 1000"),
        (core(path_asymmetry_ms="-1001"),
         "source[0].path_asymmetry_ms (line 3): -1001 is out of range: it must be at least -1000"),
        (core(path_asymmetry_ms="nan"), "source[0].path_asymmetry_ms (line 3): must be a finite number, not nan"),
        (core(path_asymmetry_ms='"2"'), "source[0].path_asymmetry_ms (line 3): must be a finite number, not '2'"),
        ('[[source]]\ntype = "ndsi"\n[[source.device]]\nname = "a"\npath_asymmetry_ms = 2000\n',
         "source[0].device[0].path_asymmetry_ms (line 5): 2000 is out of range: it must be at most 1000"),
        (core(address='"here:0"'), "source[0].address (line 3): 'here:0': the port must be 1 to 65535"),
        (core(**{'"a b"': "1", "type2": "1"}).replace("type2 = 1\n", ""),
         'source[0]."a b" (line 3): unknown key; known here: name, lsl_prefix, intrinsics, path_asymmetry_ms, type, '
         "address, scene_size, topics, reorder_window_ms, late, live, surfaces, annotations, notifications, compat, "
         "pupillometry_only, time_sync, interface, beacon_port, frame_format, gaze, pupil, scene, eyes"),
    ],
)  # fmt: skip
def test_a_fault_in_a_source_is_explained(text: str, fault: str) -> None:
    assert faults(text + SINK) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[[sink]]\ntype = "lsl"\n',
         "sink[1].type (line 6): sink[0] is 'lsl' already; there can be one sink of each type"),
        ('[[sink]]\ntype = "ros2"\nnamespace = "/eyes"\n',
         "sink[1].namespace (line 7): '/eyes' is not a relative ROS name: such as lab/eyes, without '/' at either end"),
        ('[[sink]]\ntype = "ros2"\nnode_name = "a__b"\n',
         "sink[1].node_name (line 7): 'a__b' is not a ROS name: letters, digits and single '_', first a letter"),
        ('[[sink]]\ntype = "ros2"\nqueue_size = 9\n',
         "sink[1].queue_size (line 7): 9 is out of range: it must be at least 10"),
        ("[loging]\n", "loging (line 5): unknown key; did you mean 'logging'?"),
        ("[logging]\nlevel = 'warn'\n", "logging.level (line 6): 'warn' is not possible; did you mean 'warning'?"),
        ("[service]\nsocket = 'x.sock'\n",
         "service.socket (line 6): 'x.sock' is not an absolute path (it begins with \"/\") or \"auto\""),
        (f"[service]\nsocket = '/{'x' * 107}'\n",
         "service.socket (line 6): this path is too long for a socket: at most 107 bytes"),
    ],
)  # fmt: skip
def test_a_fault_outside_of_the_sources_is_explained(text: str, fault: str) -> None:
    assert faults(SMALLEST + text) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[marker]\nstream = 'a'\n",
         "marker (line 5): must be a list of tables: write [[marker]] with double brackets"),
        ("[[marker]]\n", "marker[0].stream (line 5): missing; it has no default"),
        ("[[marker]]\nstream = ''\n", "marker[0].stream (line 6): must not be empty"),
        ('[[marker]]\nstream = "a\\u0000"\n',
         "marker[0].stream (line 6): 'a\\x00' cannot be looked for in LSL: it has letters for control, "
         "or both ' and \""),
        ("[[marker]]\nstream = 'a'\nsource_id = \"\"\"'\"b\"\"\"\n",
         "marker[0].source_id (line 7): '\\'\"b' cannot be looked for in LSL: it has letters for control, "
         "or both ' and \""),
        ("[[marker]]\nstream = 'a'\ndoes = 'event'\n",
         "marker[0].does (line 7): 'event' is not possible; did you mean 'events'?"),
        ("[[marker]]\nstream = 'a'\ndevices = ['Core']\n",
         "marker[0].devices[0] (line 7): 'Core' must be a-z, 0-9 and _, begin with a letter, "
         "and have at most 40 characters"),
        ("[[marker]]\nstream = 'a'\ndevices = ['core', 'core']\n",
         "marker[0].devices (line 7): names something twice"),
        ("[[marker]]\nstream = 'a'\n[[marker]]\nstream = 'a'\nsource_id = ''\n",
         "marker[1].stream (line 8): 'a' is listened to by marker[0] already"),
    ],
)  # fmt: skip
def test_a_fault_of_a_marker_stream_is_explained(text: str, fault: str) -> None:
    assert faults(SMALLEST + text) == [fault]


def test_streams_of_one_name_are_told_apart_by_source_id_and_computer() -> None:
    text = "".join(
        f"[[marker]]\nstream = 'a'\n{more}\n" for more in ("", "source_id = 'b'", "hostname = 'b'", "hostname = 'c'")
    )
    assert [marker.listens_to for marker in parse(SMALLEST + text, "x").markers] == [
        *(("a", "", ""), ("a", "b", ""), ("a", "", "b"), ("a", "", "c"))
    ]


def test_two_devices_need_different_names_and_prefixes() -> None:
    assert faults(core(address='"a:1"') + core(address='"b:1"') + SINK) == [
        "source[1].name (line 4): 'pupil_core' is the name of source[0] already"
    ]
    assert faults(core(address='"a:1"', name='"a"') + core(address='"b:1"', lsl_prefix='"pupil_labs_a"') + SINK) == [
        "source[1].lsl_prefix (line 8): 'pupil_labs_a' is the prefix of source[0] already"
    ]


def test_two_pupil_cores_need_different_addresses_however_they_are_written() -> None:
    assert faults(core() + core(name='"b"', address='"localhost:50020"') + SINK) == [
        "source[1].address (line 6): 'localhost:50020' is the address of source[0] already"
    ]
    assert len(parse(core() + core(name='"b"', address='"localhost:50021"') + SINK, "x").sources) == 2


def test_two_sources_cannot_watch_the_same_network() -> None:
    assert faults('[[source]]\ntype = "ndsi"\n' + SMALLEST) == [
        "source[1].interface (line 3): 'auto' is watched by source[0] already; list all its devices there"
    ]


def test_a_device_that_an_earlier_one_hides_is_a_fault() -> None:
    text = '[[source]]\ntype = "ndsi"\ndevice = [{name = "a"}, {name = "b", match = "B*"}]\n'
    assert faults(text + SINK) == [
        "source[0].device[1].match (line 3): 'B*' is never reached: source[0].device[0] takes these devices first"
    ]


def test_a_file_with_very_many_faults_is_reported_without_a_search_for_every_line() -> None:
    lines = faults(SMALLEST + "[clock]\n" + "".join(f"x{number} = 1\n" for number in range(3000)))
    assert len(lines) == 3000
    assert lines[0].startswith("clock.x0: unknown key; known here: ")


def test_a_number_beyond_the_64_bits_of_toml_is_a_fault_however_long_it_is() -> None:
    for digits in (16, 5000):
        assert faults(f"{SMALLEST}max_buffered_s = 0x{'f' * digits}\n[clock]\nhold_s = 0x{'f' * digits}\n") == [
            "sink[0].max_buffered_s (line 5): a whole number in TOML must fit into 64 bits",
            "clock.hold_s (line 7): a whole number in TOML must fit into 64 bits",
        ]
    assert faults(f"{SMALLEST}max_buffered_s = {2**63 - 1}\n") == [
        "sink[0].max_buffered_s (line 5): 9223372036854775807 is out of range: it must be at most 86400"
    ]


def test_lists_nested_to_any_depth_are_a_configuration_error() -> None:
    endings = set()
    for depth in range(1, 600):  # somewhere here Python's stack ends: first in the search for the line, then in parsing
        with pytest.raises(ConfigError) as caught:
            parse(f"{SMALLEST}[clock]\nx = {'[' * depth}{']' * depth}\n", "x.toml")
        endings.add(str(caught.value).split(";")[0])
    assert endings >= {"x.toml: 1 fault\n  clock.x (line 6): unknown key", "x.toml: is nested too deeply"}


# --- files -----------------------------------------------------------------------------------------------------------


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_one_clear_sentence(tmp_path: Path) -> None:
    assert message(tmp_path / "none.toml") == f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    assert message(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert "cannot be read" in message(Path("a\0b"))


def test_a_file_that_is_not_toml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text("[[source]]\ntype = ndsi\n")
    assert message(path) == f"{path}: is not valid TOML: Invalid value (at line 2, column 8)"
    path.write_bytes(b"# a\n# \xff\n")
    assert message(path) == f"{path}: is not UTF-8 text (line 2)"
    path.write_text("a = " + "[" * 100_000)
    assert message(path) == f"{path}: is nested too deeply"


def test_a_file_from_a_windows_editor_loads(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load(path) == parse(SMALLEST, "x")


def test_the_configuration_imports_nothing_heavy_but_pydantic() -> None:
    code = "import bridge.config, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"zmq", "numpy", "pylsl", "rclpy", "msgspec", "pyre", "click", "asyncio"} == set()


# --- anything at all -------------------------------------------------------------------------------------------------

KEYS = sorted({field.alias or name for _, table in tables_of(Config) for name, field in table.model_fields.items()})
SCALARS = (
    st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 10, 16384, 2**63 - 1, -(2**63), 10**400, -(10**400)])
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(
        ["auto", "ndsi", "pupil_core", "lsl", "ros2", "gaze", "127.0.0.1", "a:1", "*", "/x", "\0", "²³:9", "²"]
    )
    | st.dates()
    | st.times().map(lambda moment: moment.replace(fold=0))
    | st.datetimes().map(lambda moment: moment.replace(fold=0))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def toml(value: Any) -> str:
    """A value in TOML's notation for one line."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return hex(value) if value > 10**300 else str(value)
        case float():
            return "nan" if math.isnan(value) else repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
        case date() | time() | datetime():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{toml(key)} = {toml(inner)}' for key, inner in value.items())}}}"
    raise AssertionError(value)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, item in inner for deeper in places(item, (*place, key)))]


def full_tree() -> dict[str, Any]:
    return tomllib.loads(COMMENTED_KEY.sub("", SHIPPED.read_text()))


def parsed(tree: dict[str, Any], *, readable: bool = True) -> Config | ConfigError:
    text = "".join(f"{toml(key)} = {toml(value)}\n" for key, value in tree.items())
    assert not readable or repr(tomllib.loads(text)) == repr(tree)
    try:
        return parse(text, "x.toml")
    except ConfigError as error:
        heading, *lines = str(error).split("\n")
        assert heading.startswith(f"x.toml: {len(lines)} fault")
        assert lines
        for line in lines:
            assert re.fullmatch(r"  \S.*(?: \(line \d+\))?: .+", line), line
        return error


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_an_arbitrary_tree_is_a_configuration_or_a_configuration_error(tree: dict[str, Any]) -> None:
    parsed(tree)


@settings(deadline=None, max_examples=400)
@given(st.data(), VALUES)
def test_an_arbitrary_value_in_an_arbitrary_place_is_right_or_a_configuration_error(
    data: st.DataObject, value: Any
) -> None:
    tree = full_tree()
    place = data.draw(st.sampled_from([place for place in places(tree) if place]))
    inner: Any = tree
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    parsed(tree)


def test_a_number_too_long_to_write_is_a_configuration_error_in_every_place() -> None:
    # Apart from the test above: hypothesis itself cannot print such a number.
    for place in places(full_tree())[1:]:
        tree = full_tree()
        inner: Any = tree
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = 1 << 20_000
        assert isinstance(parsed(tree, readable=False), ConfigError), place


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_an_arbitrary_unknown_key_in_an_arbitrary_table_is_named(data: st.DataObject) -> None:
    tree = full_tree()
    key = data.draw(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda key: key not in KEYS)
    )
    tables = []
    for place in places(tree):
        inner: Any = tree
        for part in place:
            inner = inner[part]
        if isinstance(inner, dict):
            tables.append(inner)
    # Numbers beyond 64 bits are named before anything else, so there are none here.
    small = st.integers(-9, 9) | st.floats() | st.booleans() | st.lists(st.just("gaze")) | st.just({"name": 1})
    data.draw(st.sampled_from(tables))[key] = data.draw(small)
    error = parsed(tree)
    assert isinstance(error, ConfigError)
    assert str(error).count("\n") == 1
    assert ": unknown key; " in str(error)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="[]{}=.\"'#\n abs1:-_\\") | st.text())
def test_an_arbitrary_text_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, "x.toml")


@pytest.mark.parametrize("value", ['"auto"', '"none"'])
def test_intrinsics_are_those_that_are_shipped_or_none(value: str) -> None:
    assert parse(core(intrinsics=value) + SINK, "FILE").sources[0].intrinsics == value.strip('"')


def test_a_file_of_intrinsics_is_read_before_it_is_used(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "config/intrinsics/pupil_core_1280x720.yaml"
    assert parse(core(intrinsics=f'"{shipped}"') + SINK, "FILE").sources[0].intrinsics == str(shipped)
    for text, reason in ((None, "cannot be read: No such file"), ("a: 1\n", "image_width")):
        file = tmp_path / "own.yaml"
        if text is not None:
            file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"source\[0\].intrinsics.*own.yaml") as caught:
            parse(core(intrinsics=f'"{file}"') + SINK, "FILE")
        assert reason in str(caught.value) or "is missing" in str(caught.value)
    with pytest.raises(ConfigError, match="not an absolute path"):
        parse(core(intrinsics='"own.yaml"') + SINK, "FILE")
