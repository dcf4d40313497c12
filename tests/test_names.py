"""The names of discovered devices: fit for every sink, and the same after a restart."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge import names as names_module
from bridge.names import KEPT_IDS, DeviceNames, default_state_dir, slug


def nobody(name: str) -> bool:
    return False


def meet(names: DeviceNames, own_name: str, device_id: str, in_use: set[str] | None = None) -> str:
    """What a source does with a device that it sees."""
    name = names.known(device_id) or names.choose(own_name, lambda name: name in (in_use or set()))
    names.remember(name, own_name, device_id)
    return name


# --- the form of a name ----------------------------------------------------------------------------------------------


@given(st.text())
@example("")
@example("_")
@example("9")
@example("9" * 40)
@example("a" * 31 + "-b")
@example("\ud800")
@example("İstanbul ÀÉ ß")
def test_every_name_is_fit_for_topics_streams_and_files(own_name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", slug(own_name))
    assert len(slug(own_name)) <= 32
    assert not slug(own_name).endswith("_")


@pytest.mark.parametrize(
    ("own_name", "expected"),
    [
        ("OnePlus 8T", "oneplus_8t"),
        ("  Müller's  Phone!! ", "muller_s_phone"),
        ("Gerät ÀÉ", "gerat_ae"),
        ("２番", "device_2"),
        ("測試", "device"),
        ("", "device"),
        ("8T", "device_8t"),
        ("neon.local:1", "neon_local_1"),
    ],
)
def test_a_name_is_taken_from_what_the_device_calls_itself(own_name: str, expected: str) -> None:
    assert slug(own_name) == expected


# --- choosing --------------------------------------------------------------------------------------------------------


def test_a_device_has_the_same_name_after_a_restart(tmp_path: Path) -> None:
    first = DeviceNames(tmp_path)
    assert meet(first, "Phone", "uuid-1") == "phone"
    assert meet(first, "Phone", "uuid-2", in_use={"phone"}) == "phone_2"
    again = DeviceNames(tmp_path)
    assert meet(again, "Phone", "uuid-2") == "phone_2"
    assert meet(again, "Phone", "uuid-1", in_use={"phone_2"}) == "phone"


def test_a_known_device_keeps_its_name_when_it_calls_itself_something_else(tmp_path: Path) -> None:
    names = DeviceNames(tmp_path)
    assert meet(names, "Phone", "uuid-1") == "phone"
    assert meet(names, "Lab phone", "uuid-1") == "phone"
    assert meet(DeviceNames(tmp_path), "Lab phone", "uuid-new") == "phone"


def test_a_device_with_a_new_id_gets_the_name_that_its_own_name_had_unless_that_one_is_there(tmp_path: Path) -> None:
    names = DeviceNames(tmp_path)
    assert meet(names, "Phone", "uuid-1") == "phone"
    assert meet(names, "Phone", "uuid-after-reinstall") == "phone"
    assert meet(names, "Phone", "uuid-of-a-twin", in_use={"phone"}) == "phone_2"
    assert names.known("uuid-1") == names.known("uuid-after-reinstall") == "phone"


def test_two_own_names_with_one_form_get_different_names(tmp_path: Path) -> None:
    names = DeviceNames(tmp_path)
    assert meet(names, "Phone 2", "a") == "phone_2"
    assert meet(names, "Phone", "b") == "phone"
    assert meet(names, "Phone", "c", in_use={"phone"}) == "phone_3"
    assert meet(names, "phone-2", "d") == "phone_2_2"
    assert meet(names, "測試", "e") == "device"
    assert meet(names, "試験", "f") == "device_2"


def test_a_name_that_the_configuration_uses_is_not_given_away(tmp_path: Path) -> None:
    assert meet(DeviceNames(tmp_path), "Phone", "a", in_use={"phone"}) == "phone_2"


def test_an_unknown_id_has_no_name(tmp_path: Path) -> None:
    assert DeviceNames(tmp_path).known("uuid") is None


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 9)), max_size=30))
def test_no_two_devices_that_are_there_share_a_name_and_all_keep_theirs(devices: list[tuple[str, int]]) -> None:
    names, given_out = DeviceNames(Path("/dev/null/nowhere")), dict[str, str]()
    for own_name, number in devices:
        device_id = f"id-{number}"
        name = meet(names, own_name, device_id, in_use=set(given_out.values()))
        assert given_out.setdefault(device_id, name) == name
    assert len(set(given_out.values())) == len(given_out)


def test_the_ids_that_are_kept_for_a_name_are_bounded_and_the_newest(tmp_path: Path) -> None:
    names = DeviceNames(tmp_path)
    for number in range(3 * KEPT_IDS):
        assert meet(names, "Phone", f"uuid-{number}") == "phone"
    kept_then = len(json.loads((tmp_path / "names.json").read_text())["ids"]["phone"])
    assert kept_then < KEPT_IDS, "an app of ever new identities does not write to the disk each time"
    names.save(at_once=True)
    tree = json.loads((tmp_path / "names.json").read_text())
    assert tree["ids"]["phone"] == [f"uuid-{number}" for number in range(2 * KEPT_IDS, 3 * KEPT_IDS)]


# --- the file --------------------------------------------------------------------------------------------------------


def test_names_of_any_script_survive_the_file(tmp_path: Path) -> None:
    for own_name in ("Gerät ÀÉ", "測試", "\ud800 half a pair", 'quo"te\n'):
        meet(DeviceNames(tmp_path), own_name, f"id of {own_name!r}")
    again = DeviceNames(tmp_path)
    assert again.choose("測試", nobody) == "device"
    assert again.choose("Gerät ÀÉ", nobody) == "gerat_ae"
    assert again.choose("\ud800 half a pair", nobody) == "half_a_pair"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"own_names": 3, "ids": {}}',
        b'{"own_names": {"phone": "Phone"}}',
        b'{"own_names": {"phone": "Phone"}, "ids": {"phone": 3}}',
        b'{"own_names": {"phone": "Phone"}, "ids": []}',
    ],
)
def test_a_file_that_cannot_be_read_is_a_warning_and_names_begin_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "names.json").write_bytes(content)
    names = DeviceNames(tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(tmp_path / "names.json") in caplog.text
    assert meet(names, "Phone", "uuid-1") == "phone"
    assert DeviceNames(tmp_path).known("uuid-1") == "phone"


def test_no_file_yet_is_no_warning_and_its_directory_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state_dir = tmp_path / "var" / "lib" / "pupil-bridge"
    meet(DeviceNames(state_dir), "Phone", "uuid-1")
    assert DeviceNames(state_dir).known("uuid-1") == "phone"
    assert [path.name for path in state_dir.iterdir()] == ["names.json"]
    assert not caplog.records


def test_a_directory_that_cannot_be_written_is_a_warning_and_this_run_knows_the_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file and no directory"
    blocked.write_text("")
    names = DeviceNames(blocked)
    assert meet(names, "Phone", "uuid-1") == "phone"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert "cannot be kept" in caplog.text
    assert names.known("uuid-1") == "phone"


def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    names = DeviceNames(tmp_path)
    meet(names, "Phone", "uuid-1")
    (tmp_path / "names.json").unlink()
    meet(names, "Phone", "uuid-1")
    assert not (tmp_path / "names.json").exists()


def test_the_state_directory_is_systemds_choice_before_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert default_state_dir() == Path("/var/lib/one")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir() == Path("/var/lib/pupil-bridge")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_state_dir() == tmp_path / "pupil-bridge"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / ".local" / "state" / "pupil-bridge"


# --- a disk that fails and recovers ----------------------------------------------------------------------------------


class Clock:
    """The time of the names, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(names_module.time, "monotonic", lambda: self.now_s)


