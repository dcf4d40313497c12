"""The daemon's Unix socket: what it answers, whom it survives, and what its client says when nobody is there."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bridge import __version__
from bridge.control import Control
from bridge.errors import BridgeError, ConfigError
from bridge.loop_lag import LoopLag
from bridge.pipeline import Pipeline
from bridge.service import control_socket
from bridge.service.control_socket import MAX_REQUEST_BYTES, ask, check_free, default_socket_path, serve
from bridge.streams import DeviceDescriptor, StreamDescriptor, StreamKind

DEADLINE_S = 20.0
PHONE = DeviceDescriptor("phone", "companion", "pupil_labs", model="Companion")


class QuietSource:
    """A source that has something to say only in the status."""

    name = "ndsi"

    def open(self, pipeline: Pipeline) -> None:
        pipeline.device(PHONE).stream(StreamDescriptor(PHONE, "gaze", StreamKind.GAZE, "Gaze", "Gaze"))

    def status(self) -> dict[str, object]:
        return {"malformed": 3}

    async def run(self) -> None:
        await asyncio.Event().wait()


class Owner:
    """What Control needs of a daemon."""

    def __init__(self) -> None:
        source = QuietSource()
        self.pipeline, self.sources = Pipeline([]), [source]
        self.lag, self.loaded_at, self.reloads, self.refused, self.path = LoopLag(), datetime.now(UTC), 0, None, None
        source.open(self.pipeline)

    def problems(self) -> list[str]:
        return []

    async def reload(self) -> str:
        raise ConfigError("x.toml: 1 fault")


@pytest.fixture
def control() -> Control:
    return Control(Owner())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


@pytest.fixture
async def served(path: Path, control: Control) -> AsyncIterator[Path]:
    async with serve(path, control):
        yield path


async def asked(path: Path, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """``ask``, which blocks, in a thread that ends with it."""
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, ask, path, command, arguments)


async def status(path: Path) -> dict[str, Any]:
    return await asked(path, "status")


async def exchange(path: Path, request: bytes, *, end: bool = False) -> bytes:
    """All that the server says to these bytes until it hangs up; ``end`` closes the sending side first."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(request)
            if end:
                writer.write_eof()
            return await reader.read()
        except ConnectionError:  # it hung up with some of the request unread
            return b""
        finally:
            writer.close()


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_status_is_answered_with_everything_that_is_known(served: Path) -> None:
    tree = await status(served)
    assert tree["version"] == __version__
    assert tree["duration_s"] >= 0
    assert tree["sinks"] == []
    assert tree["sources"] == [{"name": "ndsi", "malformed": 3}]
    (device,) = tree["devices"]
    assert (device["name"], device["kind"], device["connected"]) == ("phone", "companion", False)
    assert device["clock"]["state"] == "unlocked"
    assert device["clock"]["offset_s"] is None
    (stream,) = device["streams"]
    assert (stream["name"], stream["samples_in"], stream["dropped"]) == ("gaze", 0, {})


async def test_an_answer_is_one_line_and_then_the_end(served: Path) -> None:
    answer = await exchange(served, b'{"command": "status"}\n')
    assert answer.count(b"\n") == 1
    assert answer.endswith(b"\n")
    assert json.loads(answer)["result"]["version"] == __version__


async def test_many_clients_at_once_are_all_answered(served: Path) -> None:
    answers = await asyncio.gather(*(exchange(served, b'{"command": "status"}\n') for _ in range(30)))
    assert all("result" in json.loads(answer) for answer in answers)


async def test_a_request_without_its_line_end_is_answered_when_the_client_has_ended(served: Path) -> None:
    assert "result" in json.loads(await exchange(served, b'{"command": "status"}', end=True))


@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"status",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'"command"',
        b'{"command"',
        b"\xff\xfe",
        b"[" * (MAX_REQUEST_BYTES - 10),
    ],
)
async def test_a_bad_request_is_told_what_a_good_one_looks_like(served: Path, request_line: bytes) -> None:
    answer = json.loads(await exchange(served, request_line + b"\n"))
    assert answer == {"error": 'a request is one line such as {"command": "status"}'}
    assert await status(served)


