"""The daemon over HTTP: health, status, metrics and a page for who may read, commands for who has the token.

Imported only when it is configured: aiohttp takes 0.2 s and 16 MB. One request a connection, and a deadline for each,
so that slow clients hold nothing up; the oldest connection gives way when there are too many. No CORS headers, and only
host names that are ours: a web site that someone visits cannot read or command the eye trackers of the lab.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hmac
import ipaddress
import json
import logging
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from bridge.errors import BridgeError, UnknownCommand
from bridge.service.http_page import CONTENT_SECURITY_POLICY, PAGE
from bridge.service.http_settings import HttpSettings
from bridge.service.metrics import CONTENT_TYPE, Metrics
from bridge.service.quiet import LineBudget

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
EXCHANGE_S = 10.0  # from the connection to the last byte of the answer, the command itself apart
COMMAND_S = 60.0
STOP_S = 1.0
MAX_BODY_BYTES = 65_536
MAX_LINE_BYTES = 4096  # the request line, or one header
MAX_HEADERS = 64
FRESH_S = 0.5  # an answer this old is as good as a new one: who asks a thousand times costs little
CONTROL_IS_OFF = (
    "no token is configured, so this is refused: set token or token_file in the [http] table of the configuration"
)
NOT_ALLOWED = "this needs the token of the [http] table: send the header Authorization: Bearer TOKEN"
WRONG_HOST = "this server is not known by that name: use its address, localhost or its host name, or send the token"
NOTHING_YET: tuple[float, dict[str, Any]] = (-math.inf, {})
NO_TEXT_YET: tuple[float, bytes] = (-math.inf, b"")
HEADERS = {
    "Server": "pupil-bridge",
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Controlled(Protocol):
    """What of the daemon's control is used here."""

    def status(self) -> dict[str, Any]: ...

    async def request(self, command: str, arguments: dict[str, Any]) -> Any:
        """Raises BridgeError with the sentence of a refusal; UnknownCommand is one."""


