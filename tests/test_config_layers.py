"""Drop-ins and the environment: what wins, where faults are reported, and that layers mean what one file would."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import VARIABLES, Config, LslSink, NdsiSource, PupilCoreSource, Ros2Sink, load, parse
from bridge.config_faults import SECRETS, tables_of
from bridge.config_layers import OPTIONS, PREFIX, drop_ins, environment
from bridge.errors import ConfigError

SMALLEST = '[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n'
SECRET = "correct-horse-battery-staple"


class Folder:
    """A configuration's folder, with drop-ins and variables as a test wants them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "bridge.toml"
        self.extra = path / "config.d"
        self.environ: dict[str, str] = {}
        self.write(SMALLEST)

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def drop(self, name: str, text: str | bytes) -> Path:
        self.extra.mkdir(exist_ok=True)
        made = self.extra / name
        made.write_bytes(text if isinstance(text, bytes) else text.encode())
        return made

    def load(self) -> Config:
        return load(self.file, self.environ)

    def refusal(self) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load()
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# --- which files -----------------------------------------------------------------------------------------------------


def test_without_drop_ins_the_file_is_the_configuration(folder: Folder) -> None:
    assert drop_ins(folder.file) == []
    assert folder.load() == parse(SMALLEST, "x")
    folder.extra.mkdir()
    assert folder.load() == parse(SMALLEST, "x")


def test_a_file_of_the_name_of_the_folder_is_no_folder_of_drop_ins(folder: Folder) -> None:
    folder.extra.write_text("clock = 5")
    assert folder.load() == parse(SMALLEST, "x")


def test_drop_ins_count_in_the_order_of_their_names_and_the_last_one_wins(folder: Folder) -> None:
    names = ["90-z.toml", "10-a.toml", "9.toml", "Z.toml", "a.toml", "10-B.toml"]
    for name in names:
        folder.drop(name, f"[clock]\nhold_s = {names.index(name)}")
    assert [path.name for path in drop_ins(folder.file)] == sorted(names)
    assert folder.load().clock.hold_s == names.index("a.toml")
    (folder.extra / "a.toml").unlink()
    assert folder.load().clock.hold_s == names.index("Z.toml")


def test_hidden_files_backups_and_other_endings_are_no_drop_ins(folder: Folder) -> None:
    for name in (".hidden.toml", ".toml", "lab.toml~", "lab.toml.bak", "lab.txt", "#lab.toml#", "toml"):
        folder.drop(name, "this is not TOML")
    (folder.extra / "deeper").mkdir()
    (folder.extra / "deeper" / "lab.toml").write_text("nor this")
    assert folder.load() == parse(SMALLEST, "x")


@pytest.mark.parametrize("last", ["\n", ""])
def test_a_byte_order_mark_windows_lines_and_a_missing_last_newline_are_read(folder: Folder, last: str) -> None:
    folder.drop("a.toml", b"\xef\xbb\xbf" + f"[clock]\r\nhold_s = 7{last}".encode())
    assert folder.load().clock.hold_s == 7


def test_an_empty_drop_in_changes_nothing(folder: Folder) -> None:
    folder.drop("a.toml", "")
    folder.drop("b.toml", "# [clock]\n")
    assert folder.load() == parse(SMALLEST, "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[clock]\nhold_s = 1 # \xff", "is not UTF-8 text (line 2)"),
        (b"hold_s", "is not valid TOML"),
        (b"\x00", "is not valid TOML"),
        (b"[clock]\nhold_s = 1\nhold_s = 2\n", "is not valid TOML"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
        (b"[" + b"a." * 3_000 + b"a]\nb = 1\n", "is nested too deeply"),
    ],
    ids=["encoding", "no toml", "zero byte", "twice", "deep lists", "deep tables"],
)
def test_a_drop_in_that_cannot_be_read_is_refused_by_its_own_name(folder: Folder, content: bytes, words: str) -> None:
    folder.drop("10-good.toml", "[clock]\nhold_s = 1\n")
    bad = folder.drop("20-bad.toml", content)
    folder.drop("30-good.toml", "[logging]\nlevel = 'debug'\n")
    refusal = folder.refusal()
    assert refusal.startswith(f"{bad}: {words}")
    assert len(refusal.splitlines()) == 1
    assert len(refusal) < 500


