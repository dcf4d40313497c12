"""The daemon's Unix socket: one JSON request a line, one JSON answer a line. Readable by the daemon's user alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bridge.control import Control
from bridge.errors import BridgeError, ConfigError

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4096
PATIENCE_S = 5.0
ANSWER_S = 15.0  # a reload closes and opens outlets, and ROS


def default_socket_path() -> Path:
    """systemd's runtime directory, /run for root, the user's runtime directory, or one of the user's in /tmp."""
    if directory := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(directory.split(":")[0]) / "control.sock"
    if sys.platform.startswith("linux") and os.geteuid() == 0:
        return Path("/run/pupil-bridge/control.sock")
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(directory) / "pupil-bridge" / "control.sock"
    user = os.geteuid() if hasattr(os, "geteuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"pupil-bridge-{user}" / "control.sock"


def _check_own(path: Path) -> None:
    """Raises BridgeError when the socket's directory in /tmp, where everybody may make one, is somebody else's."""
    if path.parent.parent != Path(tempfile.gettempdir()) or path != default_socket_path():
        return
    try:
        found = os.lstat(path.parent)
    except OSError:
        return  # it is not there
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BridgeError(f"{path.parent} is not this user's alone: set XDG_RUNTIME_DIR, or service.socket")


@contextlib.asynccontextmanager
async def serve(path: Path, control: Control) -> AsyncIterator[None]:
    """Serves requests for as long as the context lasts. Raises BridgeError when another daemon has the socket."""
    if not hasattr(asyncio, "start_unix_server"):
        log.warning("this system has no Unix sockets: `pupil-bridge status` cannot reach this daemon")
        yield
        return
    connections: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await reader.readline()
            async with asyncio.timeout(ANSWER_S):
                writer.write(json.dumps(await _answer(line, control)).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, asyncio.CancelledError):
            pass  # a client that goes, dawdles or sends a line without end has no answer to come
        finally:
            writer.close()
            connections.discard(task)

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(path)
        check_free(path)
        path.unlink(missing_ok=True)
        listening, identity = _bind(path)
    except OSError as error:
        raise BridgeError(f"the control socket {path} cannot be made: {error.strerror or error}") from error
    server = await asyncio.start_unix_server(answer, sock=listening, limit=MAX_REQUEST_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        if _identity(path) == identity:  # nobody else's that has taken its place
            path.unlink(missing_ok=True)


def _bind(path: Path) -> tuple[socket.socket, tuple[int, int] | None]:
    """A socket at ``path`` for the daemon's user alone, from the first moment, and what tells its file from others."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening, _identity(path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_free(path: Path) -> None:
    """Raises BridgeError when another daemon has this socket, or when what is there is no socket, which is kept."""
    if not os.path.exists(path):
        return
    if not path.is_socket():
        raise BridgeError(f"the control socket {path} cannot be made: something else has that name")
    if _somebody_listens(path):
        raise BridgeError(f"another pupil-bridge is running: it has the control socket {path}")


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, or another user's
    return True


async def _answer(line: bytes, control: Control) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command, arguments = request["command"], request.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"error": 'a request is one line such as {"command": "status"}'}
    if not isinstance(command, str) or not isinstance(arguments, dict):
        return {"error": "the command is a text, its arguments are an object"}
    try:
        return {"result": await control.request(command, arguments)}
    except BridgeError as error:
        return {"error": str(error), "config": isinstance(error, ConfigError)}


def ask(path: Path, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """A client's request to the daemon at ``path``. Raises ConfigError where a configuration was refused, otherwise
    BridgeError, with a sentence for the user."""
    _check_own(path)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S if command == "status" else ANSWER_S)
            connection.connect(str(path))
            request = {"command": command, "arguments": arguments or {}}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        raise BridgeError(f"no pupil-bridge answers at {path}: {error.strerror or error}") from error
    try:
        reply = json.loads(line)
        if "error" in reply:
            raise (ConfigError if reply.get("config") else BridgeError)(str(reply["error"]))
        result: dict[str, Any] = reply["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise BridgeError(f"what answers at {path} is no pupil-bridge") from error
    return result