class HttpServer:
    """Serves from ``start()`` to ``stop()``, on the loop that these run on."""

    def __init__(
        self,
        control: Controlled,
        settings: HttpSettings,
        *,
        exchange_s: float = EXCHANGE_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._control = control
        self._settings = settings
        self._token = None if settings.token is None else settings.token.encode("utf-8", "surrogateescape")
        self._metrics = Metrics(self._tree)
        self._room = _Room(max_connections, exchange_s)
        self._status_tree: tuple[float, dict[str, Any]] = NOTHING_YET  # when it was made, by the loop's clock
        self._text = NO_TEXT_YET
        self._scraping = asyncio.Lock()
        self._lines = LineBudget()
        self._names = _own_names()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on, once it does."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._room)

    async def start(self) -> None:
        """Listens. Raises BridgeError, in a sentence, where it cannot."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._in_sentences, self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_post("/control/{command}", self._command)
        app.on_response_prepare.append(_finish)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=STOP_S)
        await runner.setup()
        loop, manager = asyncio.get_running_loop(), runner.server
        assert manager is not None
        host, port = self._settings.host, self._settings.port
        try:
            self._server = await loop.create_server(
                lambda: _Connection(manager, loop, self._room, self._lines),
                "127.0.0.1" if host == "localhost" else host,  # no thread of a resolver for that
                port,
                backlog=MAX_CONNECTIONS // 2,  # so many may be accepted at once, and must not push each other out
            )
        except OSError as error:
            await runner.cleanup()
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise BridgeError(f"HTTP cannot listen on {where}: {_reason(error)}") from error
        self._runner = runner
        log.info("HTTP: listening on %s port %d", host, self.port)

    async def stop(self) -> None:
        """Stops listening, gives commands that run a second to end, and drops what is left. May be called twice."""
        server, self._server = self._server, None
        runner, self._runner = self._runner, None
        if server is None or runner is None:
            return
        server.close()
        self._room.clear(idle_only=True)
        await runner.cleanup()
        self._room.clear()
        await server.wait_closed()

    # --- who may do what -------------------------------------------------------------------------------------------

    @web.middleware
    async def _in_sentences(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every refusal as JSON with a sentence."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _refusal(error.status, SENTENCES.get(error.status, error.reason.lower()))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        response.force_close()
        return response

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with_token = self._has_token(request)
        if not with_token and not self._is_our_name(request):
            return _refusal(421, WRONG_HOST)
        if with_token or request.path == "/healthz" or (self._settings.reads_are_open and _reads(request)):
            return await handler(request)
        if self._token is None:
            return _refusal(403, CONTROL_IS_OFF)
        if "Authorization" in request.headers:
            level = self._lines.level(logging.WARNING)
            log.log(level, "HTTP: %s sent a wrong token", request.remote)
        refusal = _refusal(401, NOT_ALLOWED)
        # A browser asks for the token as a password; commands do not take it from there.
        refusal.headers["WWW-Authenticate"] = (
            'Basic realm="pupil-bridge", charset="UTF-8"' if _reads(request) else 'Bearer realm="pupil-bridge"'
        )
        return refusal

    def _has_token(self, request: web.Request) -> bool:
        """Commands need it as a Bearer: what a browser remembers as a password it would send from any web site."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        secret = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "basic" and _reads(request):
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return self._token is not None and hmac.compare_digest(secret, self._token)

    def _is_our_name(self, request: web.Request) -> bool:
        """Not the name of a web site that had it point to this computer (DNS rebinding). An address cannot be one."""
        hosts = request.headers.getall("Host", [])
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or "" if len(hosts) == 1 else ""
        except ValueError:
            return False
        name = name.rstrip(".")
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_read(self, request: web.Request) -> bool:
        return self._settings.reads_are_open or self._has_token(request)

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE, content_type="text/html")

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        """200 whenever the loop answers: a silent device is in the list and no reason to restart anything."""
        problems = self._tree().get("problems", [])
        answer: dict[str, Any] = {"state": "degraded" if problems else "ok"}
        if self._may_read(request):
            answer["problems"] = problems
        return _json(answer)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return _json(self._tree())

    async def _metrics_text(self, request: web.Request) -> web.StreamResponse:
        async with self._scraping:
            made_s, body = self._text
            now_s = asyncio.get_running_loop().time()
            if now_s - made_s > FRESH_S:
                parts = []
                for part in self._metrics.parts():
                    parts.append(part)
                    await asyncio.sleep(0)  # samples wait no longer than for one of them
                body = b"".join(parts)
                self._text = (now_s, body)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _tree(self) -> dict[str, Any]:
        made_s, tree = self._status_tree
        now_s = asyncio.get_running_loop().time()
        if now_s - made_s > FRESH_S:
            tree = self._control.status()
            self._status_tree = (now_s, tree)
        return tree

    async def _command(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return _refusal(415, "arguments are a JSON object: send it with Content-Type: application/json")
        try:
            arguments = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _refusal(400, "arguments are a JSON object such as {}, and this is none")
        command = request.match_info["command"]
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.busy(COMMAND_S)
        try:
            async with asyncio.timeout(COMMAND_S):
                result = await self._control.request(command, arguments)
        except UnknownCommand as error:
            return _refusal(404, str(error))
        except BridgeError as error:  # one of its own kind: refused as things are now; else the request is wrong
            return _refusal(400 if type(error) is BridgeError else 409, str(error))
        except TimeoutError:
            return _refusal(504, f"the command did not end within {COMMAND_S:.0f} s")
        finally:
            connection.idle()
            self._text = NO_TEXT_YET
            self._status_tree = NOTHING_YET  # a status that is asked for now has what the command did
        return _json({"result": result})


class _Connection(web.RequestHandler):
    """One connection with a deadline. aiohttp has one for the headers alone, and none for who does not read."""

    __slots__ = ("_lines", "_room", "_timer", "_wire", "is_busy")

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, room: _Room, lines: LineBudget) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # there is none
            keepalive_timeout=room.exchange_s,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=STOP_S,
            auto_decompress=False,
        )
        self._room = room
        self._lines = lines
        self._timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        super().connection_made(transport)
        self._end_in(self._room.exchange_s)
        self._room.admit(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._room.left(self)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def busy(self, at_most_s: float) -> None:
        """A command runs: not the client's fault, however long it takes."""
        self.is_busy = True
        self._end_in(at_most_s + self._room.exchange_s)

    def idle(self) -> None:
        self.is_busy = False
        self._end_in(self._room.exchange_s)

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def _end_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._wire is None:  # the client has gone
            return
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP, or a bug of ours. The answer tells nothing of either, and a stranger cannot fill the log."""
        if status >= 500:
            log.log(self._lines.level(logging.ERROR), "HTTP: a request failed: this is a bug", exc_info=exc)
        else:
            log.debug("HTTP: %s sent what is no HTTP request", request.remote)
        response = _refusal(status, SENTENCES.get(status, "this cannot be answered"))
        response.headers.update(HEADERS)
        response.force_close()
        return response


class _Room:
    """The open connections, the oldest first."""

    def __init__(self, limit: int, exchange_s: float) -> None:
        self.exchange_s = exchange_s
        self._limit = limit
        self._connections: dict[_Connection, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, connection: _Connection) -> None:
        """Takes it in. Where that is one too many, the oldest goes that runs no command."""
        self._connections[connection] = None
        if len(self._connections) > self._limit:
            oldest = next(other for other in self._connections if not other.is_busy)
            del self._connections[oldest]
            oldest.abort()

    def left(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    def clear(self, *, idle_only: bool = False) -> None:
        for connection in [c for c in self._connections if not (idle_only and c.is_busy)]:
            del self._connections[connection]
            connection.abort()


SENTENCES = {
    400: "this is not an HTTP request that can be understood",
    404: "there is nothing here: try /, /healthz, /status, /metrics, or POST /control/COMMAND",
    405: "this is read with GET, and commands are sent with POST",
    413: f"at most {MAX_BODY_BYTES} bytes of arguments are taken",
    500: "this failed, and should not have: the daemon's log says more",
}


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _reads(request: web.Request) -> bool:
    return request.method in ("GET", "HEAD")


def _refusal(status: int, sentence: str) -> web.Response:
    return _json({"error": sentence}, status)


def _json(value: Any, status: int = 200) -> web.Response:
    try:
        body = msgspec.json.encode(value)  # what is no number becomes null
    except UnicodeEncodeError:  # a file name that is not UTF-8
        body = json.dumps(value).encode()
    return web.Response(body=body, status=status, content_type="application/json")


def _own_names() -> set[str]:
    """localhost and what this computer calls itself; its name in DNS is not asked for, that could take seconds."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return {"localhost", name, short, f"{short}.local"} - {""}


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has that port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "that is not permitted (ports below 1024 need a privilege)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this computer does not have that address"
    return error.strerror or str(error)