def test_a_folder_and_a_dead_link_of_the_name_of_a_drop_in_are_refused(folder: Folder) -> None:
    folder.extra.mkdir()
    bad = folder.extra / "a.toml"
    bad.mkdir()
    assert folder.refusal() == f"{bad}: cannot be read: Is a directory"
    bad.rmdir()
    bad.symlink_to("nowhere")
    assert folder.refusal() == f"{bad}: cannot be read: No such file or directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize("mode", [0o000, 0o711])
def test_drop_ins_that_the_daemon_may_not_see_are_not_passed_over(mode: int) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(Path(path))
        folder.path.chmod(0o755)
        folder.drop("a.toml", "[clock]\nhold_s = 7\n")
        os.seteuid(65534)  # nobody
        try:
            assert folder.load().clock.hold_s == 7
            os.seteuid(0)
            folder.extra.chmod(mode)
            os.seteuid(65534)
            assert folder.refusal() == f"{folder.extra}: cannot be read: Permission denied"
        finally:
            os.seteuid(0)


def test_hundreds_of_drop_ins_with_hundreds_of_entries_are_merged(folder: Folder) -> None:
    count = 300
    for number in range(count):
        folder.drop(
            f"{number:03}.toml",
            '[[source]]\ntype = "ndsi"\n'
            f'[[source.device]]\nname = "d{number}"\nmatch = "Phone {number}"\n'
            + (f'[[source.device]]\nname = "d{number // 2}"\npath_asymmetry_ms = {number}\n' if number else ""),
        )
    (source,) = folder.load().sources
    assert isinstance(source, NdsiSource)
    assert [device.name for device in source.devices] == [f"d{number}" for number in range(count)]
    assert [device.path_asymmetry_ms for device in source.devices[:3]] == [1, 3, 5]  # the last that names it


def test_no_layer_is_changed_by_those_after_it(folder: Folder) -> None:
    folder.drop("a.toml", '[[source]]\ntype = "pupil_core"\nname = "core"\ngaze = {latency_ms = 5}\n')
    folder.drop("b.toml", '[[source]]\ntype = "pupil_core"\nname = "core"\ngaze = {latency_ms = -5000}\n')
    folder.drop("c.toml", '[[source]]\ntype = "pupil_core"\nname = "core"\ngaze = {expected_rate_hz = -1}\n')
    assert folder.refusal().splitlines() == [
        f"{folder.extra / 'b.toml'}: 1 fault",
        "  source[0].gaze.latency_ms (line 4): -5000 is out of range: it must be at least -1000",
        f"{folder.extra / 'c.toml'}: 1 fault",
        "  source[0].gaze.expected_rate_hz (line 4): -1 is out of range: it must be more than 0",
    ]


# --- what an entry is known by ---------------------------------------------------------------------------------------


def test_a_sink_is_known_by_its_type(folder: Folder) -> None:
    folder.drop("a.toml", '[[sink]]\ntype = "ros2"\nqueue_size = 10\n[[sink]]\ntype = "lsl"\nmax_buffered_s = 5\n')
    folder.drop("b.toml", '[[sink]]\ntype = "ros2"\nnamespace = "lab"\n')
    assert folder.load().sinks == (
        LslSink(type="lsl", max_buffered_s=5),
        Ros2Sink(type="ros2", queue_size=10, namespace="lab"),
    )


def test_a_core_is_known_by_its_name_and_another_name_is_another_one(folder: Folder) -> None:
    folder.write('[[source]]\ntype = "pupil_core"\nname = "one"\n[[sink]]\ntype = "lsl"\n')
    folder.drop("a.toml", '[[source]]\ntype = "pupil_core"\nname = "one"\naddress = "10.0.0.1:1"\n')
    folder.drop("b.toml", '[[source]]\ntype = "pupil_core"\nname = "two"\n')
    found = folder.load().sources
    assert all(isinstance(source, PupilCoreSource) for source in found)
    assert [(source.name, source.address) for source in found if isinstance(source, PupilCoreSource)] == [
        ("one", "10.0.0.1:1"),
        ("two", "127.0.0.1:50020"),
    ]


