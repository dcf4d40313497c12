"""HTTP: who may read and command, what the answers are, and whom the server survives. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.errors import BridgeError, ConfigError, Refused, UnknownCommand
from bridge.service.http import FRESH_S, MAX_BODY_BYTES, MAX_HEADERS, MAX_LINE_BYTES, HttpServer
from bridge.service.http_settings import HttpSettings
from tests.service import statuses

DEADLINE_S = 20.0
TOKEN = "correct horse battery staple"
JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOSTILE = '<img src=x onerror=alert(1)>"\x1b[2J\u202e'


class FakeControl:
    """Answers with what it is given and keeps what it was asked."""

    def __init__(self) -> None:
        self.tree = statuses.status(statuses.device("phone"))
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: Exception | None = None
        self.statuses = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def status(self) -> dict[str, Any]:
        self.statuses += 1
        return self.tree

    async def request(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return {"phone": "started"}


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def sentence(self) -> str:
        found: str = self.json()["error"]
        return found


@asynccontextmanager
async def serving(control: FakeControl, settings: HttpSettings, **options: Any) -> AsyncIterator[HttpServer]:
    server = HttpServer(control, settings, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def server(control: FakeControl) -> AsyncIterator[HttpServer]:
    """On loopback, with a token."""
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN)) as server:
        yield server


@pytest.fixture
async def remote(control: FakeControl) -> AsyncIterator[HttpServer]:
    """As if for the network: not only on loopback, though the tests come from there."""
    async with serving(control, HttpSettings("0.0.0.0", 0, TOKEN)) as server:
        yield server


async def raw(server: HttpServer, request: bytes) -> bytes:
    """All that the server says to these bytes until it hangs up."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def ask(
    server: HttpServer,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    *,
    host: str | None = "127.0.0.1",
) -> Answer:
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [] if host is None else [f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return parsed(await raw(server, "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body))


def parsed(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return Answer(int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body)


async def get(server: HttpServer, path: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return await ask(server, "GET", path, headers, **more)


async def command(server: HttpServer, name: str, arguments: Any = None, **headers: str) -> Answer:
    body = b"" if arguments is None else json.dumps(arguments).encode()
    return await ask(server, "POST", f"/control/{name}", {**JSON, **BEARER, **headers}, body)


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_health_is_ok_where_nothing_is_wrong(server: HttpServer) -> None:
    answer = await get(server, "/healthz")
    assert (answer.status, answer.json()) == (200, {"state": "ok", "problems": []})


async def test_a_problem_makes_health_degraded_and_never_an_error(server: HttpServer, control: FakeControl) -> None:
    control.tree["problems"] = ["core: silent for 12 s"]
    answer = await get(server, "/healthz")
    assert (answer.status, answer.json()) == (200, {"state": "degraded", "problems": ["core: silent for 12 s"]})


async def test_status_is_that_of_the_control(server: HttpServer, control: FakeControl) -> None:
    answer = await get(server, "/status")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == control.tree


async def test_a_value_that_json_does_not_have_is_null(server: HttpServer, control: FakeControl) -> None:
    control.tree["devices"][0]["clock"]["drift_ppm"] = float("nan")
    assert (await get(server, "/status")).json()["devices"][0]["clock"]["drift_ppm"] is None


async def test_a_file_name_that_is_not_utf_8_spoils_nothing(server: HttpServer, control: FakeControl) -> None:
    control.tree["config"]["path"] = control.tree["devices"][0]["name"] = "bridge\udcff.toml"
    assert (await get(server, "/status")).json() == control.tree
    assert b'device="bridge?.toml"' in (await get(server, "/metrics")).body


async def test_metrics_are_what_prometheus_reads(server: HttpServer) -> None:
    answer = await get(server, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(answer.body.decode())}
    assert {"pupil_bridge_device_connected", "pupil_bridge_stream_samples_received"} <= names


async def test_head_is_get_without_the_body(server: HttpServer) -> None:
    for path in ("/", "/healthz", "/status", "/metrics"):
        answer = await ask(server, "HEAD", path)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0


async def test_many_questions_at_once_cost_one_status(server: HttpServer, control: FakeControl) -> None:
    async with asyncio.TaskGroup() as group:
        began_s = time.monotonic()
        answers = [group.create_task(get(server, path)) for path in ("/status", "/healthz") * 15]
    assert all(answer.result().status == 200 for answer in answers)
    assert control.statuses <= 1 + (time.monotonic() - began_s) / FRESH_S


# --- the page --------------------------------------------------------------------------------------------------------


async def test_the_page_needs_nothing_from_elsewhere_and_may_not_ask_for_it(server: HttpServer) -> None:
    answer = await get(server, "/")
    page, policy = answer.body.decode(), answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?(?!data:,)\w""", page) == []
    assert "http" not in page.lower().replace("http-equiv", "")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "innerHTML" not in page
    assert not re.search(r"\bon\w+=", page)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to show the page")
async def test_a_browser_shows_names_of_strangers_as_text(
    server: HttpServer, control: FakeControl, tmp_path: Path
) -> None:
    control.tree = statuses.status(statuses.device(HOSTILE), problems=[f"{HOSTILE}: silent"])
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
        *("--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{server.port}/"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        dom = (await process.communicate())[0].decode()
    shown = '&lt;img src=x onerror=alert(1)&gt;"\ufffd[2J\ufffd'
    assert f">{shown}</td>" in dom
    assert f"<li>{shown}: silent</li>" in dom
    assert "<img" not in dom
    assert ">199.6<" in dom


# --- who may read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/status", "/metrics", "/nothing"])
async def test_beyond_loopback_nothing_is_read_without_the_token(remote: HttpServer, path: str) -> None:
    answer = await get(remote, path)
    assert answer.status == 401
    assert "token" in answer.sentence
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")  # so that a browser asks for it
    wrong = await get(remote, path, {"Authorization": f"Bearer {TOKEN}x"})
    assert wrong.status == 401


@pytest.mark.parametrize("path", ["/", "/status", "/metrics"])
async def test_beyond_loopback_the_token_reads_as_bearer_and_as_a_browsers_password(
    remote: HttpServer, path: str
) -> None:
    password = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {password}"):
        assert (await get(remote, path, {"Authorization": value})).status == 200


async def test_beyond_loopback_health_tells_strangers_the_state_and_no_names(
    remote: HttpServer, control: FakeControl
) -> None:
    control.tree["problems"] = ["subject_7: silent for 12 s"]
    assert (await get(remote, "/healthz")).json() == {"state": "degraded"}
    assert (await get(remote, "/healthz", BEARER)).json()["problems"] == ["subject_7: silent for 12 s"]


async def test_open_reads_are_open_and_commands_are_not(control: FakeControl) -> None:
    async with serving(control, HttpSettings("0.0.0.0", 0, TOKEN, open_reads=True)) as server:
        assert (await get(server, "/status")).status == 200
        assert (await ask(server, "POST", "/control/reload", JSON)).status == 401


@pytest.mark.parametrize("value", ["", "Bearer", "Basic", "Basic ???", f"Digest {TOKEN}", "Bearer \udcff", TOKEN])
async def test_what_is_no_token_is_refused(remote: HttpServer, value: str) -> None:
    assert (await get(remote, "/status", {"Authorization": value})).status == 401


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("labpc", False)),
    ],
)
def test_reads_are_open_on_loopback_only(host: str, loopback: bool) -> None:
    assert HttpSettings(host, 1).reads_are_open is loopback
    assert HttpSettings(host, 1, open_reads=True).reads_are_open


def test_settings_do_not_show_their_token() -> None:
    settings = HttpSettings("127.0.0.1", 1, TOKEN)
    assert TOKEN not in f"{settings} {settings!r} {[settings]}"
    assert "token=None" in repr(HttpSettings("127.0.0.1", 1))


# --- web sites that someone visits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8100", "[::1]:8100", "localhost", "LOCALHOST:80", "localhost.", "192.168.1.5:9"),
        *(socket.gethostname(), f"{socket.gethostname()}:8100"),
    ],
)
async def test_an_address_and_our_own_names_are_answered(server: HttpServer, host: str) -> None:
    assert (await get(server, "/status", host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8100",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "a@b@c",
        None,
    ],
)
@pytest.mark.parametrize("path", ["/", "/status", "/healthz", "/nothing"])
async def test_a_name_that_was_pointed_to_us_is_not(server: HttpServer, host: str | None, path: str) -> None:
    answer = await get(server, path, host=host)
    assert answer.status in (400, 421)  # 400: aiohttp itself cannot make sense of it
    assert b"phone" not in answer.body


async def test_two_hosts_are_not_one_of_ours(server: HttpServer) -> None:
    answer = await raw(server, b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert parsed(answer).status in (400, 421)
    assert b"phone" not in answer


async def test_with_the_token_the_name_does_not_matter(server: HttpServer) -> None:
    assert (await get(server, "/status", BEARER, host="labpc.psych.example")).status == 200


async def test_no_other_origin_is_let_in(server: HttpServer, control: FakeControl) -> None:
    origin = {"Origin": "http://evil.example"}
    preflight = await ask(server, "OPTIONS", "/control/reload", {**origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status >= 400
    for answer in (preflight, await get(server, "/status", origin), await get(server, "/healthz", origin)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    # What a form of a web site can send without being asked.
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await ask(server, "POST", "/control/reload", {**BEARER, "Content-Type": content_type}, b"{}")
        assert answer.status == 415
        assert "application/json" in answer.sentence
    assert control.asked == []


@pytest.mark.parametrize("path", ["/", "/healthz", "/status", "/metrics", "/nothing", "/control/reload"])
async def test_headers_forbid_what_a_browser_might_guess_and_name_no_version(server: HttpServer, path: str) -> None:
    for method in ("GET", "POST", "BREW"):
        headers = (await ask(server, method, path)).headers
        assert headers["Server"] == "pupil-bridge"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Connection"] == "close"


# --- commands --------------------------------------------------------------------------------------------------------


async def test_a_command_is_carried_out_and_answered(server: HttpServer, control: FakeControl) -> None:
    answer = await command(server, "record", {"action": "start", "device": "phone"})
    assert (answer.status, answer.json()) == (200, {"result": {"phone": "started"}})
    assert control.asked == [("record", {"action": "start", "device": "phone"})]


async def test_no_arguments_are_no_body_at_all(server: HttpServer, control: FakeControl) -> None:
    assert (await command(server, "reload")).status == 200
    assert control.asked == [("reload", {})]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (UnknownCommand("unknown command 'fly'"), 404),
        (Refused("phone: the device is not there"), 409),
        (ConfigError("bridge.toml: 2 faults"), 409),
        (BridgeError("record: the action is 'start' or 'stop', not 'x'"), 400),
    ],
)
async def test_a_refusal_is_its_sentence(
    server: HttpServer, control: FakeControl, refusal: BridgeError, status: int
) -> None:
    control.refusal = refusal
    answer = await command(server, "fly", {})
    assert (answer.status, answer.sentence) == (status, str(refusal))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "Bearer x",
        f"Bearer {TOKEN} ",
        f"Bearer {TOKEN}x",
        "Bearer ",
        "Basic " + base64.b64encode(b"a:" + TOKEN.encode()).decode(),
    ],
)
async def test_commands_need_the_token_as_bearer(server: HttpServer, control: FakeControl, value: str | None) -> None:
    headers = JSON if value is None else {**JSON, "Authorization": value}
    answer = await ask(server, "POST", "/control/reload", headers, b"{}")
    if value == f"Bearer {TOKEN} ":  # HTTP takes space around a header's value away
        assert answer.status == 200
        return
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert control.asked == []


async def test_without_a_token_in_the_configuration_there_are_no_commands(control: FakeControl) -> None:
    async with serving(control, HttpSettings("127.0.0.1", 0)) as server:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}, BEARER):
            answer = await ask(server, "POST", "/control/reload", {**JSON, **headers}, b"{}")
            assert answer.status == 403
            assert "token_file" in answer.sentence
    assert control.asked == []


async def test_without_the_token_nobody_learns_which_commands_there_are(server: HttpServer) -> None:
    answers = [await ask(server, "POST", f"/control/{name}", JSON, b"{}") for name in ("reload", "fly")]
    assert answers[0].status == answers[1].status == 401
    assert answers[0].body == answers[1].body


@pytest.mark.parametrize(
    "body",
    [b"[]", b"1", b'"x"', b"null", b"{", b"\xff", b'{"a": NaN}', b"[" * 50_000, b'{"a":' * 10_000, b"{}{}", b"{1: 2}"],
)
async def test_what_is_no_json_object_is_refused(server: HttpServer, control: FakeControl, body: bytes) -> None:
    answer = await ask(server, "POST", "/control/record", {**JSON, **BEARER}, body)
    assert answer.status == 400
    assert "JSON object" in answer.sentence
    assert control.asked == []


async def test_a_bug_is_a_500_without_a_traceback_and_an_error_in_the_log(
    server: HttpServer, control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    control.refusal = ZeroDivisionError("secret inner thing")
    answer = await command(server, "reload", {})
    assert answer.status == 500
    assert b"secret inner thing" not in answer.body
    assert b"Traceback" not in answer.body
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert (await get(server, "/healthz")).status == 200


async def test_after_a_command_the_status_is_a_new_one(server: HttpServer, control: FakeControl) -> None:
    await get(server, "/status")
    await command(server, "reload")
    control.tree["version"] = "another"
    assert (await get(server, "/status")).json()["version"] == "another"


async def test_tokens_are_never_logged(
    remote: HttpServer, control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    control.refusal = ZeroDivisionError()
    await command(remote, "reload", {})
    for value in (f"Bearer {TOKEN}", f"Bearer {TOKEN}!", f"Basic {TOKEN}", f"Digest {TOKEN}\x00"):
        await get(remote, f"/status?token={quote(TOKEN)}", {"Authorization": value})
    assert caplog.records
    assert "staple" not in caplog.text
    assert "wrong token" in caplog.text


async def test_guessing_does_not_fill_the_log(remote: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(80):
        await get(remote, "/status", {"Authorization": "Bearer guess"})
    assert 0 < len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 40


# --- those who do not behave -----------------------------------------------------------------------------------------


async def test_a_path_that_there_is_not_and_a_method_that_it_does_not_have(server: HttpServer) -> None:
    for path in ("/nothing", "/control", "/control/", "/../etc/passwd", "/status/x", "/%00", "//evil.example"):
        answer = await get(server, path)
        assert answer.status == 404, path
        assert "/healthz" in answer.sentence
    answer = await ask(server, "DELETE", "/status", BEARER)
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /status HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * (MAX_LINE_BYTES + 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (MAX_LINE_BYTES + 1) + b"\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"POST /control/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /control/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["tls", "hello", "short", "version", "long line", "long header", "headers", "colon", "length", "smuggling"],
)
async def test_what_is_no_request_is_told_so_and_no_more(
    server: HttpServer, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw(server, request_bytes)
    found = parsed(answer)
    assert found.status == 400
    assert "not an HTTP request" in found.sentence
    assert found.headers["Server"] == "pupil-bridge"
    assert b"aiohttp" not in answer
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (await get(server, "/healthz")).status == 200


async def test_a_body_that_is_too_long_is_refused(server: HttpServer, control: FakeControl) -> None:
    body = b'{"text": "' + b"x" * MAX_BODY_BYTES + b'"}'
    answer = await ask(server, "POST", "/control/event", {**JSON, **BEARER}, body)
    assert answer.status == 413
    assert str(MAX_BODY_BYTES) in answer.sentence
    assert control.asked == []


async def test_a_body_is_not_unpacked(server: HttpServer, control: FakeControl) -> None:
    import gzip

    body = gzip.compress(b'{"text": "' + b"x" * 10_000_000 + b'"}')
    answer = await ask(server, "POST", "/control/event", {**JSON, **BEARER, "Content-Encoding": "gzip"}, body)
    assert answer.status == 400
    assert control.asked == []


async def ended(reader: asyncio.StreamReader) -> None:
    """Returns when the server has hung up."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass


SLOW = {
    "says nothing": b"",
    "half a request line": b"GET /sta",
    "half of the headers": b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-A",
    "half of the body": b"POST /control/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    + f"Authorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{".encode(),
}


@pytest.mark.parametrize("said", list(SLOW.values()), ids=list(SLOW))
async def test_who_never_ends_a_request_is_hung_up_on(control: FakeControl, said: bytes) -> None:
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN), exchange_s=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        await ended(reader)
        writer.close()
        assert control.asked == []


async def test_a_drip_of_headers_does_not_put_the_deadline_off(control: FakeControl) -> None:
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN), exchange_s=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /status HTTP/1.1\r\nHost: localhost\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"X: a\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        await ended(reader)
        dripping.cancel()
        writer.close()


async def test_who_does_not_read_the_answer_is_hung_up_on(control: FakeControl) -> None:
    control.tree["problems"] = ["x" * 1000] * 20_000  # more than the buffers of both sides
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN), exchange_s=0.5) as server:
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(reader, ("127.0.0.1", server.port))
            await loop.sock_sendall(reader, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: control.statuses > 0)
            await until(lambda: server.connections == 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_crowd_that_says_nothing_keeps_nobody_out(control: FakeControl) -> None:
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN), max_connections=8) as server:
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
        assert (await get(server, "/healthz")).status == 200
        assert server.connections <= 8
        for reader, _ in crowd[:20]:  # the oldest have given way
            await ended(reader)
        for _, writer in crowd:
            writer.close()
        await until(lambda: server.connections == 0)


async def test_a_command_that_runs_does_not_give_way_and_has_no_deadline_of_the_exchange(control: FakeControl) -> None:
    control.gate.clear()
    settings = HttpSettings("127.0.0.1", 0, TOKEN)
    async with serving(control, settings, max_connections=4, exchange_s=0.3) as server:
        running = asyncio.create_task(command(server, "record", {"action": "stop"}))
        await until(lambda: bool(control.asked))
        first, *crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(10)]
        await ended(first[0])
        last = await asyncio.open_connection("127.0.0.1", server.port)
        await ended(last[0])  # its exchange took too long, and the command had begun before it
        assert not running.done()
        control.gate.set()
        assert (await running).status == 200
        for _, writer in [first, *crowd, last]:
            writer.close()