def test_a_disk_that_fails_is_said_once_and_once_more_when_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, blocked = Clock(monkeypatch), tmp_path / "state"
    blocked.write_text("a file in the way")
    names = DeviceNames(blocked)
    caplog.clear()
    assert names.problem is None
    for number in range(5):
        meet(names, "Phone", f"uuid-{number}")
        clock.now_s += 120
        names.save()
    assert names.problem is not None
    assert names.problem.startswith(f"the names of devices cannot be kept in {blocked / 'names.json'}: ")
    assert "\n" not in names.problem
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    blocked.unlink()
    clock.now_s += 120
    names.save()
    assert names.problem is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert DeviceNames(blocked).known("uuid-4") == "phone"


def test_a_disk_that_is_full_keeps_the_names_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, names = Clock(monkeypatch), DeviceNames(tmp_path)
    meet(names, "Phone", "uuid-1")
    clock.now_s += 10

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        meet(names, "Tablet", "uuid-2")
    assert names.problem is not None
    assert names.problem.endswith("No space left on device")
    assert DeviceNames(tmp_path).known("uuid-1") == "phone"
    assert DeviceNames(tmp_path).known("uuid-2") is None
    clock.now_s += 120
    names.save()
    assert names.problem is None
    assert DeviceNames(tmp_path).known("uuid-2") == "tablet"
    assert [path.name for path in tmp_path.iterdir()] == ["names.json"]


def test_what_has_not_been_written_yet_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    names, count = DeviceNames(tmp_path), 0
    while DeviceNames(tmp_path).known(f"uuid-{count}") is not None or count == 0:
        count += 1
        assert count < KEPT_IDS, "an app of ever new identities is to write rarely"
        meet(names, "Phone", f"uuid-{count}")
    names.save(at_once=True)
    assert DeviceNames(tmp_path).known(f"uuid-{count}") == "phone"