def test_what_is_left_out_of_an_entry_is_its_default_also_where_it_is_known_by_that(folder: Folder) -> None:
    folder.write('[[source]]\ntype = "pupil_core"\n[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n')
    folder.drop("a.toml", '[[source]]\ntype = "pupil_core"\nname = "pupil_core"\naddress = "10.0.0.1:1"\n')
    folder.drop("b.toml", '[[source]]\ntype = "ndsi"\nbeacon_port = 5670\n[[source.device]]\nname = "a"\n')
    folder.drop("c.toml", '[[source]]\ntype = "pupil_core"\ntopics = ["gaze"]\n')
    core, phones = folder.load().sources
    assert isinstance(core, PupilCoreSource)
    assert isinstance(phones, NdsiSource)
    assert (core.address, core.topics) == ("10.0.0.1:1", ("gaze",))
    assert [device.name for device in phones.devices] == ["a"]


def test_an_ndsi_source_is_known_by_interface_and_port(folder: Folder) -> None:
    folder.write('[[source]]\ntype = "ndsi"\ninterface = "10.0.0.1"\n[[sink]]\ntype = "lsl"\n')
    folder.drop("a.toml", '[[source]]\ntype = "ndsi"\ninterface = "10.0.0.1"\n[[source.device]]\nname = "a"\n')
    folder.drop("b.toml", '[[source]]\ntype = "ndsi"\ninterface = "10.0.0.2"\n[[source.device]]\nname = "b"\n')
    folder.drop("c.toml", '[[source]]\ntype = "ndsi"\ninterface = "10.0.0.1"\nbeacon_port = 7\n')
    folder.drop("d.toml", '[[source]]\ntype = "ndsi"\n')
    found = folder.load().sources
    assert [
        (str(source.interface), source.beacon_port, [device.name for device in source.devices])
        for source in found
        if isinstance(source, NdsiSource)
    ] == [("10.0.0.1", 5670, ["a"]), ("10.0.0.2", 5670, ["b"]), ("10.0.0.1", 7, []), ("None", 5670, [])]


def test_a_marker_stream_is_known_by_what_it_listens_to(folder: Folder) -> None:
    folder.write(f"{SMALLEST}[[marker]]\nstream = 'a'\ndevices = ['core']\n")
    folder.drop("a.toml", "[[marker]]\nstream = 'a'\nsource_id = ''\ndoes = 'commands'\n")
    folder.drop("b.toml", "[[marker]]\nstream = 'a'\nsource_id = 'b'\n")
    assert [(marker.source_id, marker.does, marker.devices) for marker in folder.load().markers] == [
        *(("", "commands", ("core",)), ("b", "events", ()))
    ]


def test_a_name_that_comes_twice_in_one_file_is_a_fault_of_that_file(folder: Folder) -> None:
    bad = folder.drop("a.toml", '[[source]]\ntype = "pupil_core"\nname = "x"\n' * 2)
    heading, *lines = folder.refusal().splitlines()
    assert heading == f"{bad}: 2 faults"  # its address, too
    assert [line.split(": ")[0] for line in lines] == ["  source[1].address (line 4)", "  source[1].name (line 6)"]


@pytest.mark.parametrize(
    "entry",
    ["type = 5", "type = []", "name = {}", 'type = "ndsi"\ninterface = [1]', 'type = "ndsi"\nbeacon_port = {a = 1}'],
)
def test_an_entry_that_cannot_be_known_is_a_fault_and_no_crash(folder: Folder, entry: str) -> None:
    bad = folder.drop("a.toml", f"[[source]]\n{entry}\n")
    assert folder.refusal().startswith(f"{bad}: ")


@pytest.mark.parametrize("text", ["source = 5", "sink = [1]", "clock = []", 'clock = "x"', "[[clock]]\nhold_s = 1"])
def test_a_table_that_is_replaced_by_something_else_is_a_fault_of_who_did_it(folder: Folder, text: str) -> None:
    folder.write(SMALLEST + "[clock]\nhold_s = 2\n")
    bad = folder.drop("a.toml", text)
    heading, *lines = folder.refusal().splitlines()
    assert heading == f"{bad}: 1 fault"
    assert "(line 1)" in lines[0]


# --- where faults are ------------------------------------------------------------------------------------------------