@pytest.mark.parametrize("command", ["dance", "", "x" * 1000])
async def test_an_unknown_command_is_named_beside_those_that_there_are(served: Path, command: str) -> None:
    answer = json.loads(await exchange(served, json.dumps({"command": command}).encode() + b"\n"))
    known = "status, reload, record, event, annotate, calibrate, set"
    assert answer == {"error": f"unknown command {command[:50]!r}; there are {known}", "config": False}


@pytest.mark.parametrize(
    "request_", [{"command": None}, {"command": ["status"]}, {"command": "status", "arguments": 3}]
)
async def test_a_command_is_a_text_with_an_object_of_arguments(served: Path, request_: object) -> None:
    answer = json.loads(await exchange(served, json.dumps(request_).encode() + b"\n"))
    assert answer == {"error": "the command is a text, its arguments are an object"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": 1}, "status: Object contains unknown field `x`"),
        ({"action": "begin"}, "record: the action is 'start' or 'stop', not 'begin'"),
        ({}, "record: Object missing required field `action`"),
        ({"action": "start", "device": "ghost"}, "there is no device 'ghost'; known are: phone"),
        ({"action": "start", "device": "phone"}, "phone: record is not possible with this device (Companion)"),
        ({"action": "start"}, "record: no device that is known can do that through the bridge"),
    ],
)
async def test_what_is_asked_wrongly_or_of_the_wrong_device_is_refused_in_a_sentence(
    served: Path, arguments: dict[str, Any], words: str
) -> None:
    request = {"command": words.split(":")[0] if words.startswith("status") else "record", "arguments": arguments}
    answer = json.loads(await exchange(served, json.dumps(request).encode() + b"\n"))
    assert answer["error"] == words


async def test_a_device_does_what_its_source_can_do_while_it_is_there(served: Path, control: Control) -> None:
    phone = control._owner.pipeline.devices["phone"]
    asked_for: list[str] = []

    async def record(given: Any) -> str:
        asked_for.append(given.action)
        return "recording"

    phone.actions["record"] = record
    with pytest.raises(BridgeError, match=r"^phone: the device is not there$"):
        await asked(served, "record", {"action": "start", "device": "phone"})
    phone.connected = True
    assert await asked(served, "record", {"action": "start"}) == {"done": {"phone": "recording"}, "refused": {}}
    assert asked_for == ["start"]


async def test_a_configuration_that_is_refused_is_an_error_of_its_own_kind(served: Path) -> None:
    with pytest.raises(ConfigError, match=r"^x\.toml: 1 fault$"):
        await asked(served, "reload")


async def test_ask_raises_what_the_daemon_says_is_wrong(served: Path) -> None:
    with pytest.raises(BridgeError, match=r"^unknown command 'dance'; there are status, "):
        await asked(served, "dance")


# --- clients that misbehave ------------------------------------------------------------------------------------------


async def test_a_request_line_without_end_is_hung_up_on(served: Path) -> None:
    assert await exchange(served, b"x" * (50 * MAX_REQUEST_BYTES)) == b""
    assert await status(served)


async def test_a_client_that_dawdles_is_hung_up_on(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "PATIENCE_S", 0.05)
    assert await exchange(served, b'{"command": ') == b""
    monkeypatch.undo()
    assert await status(served)


async def test_clients_that_vanish_leave_nothing_behind(served: Path) -> None:
    for request in (b"", b'{"comm', b'{"command": "status"}\n'):
        for _ in range(5):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(served))
                client.sendall(request)
    assert await status(served)


async def test_a_client_that_still_waits_when_the_daemon_ends_is_hung_up_on(path: Path, control: Control) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with serve(path, control):
            reader, writer = await asyncio.open_unix_connection(path)
            await status(path)  # so that the connection before it has been taken
        assert await reader.read() == b""
        writer.close()


# --- the socket file -------------------------------------------------------------------------------------------------


async def test_the_socket_is_the_users_alone_and_so_is_the_directory_that_is_made_for_it(served: Path) -> None:
    assert stat.S_ISSOCK(served.stat().st_mode)
    assert stat.S_IMODE(served.stat().st_mode) == 0o600
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o700


async def test_the_socket_is_gone_when_the_daemon_is(path: Path, control: Control) -> None:
    async with serve(path, control):
        assert path.exists()
    assert not path.exists()
    check_free(path)


async def test_the_socket_is_gone_when_the_daemon_fails(path: Path, control: Control) -> None:
    async def fail() -> None:
        async with serve(path, control):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await fail()
    assert not path.exists()