async def test_only_one_request_a_connection_is_answered(server: HttpServer, control: FakeControl) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await raw(server, request * 20)
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_who_hangs_up_early_leaves_nothing_behind(server: HttpServer, control: FakeControl) -> None:
    for said in [*SLOW.values(), b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"]:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        writer.transport.abort()
    await until(lambda: server.connections == 0)
    assert (await get(server, "/healthz")).status == 200


# --- start and stop --------------------------------------------------------------------------------------------------


async def test_a_port_that_somebody_has_is_a_sentence(server: HttpServer, control: FakeControl) -> None:
    second = HttpServer(control, HttpSettings("127.0.0.1", server.port))
    with pytest.raises(BridgeError, match=rf"^HTTP cannot listen on 127.0.0.1:{server.port}: another program has"):
        await second.start()
    await second.stop()
    assert (await get(server, "/healthz")).status == 200


async def test_an_address_of_another_computer_is_a_sentence(control: FakeControl) -> None:
    with pytest.raises(BridgeError, match="this computer does not have that address"):
        await HttpServer(control, HttpSettings("192.0.2.1", 0)).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_port_that_needs_a_privilege_is_a_sentence() -> None:
    program = (
        "import asyncio, os\n"
        "from bridge.service.http import HttpServer\nfrom bridge.service.http_settings import HttpSettings\n"
        "class Control:\n    def status(self): return {}\n"
        "open('/proc/sys/net/ipv4/ip_unprivileged_port_start').read() > '80' or exit('any')\n"
        "os.setuid(65534)\n"
        "try:\n    asyncio.run(HttpServer(Control(), HttpSettings('127.0.0.1', 80)).start())\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if done.stderr == "any\n":
        pytest.skip("anybody may have any port here")
    assert (done.stdout, done.stderr) == (
        "BridgeError HTTP cannot listen on 127.0.0.1:80: that is not permitted (ports below 1024 need a privilege)\n",
        "",
    )


async def test_stop_frees_the_port_and_may_be_called_twice(control: FakeControl) -> None:
    server = HttpServer(control, HttpSettings("localhost", 0))
    await server.start()
    port = server.port
    idle = await asyncio.open_connection("127.0.0.1", port)
    await server.stop()
    await server.stop()
    await ended(idle[0])
    idle[1].close()
    again = HttpServer(control, HttpSettings("127.0.0.1", port))
    await again.start()
    await again.stop()


async def test_stop_does_not_wait_long_for_a_command(control: FakeControl) -> None:
    control.gate.clear()
    async with serving(control, HttpSettings("127.0.0.1", 0, TOKEN)) as server:
        running = asyncio.create_task(command(server, "record", {}))
        await until(lambda: bool(control.asked))
        async with asyncio.timeout(20):
            await server.stop()
        with pytest.raises((IndexError, ValueError)):  # no answer
            await running


async def test_ipv6_loopback_is_served(control: FakeControl) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with serving(control, HttpSettings("::1", 0)) as server:
        reader, writer = await asyncio.open_connection("::1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        await ended(reader)
        writer.close()