def test_every_fault_is_under_its_file_at_its_place_and_line_there(folder: Folder) -> None:
    folder.write('\n[[source]]\ntype = "ndsi"\nbeacon = 3\n[[sink]]\ntype = "lsl"\n[clock]\nhold_s = 99\n')
    first = folder.drop("a.toml", '# mine\n[clock]\nping_interval_s = 0\n[[sink]]\ntype = "ros2"\nqueue_size = 1\n')
    second = folder.drop("b.toml", '[[source]]\ntype = "pupil_core"\n[[source]]\ntype = "ndsi"\ndevice = [{}]\n')
    folder.environ["PUPIL_BRIDGE_LOGGING_LEVEL"] = "loud"
    folder.environ["PUPIL_BRIDGE_CLOCK_HOLDS"] = "1"
    assert folder.refusal().splitlines() == [
        f"{folder.file}: 2 faults",
        "  source[0].beacon (line 4): unknown key; did you mean 'beacon_port'?",
        "  clock.hold_s (line 8): 99 is out of range: it must be at most 60",
        f"{first}: 2 faults",
        "  clock.ping_interval_s (line 3): 0 is out of range: it must be at least 0.1",
        "  sink[0].queue_size (line 6): 1 is out of range: it must be at least 10",
        f"{second}: 1 fault",
        "  source[1].device[0].name (line 5): missing; it has no default",
        "the environment: 2 faults",
        "  PUPIL_BRIDGE_CLOCK_HOLDS: is no setting; did you mean PUPIL_BRIDGE_CLOCK_HOLD_S?",
        "  PUPIL_BRIDGE_LOGGING_LEVEL: 'loud' is not possible; one of 'debug', 'info', 'warning', 'error'",
    ]


def test_a_fault_that_a_later_layer_takes_away_is_none(folder: Folder) -> None:
    folder.write(SMALLEST + "[clock]\nhold_s = 99\n[logging]\nlevel = 'loud'\n")
    folder.drop("a.toml", "clock.hold_s = 9\n")
    folder.environ["PUPIL_BRIDGE_LOGGING_LEVEL"] = "debug"
    config = folder.load()
    assert (config.clock.hold_s, config.logging.level) == (9, "debug")


def test_a_clash_of_two_files_names_the_file_and_the_place_of_the_other(folder: Folder) -> None:
    folder.write('[[source]]\ntype = "ndsi"\n[[source.device]]\nname = "one"\n[[sink]]\ntype = "lsl"\n')
    bad = folder.drop("a.toml", '[[source]]\ntype = "pupil_core"\nname = "one"\n')
    heading, line = folder.refusal().splitlines()
    assert heading == f"{bad}: 1 fault"
    assert line.startswith("  source[0].name (line 3): 'one' is the name of ")
    # source[0] of a.toml is the one that is complained about: the other one is in another file, which has to be said.
    assert str(folder.file) in line or folder.file.name in line


def test_without_any_sink_in_all_files_that_is_one_fault(folder: Folder) -> None:
    folder.write('[[source]]\ntype = "ndsi"\n')
    folder.drop("a.toml", "[clock]\nhold_s = 1\n")
    assert folder.refusal().splitlines() == [f"{folder.file}: 1 fault", "  sink: there must be at least one [[sink]]"]


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_wins_over_every_file(folder: Folder) -> None:
    folder.write(SMALLEST + "[clock]\nhold_s = 1\nping_interval_s = 2\n")
    folder.drop("zzz.toml", "[clock]\nhold_s = 3\n")
    folder.environ = {"PUPIL_BRIDGE_CLOCK_HOLD_S": "4.5", "HOME": "/x", "pupil_bridge_clock_hold_s": "6"}
    config = folder.load()
    assert (config.clock.hold_s, config.clock.ping_interval_s) == (4.5, 2)


def test_variables_are_read_as_toml_and_texts_need_no_quotes(folder: Folder) -> None:
    folder.environ = {
        "PUPIL_BRIDGE_CLOCK_HOLD_S": "7",
        "PUPIL_BRIDGE_CLOCK_UNLOCKED": "drop",
        "PUPIL_BRIDGE_LOGGING_LEVEL": "WARNING",
        "PUPIL_BRIDGE_SERVICE_SOCKET": "/run/with space/#.sock",
        "PUPIL_BRIDGE_HTTP_LISTEN": "0.0.0.0:8420",
        "PUPIL_BRIDGE_HTTP_ALLOW_REMOTE": "true",
        "PUPIL_BRIDGE_HTTP_TOKEN": SECRET,
        "PUPIL_BRIDGE_OVERLOAD_FLOOD_HZ": "1_000",
    }
    config = folder.load()
    assert (config.clock.hold_s, config.clock.unlocked, config.logging.level) == (7, "drop", "warning")
    assert config.service.socket == Path("/run/with space/#.sock")
    assert (config.http.listen, config.http.allow_remote, config.http.secret()) == (("0.0.0.0", 8420), True, SECRET)
    assert config.overload.flood_hz == 1000