async def test_the_socket_of_a_daemon_that_was_killed_is_replaced(path: Path, control: Control) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket(), "closing does not remove it"
    check_free(path)
    async with serve(path, control):
        assert await status(path)


async def test_a_second_daemon_is_refused_and_the_first_goes_on(served: Path, control: Control) -> None:
    message = f"another pupil-bridge is running: it has the control socket {served}"
    with pytest.raises(BridgeError) as caught:
        await serve(served, control).__aenter__()
    assert str(caught.value) == message
    with pytest.raises(BridgeError) as caught:
        check_free(served)
    assert str(caught.value) == message
    assert await status(served)


async def test_a_daemon_too_busy_to_take_connections_keeps_its_socket(path: Path, control: Control) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
            waiting.connect(str(path))
            with pytest.raises(BridgeError, match="another pupil-bridge is running"):
                await serve(path, control).__aenter__()
            assert path.is_socket()


async def test_a_file_that_is_no_socket_is_refused_and_kept(path: Path, control: Control) -> None:
    path.parent.mkdir()
    path.write_text("a thesis")
    with pytest.raises(BridgeError, match="something else has that name"):
        await serve(path, control).__aenter__()
    assert path.read_text() == "a thesis"


async def test_a_place_where_no_socket_can_be_is_one_clear_error(tmp_path: Path, control: Control) -> None:
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file" / "control.sock", tmp_path / ("x" * 120) / "control.sock"):
        with pytest.raises(BridgeError, match=f"^the control socket {impossible} cannot be made: .+"):
            await serve(impossible, control).__aenter__()


def test_the_socket_is_in_systemds_directory_before_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket_path() == Path("/run/one/control.sock")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_socket_path() == Path("/run/pupil-bridge/control.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert default_socket_path() == Path("/run/user/7/pupil-bridge/control.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path().parent.name == "pupil-bridge-7"


@pytest.mark.parametrize("mode", [0o777, 0o770])
async def test_a_directory_of_its_name_that_others_can_write_to_is_not_used(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: Control
) -> None:
    monkeypatch.setattr(control_socket, "default_socket_path", lambda: squatted / "control.sock")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    squatted = tmp_path / "pupil-bridge-0"
    squatted.mkdir()
    squatted.chmod(mode)
    for attempt in (
        lambda: serve(squatted / "control.sock", control).__aenter__(),
        lambda: status(squatted / "control.sock"),
    ):
        with pytest.raises(BridgeError, match=r"is not this user's alone: set XDG_RUNTIME_DIR, or service\.socket"):
            await attempt()
    squatted.chmod(0o700)
    async with serve(squatted / "control.sock", control):
        assert await status(squatted / "control.sock")


async def test_what_has_taken_the_sockets_place_is_left_there(path: Path, control: Control) -> None:
    async with serve(path, control):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


# --- nobody there ----------------------------------------------------------------------------------------------------


@contextmanager
def stranger(path: Path, answer: bytes) -> Iterator[None]:
    """A server that is no pupil-bridge: one client, one request, this answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def serve_one() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve_one, name="stranger")
        thread.start()
        yield
        thread.join(DEADLINE_S)


def test_asking_where_no_socket_is_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(BridgeError, match=f"^no pupil-bridge answers at {path}: No such file or directory$"):
        ask(path, "status")


async def test_asking_a_daemon_that_has_gone_is_one_clear_error(path: Path, control: Control, tmp_path: Path) -> None:
    async with serve(path, control):
        os.link(path, tmp_path / "left")  # as after SIGKILL
    with pytest.raises(BridgeError, match=r"^no pupil-bridge answers at .+: Connection refused$"):
        await status(tmp_path / "left")


def test_asking_a_daemon_that_hangs_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "PATIENCE_S", 0.05)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hung:
        hung.bind(str(path))
        hung.listen()
        with pytest.raises(BridgeError, match=r"^no pupil-bridge answers at .+: timed out$"):
            ask(path, "status")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"3\n", b"[]\n", b"null\n", b"{}\n", b"\xff\n"]
)
def test_asking_something_else_is_one_clear_error(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "control.sock"
    with stranger(path, answer), pytest.raises(BridgeError, match=f"^what answers at {path} is no pupil-bridge$"):
        ask(path, "status")