def test_variables_of_commands_and_of_others_are_no_settings(folder: Folder) -> None:
    folder.environ = dict.fromkeys([*OPTIONS, "PUPIL_BRIDGES_X", "PATH", "XPUPIL_BRIDGE_CLOCK_HOLD_S"], "x")
    assert folder.load() == parse(SMALLEST, "x")


def test_every_key_of_every_single_table_has_one_variable(folder: Folder) -> None:
    single = {
        (place[0], field.alias or name)
        for place, table in tables_of(Config)
        for name, field in table.model_fields.items()
        if len(place) == 1 and place[0] != "marker"  # a list
    }
    assert {(table, key) for table, keys in VARIABLES.items() for key in keys} == single
    names = [f"{PREFIX}{table}_{key}".upper() for table, key in single]
    assert len({*names, *OPTIONS}) == len(names) + len(OPTIONS)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CLOCK_HOLD_S", "", "must be a finite number, not ''"),
        ("CLOCK_HOLD_S", "five", "must be a finite number, not 'five'"),
        ("CLOCK_HOLD_S", '"5"', "must be a finite number, not '5'"),
        ("CLOCK_HOLD_S", "nan", "must be a finite number, not nan"),
        ("CLOCK_HOLD_S", "[" * 100_000, "must be a finite number, not '["),
        ("CLOCK_HOLD_S", "5\nping_interval_s = 3", "must be a finite number, not '5\\n"),
        ("CLOCK_HOLD_S", "1_000", "1000 is out of range: it must be at most 60"),
        ("LOGGING_LEVEL", "", "'' is not possible"),
        ("LOGGING_LEVEL", "\udcff", "valid string"),
        ("SERVICE_SOCKET", "", "'' is not an absolute path"),
        ("HTTP_LISTEN", "", "'' is not an address to listen on"),
        ("HTTP_LISTEN", "8420", "'8420' is not an address to listen on"),
        ("OVERLOAD_FLOOD_HZ", "99999999999999999999999", "must fit into 64 bits"),
        ("OVERLOAD_FLOOD_HZ", "0x" + "f" * 5000, "must fit into 64 bits"),
        ("CLOCK", "5", "is no setting"),
        ("", "5", "is no setting"),
        ("clock_hold_s", "5", "is no setting; did you mean"),
        ("SOURCE_TYPE", "ndsi", "is no setting"),
    ],
)
def test_a_variable_that_is_wrong_is_named_with_what_is_wrong(
    folder: Folder, name: str, value: str, words: str
) -> None:
    folder.environ = {f"PUPIL_BRIDGE_{name}": value}
    heading, line = folder.refusal().splitlines()
    assert heading == "the environment: 1 fault"
    assert line.startswith(f"  PUPIL_BRIDGE_{name}: ")
    assert words in line
    assert len(line) < 300
    line.encode(errors="backslashreplace")


def test_an_empty_token_is_none(folder: Folder) -> None:
    folder.write(SMALLEST + f"[http]\ntoken = '{SECRET}'\n")
    assert folder.load().http.secret() == SECRET
    folder.environ = {"PUPIL_BRIDGE_HTTP_TOKEN": ""}
    assert folder.load().http.secret() is None


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from([f"{PREFIX}{table}_{key}".upper() for table, keys in VARIABLES.items() for key in keys]),
            st.text().map(lambda text: PREFIX + text),
            st.text(),
        ),
        st.one_of(st.text(), st.integers().map(str), st.sampled_from(["true", "1979-05-27", "{a=1}", "[1]", "inf"])),
    )
)
def test_any_environment_gives_a_configuration_or_a_config_error(environ: dict[str, str]) -> None:
    layer, faults = environment(environ, VARIABLES)
    wrong = {name for name in environ if name.startswith(PREFIX) and name not in OPTIONS} - {
        f"{PREFIX}{table}_{key}".upper() for table, keys in VARIABLES.items() for key in keys
    }
    assert {layer.variables[fault.place] for fault in faults} == wrong


# --- secrets ---------------------------------------------------------------------------------------------------------

LONG = SECRET * 40
BAD_TOKENS: dict[str, Callable[[Folder], object]] = {
    "too short": lambda f: f.write(f"{SMALLEST}[http]\ntoken = '{SECRET[:7]}'\n"),
    "too long": lambda f: f.write(f"{SMALLEST}[http]\ntoken = '{LONG}'\n"),
    "a list": lambda f: f.write(f"{SMALLEST}[http]\ntoken = ['{SECRET}']\n"),
    "a table": lambda f: f.write(f"{SMALLEST}[http]\ntoken = {{value = '{SECRET}'}}\n"),
    "of a drop-in": lambda f: f.drop("a.toml", f"[http]\ntoken = '{LONG}'\n"),
    "of the environment": lambda f: f.environ.update({"PUPIL_BRIDGE_HTTP_TOKEN": SECRET[:7]}),
    "under a wrong name": lambda f: f.environ.update({"PUPIL_BRIDGE_HTTP_TOKN": SECRET}),
    "at a wrong key": lambda f: f.write(f"{SMALLEST}[http]\ntokn = '{SECRET}'\n"),
    "and another fault": lambda f: f.write(f"{SMALLEST}[http]\ntoken = '{SECRET}'\nlisten = '0.0.0.0:80'\n"),
    "in bad TOML": lambda f: f.write(f"{SMALLEST}[http]\ntoken = '{SECRET}\nlisten = 'off'\n"),
    "without quotes": lambda f: f.write(f"{SMALLEST}[http]\ntoken = {SECRET}\n"),
    "and a file": lambda f: f.write(f"{SMALLEST}[http]\ntoken = '{SECRET}'\ntoken_file = '/x'\n"),
}


@pytest.mark.parametrize("how", BAD_TOKENS)
def test_a_refusal_never_shows_a_secret(folder: Folder, how: str) -> None:
    BAD_TOKENS[how](folder)
    refusal = folder.refusal()
    assert SECRET[:7] not in refusal
    assert SECRET[8:20] not in refusal
    assert "token" in refusal.lower() or "tokn" in refusal.lower() or "listen" in refusal or "TOML" in refusal


def test_a_number_as_a_token_is_not_shown(folder: Folder) -> None:
    folder.write(SMALLEST + "[http]\ntoken = 8675309867530986\n")
    assert "86753" not in folder.refusal()


def test_no_text_of_a_configuration_shows_its_secret(folder: Folder) -> None:
    folder.environ = {"PUPIL_BRIDGE_HTTP_TOKEN": SECRET}
    config = folder.load()
    assert config.http.secret() == SECRET
    for text in (
        repr(config),
        str(config),
        f"{config.http!r}",
        config.model_dump_json(by_alias=True),
        json.dumps(config.model_dump(mode="json")),
        repr(config.model_dump()),
    ):
        assert SECRET not in text


def test_every_key_that_is_a_secret_is_known_as_one() -> None:
    secret = {
        name
        for _, table in tables_of(Config)
        for name, field in table.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert secret == set(SECRETS)


def test_a_token_file_that_cannot_be_used_is_said_without_its_content(folder: Folder) -> None:
    token_file = folder.path / "token"
    folder.write(f"{SMALLEST}[http]\ntoken_file = '{token_file}'\n")
    config = folder.load()
    cases = [
        (None, "No such file"),
        (SECRET[:7].encode(), "16 to 1000"),
        (LONG.encode(), "16 to 1000"),
        (SECRET.encode() + b"\xff", "not ASCII"),
    ]
    for content, words in cases:
        if content is not None:
            token_file.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            config.http.secret()
        assert SECRET[:7] not in str(caught.value)
    token_file.write_text(f"  {SECRET}\n")
    assert config.http.secret() == SECRET


# --- HTTP that others can reach --------------------------------------------------------------------------------------


def test_what_one_file_opens_another_one_has_to_lock(folder: Folder) -> None:
    first = folder.drop("a.toml", "[http]\nlisten = '0.0.0.0:80'\n")
    assert folder.refusal().splitlines() == [
        f"{first}: 1 fault",
        "  http.listen (line 2): '0.0.0.0:80' can be reached by other computers: that needs http.allow_remote = true",
    ]
    folder.drop("b.toml", "[http]\nallow_remote = true\n")
    assert folder.refusal().splitlines() == [
        f"{first}: 1 fault",
        "  http.listen (line 2): other computers need a token: set http.token or http.token_file",
    ]
    folder.environ["PUPIL_BRIDGE_HTTP_TOKEN"] = SECRET
    assert folder.load().http.listen == ("0.0.0.0", 80)


@pytest.mark.parametrize(
    ("listen", "remote"),
    [
        ("127.0.0.1:1", False),
        ("127.9.9.9:65535", False),
        ("localhost:80", False),
        ("[::1]:80", False),
        ("0.0.0.0:80", True),
        ("[::]:80", True),
        ("10.0.0.1:80", True),
        ("[::ffff:10.0.0.1]:80", True),
        ("off", None),
    ],
)
def test_only_loopback_needs_no_leave(folder: Folder, listen: str, remote: bool | None) -> None:
    folder.environ = {"PUPIL_BRIDGE_HTTP_LISTEN": listen}
    if remote:
        assert "can be reached by other computers" in folder.refusal()
    else:
        assert (folder.load().http.listen is None) is (remote is None)


@pytest.mark.parametrize(
    "listen", ["host:80", "1.2.3:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "[::1", ":80"]
)
def test_what_is_no_address_to_listen_on_is_said(folder: Folder, listen: str) -> None:
    folder.environ = {"PUPIL_BRIDGE_HTTP_LISTEN": listen}
    _, line = folder.refusal().splitlines()
    assert line.startswith("  PUPIL_BRIDGE_HTTP_LISTEN: ")
    assert "is not an address to listen on" in line


# --- layers and one file ---------------------------------------------------------------------------------------------

NAMES = [f"n{number}" for number in range(4)]
STREAM = st.fixed_dictionaries(
    {}, optional={"latency_ms": st.integers(-1000, 1000), "expected_rate_hz": st.integers(0, 1000)}
)
DEVICE_KEYS = {"path_asymmetry_ms": st.integers(-1000, 1000), "gaze": STREAM}
NDSI = st.fixed_dictionaries(
    {
        "type": st.just("ndsi"),
        "device": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(NAMES)}, optional={**DEVICE_KEYS, "event": STREAM}),
            max_size=3,
            unique_by=lambda device: device["name"],
        ),
    },
    optional={"interface": st.sampled_from(["auto", "10.0.0.1"]), "beacon_port": st.sampled_from([5670, 5671])},
)
CORE = st.fixed_dictionaries(
    {"type": st.just("pupil_core")},
    optional={
        "name": st.sampled_from(["c0", "c1", "pupil_core"]),
        "topics": st.sampled_from([["gaze"], ["pupil"], ["pupil", "gaze"]]),
        "scene_size": st.just([640, 480]),
        "pupil": STREAM,
        **DEVICE_KEYS,
    },
)
SINKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("lsl")}, optional={"max_buffered_s": st.integers(1, 100)}),
    st.fixed_dictionaries(
        {"type": st.just("ros2")},
        optional={"queue_size": st.integers(10, 100), "when_full": st.sampled_from(["drop_oldest", "drop_newest"])},
    ),
)
TABLES = {
    "clock": st.fixed_dictionaries(
        {}, optional={"hold_s": st.integers(0, 60), "unlocked": st.sampled_from(["hold", "drop"])}
    ),
    "logging": st.fixed_dictionaries({}, optional={"level": st.sampled_from(["info", "debug"])}),
    "http": st.fixed_dictionaries({}, optional={"token": st.just(SECRET), "listen": st.just("127.0.0.1:80")}),
    "overload": st.fixed_dictionaries({}, optional={"flood_hz": st.integers(100, 1000)}),
}


def source_is(source: dict[str, Any]) -> tuple[object, ...]:
    if source["type"] == "pupil_core":
        return ("core", source.get("name", "pupil_core"))
    return ("ndsi", source.get("interface", "auto"), source.get("beacon_port", 5670))


TREES = st.fixed_dictionaries(
    {
        "source": st.lists(st.one_of(NDSI, CORE), max_size=4, unique_by=source_is),
        "sink": st.lists(SINKS, max_size=2, unique_by=lambda sink: sink["type"]),
    },
    optional=TABLES,
)


def toml(tree: Mapping[str, Any], path: str = "") -> str:
    """Any tree of these tests as TOML, with inline tables."""

    def value(inner: object) -> str:
        if isinstance(inner, dict):
            return "{" + ", ".join(f"{key} = {value(each)}" for key, each in inner.items()) + "}"
        if isinstance(inner, list):
            return "[" + ", ".join(map(value, inner)) + "]"
        return json.dumps(inner)

    return "".join(f"{key} = {value(inner)}\n" for key, inner in tree.items())


def one_file(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a person would write into one file: the model of merging, by names and no indices."""
    tree: dict[str, Any] = {"source": [], "sink": []}
    for layer in layers:
        for table in TABLES.keys() & layer.keys():
            tree.setdefault(table, {}).update(layer[table])
        for sink in layer["sink"]:
            known = next((each for each in tree["sink"] if each["type"] == sink["type"]), None)
            tree["sink"].append(dict(sink)) if known is None else known.update(sink)
        for source in layer["source"]:
            same = next((each for each in tree["source"] if source_is(each) == source_is(source)), None)
            if same is None:
                tree["source"].append(copy.deepcopy(source))
                continue
            for key, inner in source.items():
                if key == "device":
                    for device in inner:
                        there = next((each for each in same["device"] if each["name"] == device["name"]), None)
                        same["device"].append(copy.deepcopy(device)) if there is None else with_streams(there, device)
                else:
                    with_streams(same, {key: inner})
    return tree


def with_streams(into: dict[str, Any], keys: dict[str, Any]) -> None:
    for key, inner in copy.deepcopy(keys).items():
        into[key] = {**into.get(key, {}), **inner} if isinstance(inner, dict) else inner


def outcome(read: Callable[[], Config]) -> Config | list[str]:
    """The configuration, or what is wrong with it, without where that is."""
    try:
        return read()
    except ConfigError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("  ")]
        return sorted(line.split(": ", 1)[1].split(" of ")[0].split(": source")[0].split(" by ")[0] for line in lines)


@settings(max_examples=150, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=5))
def test_layers_are_the_one_file_that_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, layers: list[dict[str, Any]]
) -> None:
    folder = Folder(tmp_path_factory.mktemp("layers"))
    folder.write(toml(layers[0]))
    for number, layer in enumerate(layers[1:]):
        folder.drop(f"{number}.toml", toml(layer))
    one = one_file(layers)
    found, wanted = outcome(folder.load), outcome(lambda: parse(toml(one), "one"))
    assert found == wanted


def test_a_configuration_cut_into_files_key_by_key_is_the_same_one(folder: Folder) -> None:
    shipped = Path(__file__).parent.parent / "config" / "bridge.toml"
    folder.write(shipped.read_text())
    before = folder.load()
    assert before == load(shipped, {})
    keys = [(table, key) for table, inner in VARIABLES.items() for key in inner]
    random.shuffle(keys)
    values = before.model_dump(mode="json", by_alias=True)
    for number, (table, key) in enumerate(keys):
        if values[table][key] is not None:
            folder.drop(f"{number:03}.toml", f"{table}.{key} = {json.dumps(values[table][key])}\n")
    assert len(list(folder.extra.iterdir())) >= 8
    assert folder.load() == before


# --- what was set at run time ----------------------------------------------------------------------------------------


def test_what_was_set_at_run_time_counts_above_the_file_its_drop_ins_and_the_environment(folder: Folder) -> None:
    folder.write(f"{SMALLEST}[clock]\nhold_s = 1\nping_interval_s = 2\n")
    folder.drop("a.toml", "[clock]\nhold_s = 3\n")
    folder.environ[f"{PREFIX}CLOCK_HOLD_S"] = "4"
    found = load(folder.file, folder.environ, {"clock": {"hold_s": 5.5}, "logging": {"level": "debug"}})
    assert (found.clock.hold_s, found.clock.ping_interval_s, found.logging.level) == (5.5, 2.0, "debug")
    assert load(folder.file, folder.environ, {}) == folder.load()


@pytest.mark.parametrize(
    "settings", [{"clock": {"hold_s": -1.0}}, {"logging": {"level": "loud"}}, {"clock": {"hold_s": "much"}}]
)
def test_a_fault_in_what_was_set_at_run_time_is_named_as_that(folder: Folder, settings: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder.file, {}, settings)
    ((table, keys),) = settings.items()
    (key,) = keys
    assert f"{table}.{key}" in str(caught.value)
    assert "run time" in str(caught.value)
