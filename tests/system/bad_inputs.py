"""What can be wrong, each made to happen with real processes, and what the user sees: the rows of docs/bad-inputs.md.

A case returns the words that a person meets (on the terminal, in the log, in the status, as an answer) and what becomes
of the process. Most of what devices, clients and disks can do happens to one daemon, the `Lab`, which has to go on.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.sources.lab import RawPhone, device_time, gaze_frames
from tests.sources.zre_peer import HELLO
from tests.system.harness import Bridge, answering, free_port, running, simulator
from tests.system.harness import wait_until as wait_for

PATIENCE_S = 60.0
MORE_SAMPLES = 25  # half a second of a good stream
EX_CONFIG = 78
TOKEN = "sixteen letters and more"
BRIDGE = (sys.executable, "-m", "bridge")
WITHOUT_RCLPY = "import sys; sys.modules['rclpy'] = None; from bridge.cli import main; main()"
# root without the right to pass over permissions, which everybody else lacks as well
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
CORE = '[[source]]\ntype = "pupil_core"\n'
LSL = '[[sink]]\ntype = "lsl"\n'
ROS = '[[sink]]\ntype = "ros2"\n'
GOOD = CORE + LSL
NOT_REMOTE = """
import zmq
router = zmq.Context().socket(zmq.ROUTER)
print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while True:
    *envelope, _ = router.recv_multipart()
    router.send_multipart([*envelope, b"hello"])
"""
LAB = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "phone"
match = "Good Phone"
[[source.device]]
name = "bad_phone"
match = "Bad Phone"
gaze.expected_rate_hz = 100

[[source]]
type = "ndsi"
interface = "198.51.100.7"

[[source]]
type = "pupil_core"
name = "core"
address = "{core}"

[[source]]
type = "pupil_core"
name = "away"
address = "127.0.0.1:{away_port}"

[[source]]
type = "pupil_core"
name = "wrong"
address = "127.0.0.1:{wrong_port}"

[[sink]]
type = "lsl"

[clock]
hold_s = 2

[overload]
flood_hz = 200

[http]
listen = "127.0.0.1:{http_port}"
token = "{token}"
"""


def wait_until(condition: Callable[[], Any], what: str, interval_s: float = 0.05) -> Any:
    return wait_for(condition, what, PATIENCE_S, interval_s)


@dataclass(frozen=True)
class Seen:
    """What the user sees, and the exit status or what goes on."""

    lines: list[str]
    then: str

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Case:
    """One bad input. ``says`` is what has to be in the words; ``vary`` are numbers that differ from run to run."""

    category: str
    wrong: str
    says: str
    then: str
    happen: Callable[[Desk], Seen]
    vary: tuple[tuple[str, str], ...] = ()


CASES: list[Case] = []
NEEDS_ROOT = "needs root"
LAB_GOES_ON = "goes on; the other devices lose nothing"


def case(
    category: str, wrong: str, *, says: str, then: str, vary: tuple[tuple[str, str], ...] = ()
) -> Callable[[Callable[[Desk], Seen]], Callable[[Desk], Seen]]:
    def add(happen: Callable[[Desk], Seen]) -> Callable[[Desk], Seen]:
        CASES.append(Case(category, wrong, says, then, happen, vary))
        return happen

    return add


class Desk:
    """A person's place: a directory for the files of one case, and commands. `lab` is there from its first use on."""

    def __init__(self, directory: Path, labs: Labs) -> None:
        self.directory = directory
        self._labs = labs
        self._stack = ExitStack()
        # What is different in each run -> what a person would have there.
        self.places = {
            f"{directory}/bridge.toml": "/etc/pupil-bridge/bridge.toml",
            f"{directory}/config.d": "/etc/pupil-bridge/config.d",
            f"{directory}/token": "/etc/pupil-bridge/token",
            f"{directory}/lsl_api.cfg": "/etc/lsl_api/lsl_api.cfg",
            f"{directory}/run": "/run/pupil-bridge",
            f"{directory}/state": "/var/lib/pupil-bridge",
            "python -m bridge": "pupil-bridge",
        }

    def close(self) -> None:
        self._stack.close()

    @property
    def lab(self) -> Lab:
        lab = self._labs.lab
        self.places |= lab.places
        return lab

    @property
    def config(self) -> Path:
        return self.directory / "bridge.toml"

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "control.sock"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def write(self, text: str | bytes = GOOD, *, socket: Path | None = None) -> Path:
        """The configuration file, with a [service] table unless it is bytes."""
        if isinstance(text, bytes):
            self.config.write_bytes(text)
        else:
            service = f'[service]\nsocket = "{socket or self.socket}"\nstate_dir = "{self.state}"\n'
            self.config.write_text(text + service, encoding="utf-8")
        return self.config

    def command(self, *arguments: object, before: tuple[str, ...] = BRIDGE, **env: str) -> Ended:
        """`pupil-bridge` with these arguments, to its end."""
        ended = subprocess.run(
            [*before, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, "COLUMNS": "500", **env},
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def run(self, text: str | bytes = GOOD, **options: Any) -> Ended:
        """`pupil-bridge run` on this configuration, which has to end by itself."""
        return self.command("run", "--config", self.write(text), **options)

    def check(self, text: str | bytes = GOOD, **env: str) -> Ended:
        """`pupil-bridge check-config`; `run` says the same (test_cli.py)."""
        return self.command("check-config", self.write(text), **env)

    def daemon(self, text: str, before: tuple[str, ...] = BRIDGE, env: dict[str, str] | None = None) -> Bridge:
        """A daemon of its own that answers; it ends with the case."""
        self.write(text)
        command = [*before, "run", "--config", str(self.config)]
        process = self._stack.enter_context(running(command, self.directory / "bridge.log", env))
        return answering(process, self.socket, PATIENCE_S)

    def phone(self, daemon: Bridge, beacon_port: int, name: str) -> RawPhone:
        """A phone that the daemon has met and that has announced its sensors."""
        made = RawPhone(beacon_port, name)
        self._stack.callback(made.close)
        show_up(made, daemon)
        return made

    def enter(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        return self._stack.enter_context(context)

    def as_on_the_page(self, text: str, vary: tuple[tuple[str, str], ...]) -> str:
        for mine, usual in sorted(self.places.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(mine, usual) if not mine.isdigit() else re.sub(rf"\b{mine}\b", usual, text)
        for pattern, words in vary:
            text = re.sub(pattern, words, text)
        return text


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    status: int
    said: str
    errors: str

    def seen(self) -> Seen:
        """All that is on the terminal; log lines without their time."""
        lines = (self.said + self.errors).splitlines()
        return Seen([without_time(line) for line in lines], f"exit status {self.status}")


def without_time(line: str) -> str:
    return " ".join(line.split(maxsplit=2)[1:]) if re.match(r"\d\d:\d\d:\d\d ", line) else line


def logged(daemon: Bridge, pattern: str) -> str:
    """The line of the daemon's log with this in it, once it is there."""

    def found() -> str | None:
        lines = daemon.process.errors().splitlines()
        return next((line for line in lines if re.search(pattern, line)), None)

    try:
        return f"log: {without_time(wait_until(found, pattern))}"
    except AssertionError as error:
        raise AssertionError(f"no line {pattern!r}; log: {daemon.process.errors()}") from error


def shown(desk: Desk, daemon: Bridge, pattern: str, meanwhile: Callable[[], object] = lambda: None) -> str:
    """The line of `pupil-bridge status` with this in it, once it is there. ``meanwhile`` is done again and again."""

    def there() -> bool:  # cheaper than the command
        meanwhile()
        return re.search(pattern, "\n".join(f"! {problem}" for problem in daemon.status()["problems"])) is not None

    if pattern.startswith("! "):
        wait_until(there, f"{pattern!r} among the problems {daemon.status()['problems']}", 0.2)
    command = [*BRIDGE, "status", "--socket", str(daemon.control)]
    with running(command, desk.directory / "status.log", {"COLUMNS": "500"}) as process:
        while process.popen.poll() is None:
            meanwhile()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(0.1)
        said = process.rest()
        assert process.popen.returncode == 0, process.errors()
    found = next((line for line in said.splitlines() if re.search(pattern, line)), None)
    assert found is not None, f"no line {pattern!r} in {said}"
    return f"status: {found.rstrip()}"


def show_up(phone: RawPhone, daemon: Bridge) -> None:
    """Meets the daemon, announces all sensors, and returns when it listens to them."""

    def of_the_bridge() -> str | None:
        phone.beacon()
        return next((m.endpoint for m in phone.got(HELLO) if b"pupil-bridge@" in m.body), None)

    phone.connect(str(wait_until(of_the_bridge, "the bridge's greeting", interval_s=0.1)))
    phone.greet()
    for sensor in phone.sensors:
        phone.whisper(sensor.attach())

    def subscribed() -> bool:
        phone.serve()
        return all(s.subscribed["data"] == s.subscribed["notify"] == 1 for s in (phone.gaze, phone.event))

    wait_until(subscribed, f"the bridge listens to {phone.name}; log: {daemon.process.errors()}")


class Labs:
    """The one lab of a module, made when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()

    @cached_property
    def lab(self) -> Lab:
        return Lab(self._directory, self._stack)

    def close(self) -> None:
        self._stack.close()


class Lab:
    """A daemon with a good phone, a good Capture, a bad phone, and addresses at which nothing good is."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.beacon_port = free_port(socket.SOCK_DGRAM)
        self.http_port = free_port(socket.SOCK_STREAM)
        away_port = free_port(socket.SOCK_STREAM)
        phone = ("--name", "Good Phone", "--beacon-port", str(self.beacon_port), "--gaze-rate", "50")
        stack.enter_context(simulator("companion", directory, *phone))
        core = ("--port", "0", "--synthesise", "--gaze-rate", "50", "--pupil-rate", "25")
        _, self.core = stack.enter_context(simulator("core", directory, *core))
        wrong = stack.enter_context(running([sys.executable, "-c", NOT_REMOTE], directory / "wrong.log"))
        wrong_port = wrong.line().strip()
        self.config = LAB.format(
            beacon_port=self.beacon_port, core=self.core["address"], away_port=away_port, wrong_port=wrong_port,
            http_port=self.http_port, token=TOKEN,
        )  # fmt: skip
        self.config += f'[service]\nsocket = "{directory}/control.sock"\nstate_dir = "{directory}/state"\n'
        self.write()
        command = [*BRIDGE, "run", "--config", str(directory / "bridge.toml")]
        process = stack.enter_context(running(command, directory / "bridge.log"))
        self.daemon = answering(process, directory / "control.sock", PATIENCE_S)
        self.places = {
            f"{directory}/bridge.toml": "/etc/pupil-bridge/bridge.toml",
            f"{directory}/control.sock": "/run/pupil-bridge/control.sock",
            str(away_port): "50020",
            wrong_port: "50020",
            str(self.http_port): "8420",
        }
        self._stack = stack
        self._samples: dict[str, int] = {}
        self._dropped: dict[str, dict[str, int]] = {}
        self.daemon.wait_locked("phone", "core")
        self.goes_on()

    def write(self, more: str = "") -> None:
        (self.directory / "bridge.toml").write_text(self.config + more, encoding="utf-8")

    @cached_property
    def phone(self) -> RawPhone:
        """The bad one: it never answers when it is asked for its time."""
        made = RawPhone(self.beacon_port, "Bad Phone")
        made.echoes = 0
        self._stack.callback(made.close)
        show_up(made, self.daemon)
        return made

    def there(self) -> RawPhone:
        """The bad phone, which has just said so."""
        self.phone.beacon()
        self.phone.serve()
        return self.phone

    def goes_on(self, but: str = "") -> None:
        """Fails unless the daemon runs, and the good devices stream on; without a drop ``but`` one."""
        before = {name: self._taken(name) for name in ("phone", "core")}
        wait_until(
            lambda: all(self._taken(name) >= count + MORE_SAMPLES for name, count in before.items()),
            f"the good devices stream; log: {self.daemon.process.errors()}",
        )
        assert "Traceback" not in self.daemon.process.errors(), self.daemon.process.errors()
        dropped = {name: self.daemon.stream(name, "gaze")["dropped"] for name in before}
        assert all(dropped[name] == counts for name, counts in self._dropped.items() if name != but)
        self._dropped = dropped

    def _taken(self, name: str) -> int:
        return int(self.daemon.stream(name, "gaze").get("samples_out", {}).get("lsl", 0))

    def ask_http(self, method: str, path: str, body: str | None = None, **headers: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read().decode().strip()
            return f"answer: {answer.status} {said}"
        finally:
            connection.close()

    def ask_raw(self, data: bytes) -> bytes:
        """What the control socket answers to these bytes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.daemon.control))
            with contextlib.suppress(BrokenPipeError):
                client.sendall(data)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while not answer.endswith(b"\n") and (chunk := client.recv(65536)):
                    answer += chunk
            return answer

    def counted(self, count: Callable[[], int], what: str) -> None:
        wait_until(lambda: count() > 0, f"{what}; log: {self.daemon.process.errors()}")

    def malformed(self, device: str, kind: str) -> int:
        return int(self.daemon.device(device)["malformed"].get(kind, 0))

    def source_count(self, kind: str) -> int:
        return int(self.daemon.status()["sources"][0]["counts"].get(kind, 0))

    def dropped(self, device: str, stream: str, reason: str) -> int:
        return int(self.daemon.stream(device, stream)["dropped"].get(reason, 0))

    @contextlib.contextmanager
    def backbone(self) -> Iterator[zmq.Socket[bytes]]:
        """Publishes on Capture's backbone, to which the bridge listens."""
        with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
            publisher.setsockopt(zmq.LINGER, 0)
            publisher.connect(f"tcp://127.0.0.1:{self.core['pub_port']}")
            wanted: set[bytes] = set()
            while not wanted >= {b"\x01gaze.", b"\x01pupil."}:
                assert publisher.poll(5000), f"only {wanted} is subscribed to"
                wanted.add(publisher.recv())
            yield publisher

    def ask_remote(self, request: str) -> str:
        with zmq.Context() as context, context.socket(zmq.REQ) as remote:
            remote.setsockopt(zmq.LINGER, 0)
            remote.setsockopt(zmq.RCVTIMEO, 5000)
            remote.connect(f"tcp://{self.core['address']}")
            remote.send_string(request)
            return remote.recv_string()


# --- configuration ---------------------------------------------------------------------------------------------------

CONFIGURATION = "Configuration"
REFUSED = f"exit status {EX_CONFIG}"
MISUSED = "exit status 2"  # click's, of a command that is called wrongly


@case(CONFIGURATION, "The file is not there.", says=r"bridge\.toml: cannot be read: No such file", then=REFUSED)
def _missing_file(desk: Desk) -> Seen:
    return desk.command("check-config", desk.config).seen()


@case(
    CONFIGURATION,
    "The file belongs to somebody else.",
    says=r"bridge\.toml: cannot be read: Permission denied",
    then=REFUSED,
)
def _unreadable_file(desk: Desk) -> Seen:
    desk.write().chmod(0)
    return desk.command("run", "--config", desk.config, before=(*AS_ANYBODY, *BRIDGE)).seen()


@case(
    CONFIGURATION, "The file was saved as Latin-1, with an umlaut.", says=r"is not UTF-8 text \(line 2\)", then=REFUSED
)
def _not_utf8(desk: Desk) -> Seen:
    return desk.check("# a comment\n# für das Labor\n".encode("latin-1")).seen()


@case(CONFIGURATION, "A bracket is missing.", says=r"is not valid TOML: .*line 1", then=REFUSED)
def _not_toml(desk: Desk) -> Seen:
    return desk.check(b'[[source]\ntype = "ndsi"\n').seen()


@case(
    CONFIGURATION,
    "The file is empty.",
    says=r"at least one \[\[source\]\](.|\n)*at least one \[\[sink\]\]",
    then=REFUSED,
)
def _empty(desk: Desk) -> Seen:
    return desk.check(b"").seen()


@case(
    CONFIGURATION,
    "A key is misspelt.",
    says=r"source\[0\]\.interfce \(line 3\): .*did you mean 'interface'\?",
    then=REFUSED,
)
def _unknown_key(desk: Desk) -> Seen:
    return desk.check('[[source]]\ntype = "ndsi"\ninterfce = "127.0.0.1"\n' + LSL).seen()


@case(
    CONFIGURATION, "A number is in quotes.", says=r"clock\.hold_s \(line 6\): must be a .*number, not '5'", then=REFUSED
)
def _wrong_type(desk: Desk) -> Seen:
    return desk.check(GOOD + '[clock]\nhold_s = "5"\n').seen()


@case(CONFIGURATION, "A number is out of range.", says=r"-1 is out of range: it must be at least 0", then=REFUSED)
def _out_of_range(desk: Desk) -> Seen:
    return desk.check(GOOD + "[clock]\nhold_s = -1\n").seen()


@case(
    CONFIGURATION, "There is no such type of source.", says=r"'pupil_cor' .*did you mean 'pupil_core'\?", then=REFUSED
)
def _unknown_type(desk: Desk) -> Seen:
    return desk.check('[[source]]\ntype = "pupil_cor"\n' + LSL).seen()


@case(CONFIGURATION, "Two devices have one name.", says=r"'left' is the name of source\[0\] already", then=REFUSED)
def _one_name_twice(desk: Desk) -> Seen:
    two = "".join(f'{CORE}name = "left"\naddress = "127.0.0.1:{port}"\n' for port in (50020, 50021))
    return desk.check(two + LSL).seen()


@case(
    CONFIGURATION,
    "A variable of the environment is misspelt (`PUPIL_BRIDGE_CLOCK_HOLDS`).",
    says=r"PUPIL_BRIDGE_CLOCK_HOLDS: is no setting; did you mean PUPIL_BRIDGE_CLOCK_HOLD_S\?",
    then=REFUSED,
)
def _misspelt_variable(desk: Desk) -> Seen:
    return desk.check(PUPIL_BRIDGE_CLOCK_HOLDS="3").seen()


@case(
    CONFIGURATION,
    "The fault is in a drop-in.",
    says=r"config\.d/50-lab\.toml: 1 fault\n.*logging\.level \(line 2\)",
    then=REFUSED,
)
def _fault_in_a_drop_in(desk: Desk) -> Seen:
    drop_in = desk.directory / "config.d" / "50-lab.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[logging]\nlevel = "loud"\n', encoding="utf-8")
    return desk.check().seen()


@case(
    CONFIGURATION,
    "HTTP would be open to other computers, which nobody asked for.",
    says=r"'0\.0\.0\.0:8420' can be reached by other computers: that needs http\.allow_remote = true",
    then=REFUSED,
)
def _open_http(desk: Desk) -> Seen:
    return desk.check(GOOD + f'[http]\nlisten = "0.0.0.0:8420"\ntoken = "{TOKEN}"\n').seen()


@case(
    CONFIGURATION,
    "HTTP is open to other computers, as was asked for, but without a token.",
    says=r"other computers need a token: set http\.token or http\.token_file",
    then=REFUSED,
)
def _open_http_without_token(desk: Desk) -> Seen:
    return desk.check(GOOD + '[http]\nlisten = "0.0.0.0:8420"\nallow_remote = true\n').seen()


@case(
    CONFIGURATION,
    "The token is too short. (It is not shown: a log is read by others.)",
    says=r"http\.token \(line 7\): must have at least 16 letters",
    then=REFUSED,
)
def _short_token(desk: Desk) -> Seen:
    seen = desk.check(GOOD + '[http]\nlisten = "127.0.0.1:8420"\ntoken = "swordfish"\n').seen()
    assert "swordfish" not in seen.text
    return seen


@case(
    CONFIGURATION,
    "The file with the token belongs to somebody else.",
    says=r"http\.token_file .*token cannot be read: Permission denied",
    then=REFUSED,
)
def _unreadable_token(desk: Desk) -> Seen:
    path = desk.directory / "token"
    path.write_text(TOKEN, encoding="ascii")
    path.chmod(0)
    desk.write(GOOD + f'[http]\nlisten = "127.0.0.1:8420"\ntoken_file = "{path}"\n')
    checked = desk.command("check-config", desk.config, before=(*AS_ANYBODY, *BRIDGE))
    ran = desk.command("run", "--config", desk.config, before=(*AS_ANYBODY, *BRIDGE))
    assert ran.status == checked.status
    assert ran.errors.splitlines()[-1] == checked.errors.splitlines()[-1]
    return checked.seen()


@case(
    CONFIGURATION,
    "ROS 2 is the only sink, and it is not installed.",
    says=r"rclpy is not installed(.|\n)*no sink can be opened",
    then=REFUSED,
)
def _no_sink(desk: Desk) -> Seen:
    return desk.run(CORE + ROS, before=(sys.executable, "-c", WITHOUT_RCLPY)).seen()


@case(
    CONFIGURATION,
    "A bad file is loaded anew (`pupil-bridge reload`).",
    says=r"clock\.hold_s(.|\n)*log: ERROR the configuration is refused(.|\n)*status: ! the configuration was refused",
    then=f"exit status {EX_CONFIG}; the daemon goes on with the configuration of before",
    vary=((r"\(line \d+\)", "(line N)"),),
)
def _bad_reload(desk: Desk) -> Seen:
    lab = desk.lab
    lab.config = lab.config.replace("hold_s = 2", "hold_s = -1")
    lab.write()
    ended = desk.command("reload", "--socket", lab.daemon.control)
    lines = [*ended.seen().lines, logged(lab.daemon, "configuration is refused")]
    lines.append(shown(desk, lab.daemon, "! the configuration was refused"))
    lab.config = lab.config.replace("hold_s = -1", "hold_s = 2")
    lab.write()
    assert lab.daemon.status()["config"]["reloads"] == 0
    lab.goes_on()
    assert desk.command("reload", "--socket", lab.daemon.control).said == "nothing has changed\n"
    assert lab.daemon.status()["config"]["refused"] is None
    lab.goes_on()
    return Seen(lines, f"exit status {ended.status}; the daemon goes on with the configuration of before")


# --- sockets and permissions -----------------------------------------------------------------------------------------

SOCKETS = "Sockets and permissions"
FAILED = "exit status 1"


@case(SOCKETS, "The daemon runs already.", says=r"^pupil-bridge: another pupil-bridge is running", then=FAILED)
def _second_daemon(desk: Desk) -> Seen:
    lab = desk.lab
    seen = desk.command("run", "--config", lab.directory / "bridge.toml").seen()
    lab.goes_on()
    return seen


@case(
    SOCKETS,
    "The directory of the control socket cannot be made.",
    says=r"the control socket .* cannot be made: Permission denied",
    then=FAILED,
)
def _no_socket_directory(desk: Desk) -> Seen:
    closed = desk.directory / "closed"
    closed.mkdir(mode=0o500)
    path = closed / "pupil-bridge" / "control.sock"
    desk.places[str(path)] = "/run/pupil-bridge/control.sock"
    desk.write(socket=path)
    return desk.command("run", "--config", desk.config, before=(*AS_ANYBODY, *BRIDGE)).seen()


@case(SOCKETS, "A file has the control socket's name.", says=r"something else has that name", then=FAILED)
def _socket_is_a_file(desk: Desk) -> Seen:
    desk.socket.parent.mkdir()
    desk.socket.write_text("precious", encoding="ascii")
    seen = desk.run().seen()
    assert desk.socket.read_text(encoding="ascii") == "precious"
    return seen


@case(
    SOCKETS,
    "Another program has the port of HTTP.",
    says=r"HTTP cannot listen on 127\.0\.0\.1:8420: ",
    then=FAILED,
)
def _port_in_use(desk: Desk) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        desk.places[str(port)] = "8420"
        return desk.run(GOOD + f'[http]\nlisten = "127.0.0.1:{port}"\n').seen()


@case(SOCKETS, "`status` while no daemon runs.", says=r"no pupil-bridge answers at .*: No such file", then=FAILED)
def _status_of_nothing(desk: Desk) -> Seen:
    return desk.command("status", "--socket", desk.socket).seen()


@case(
    SOCKETS,
    "`status` of another user's daemon.",
    says=r"no pupil-bridge answers at .*: Permission denied",
    then=FAILED,
)
def _status_of_another_user(desk: Desk) -> Seen:
    with _listening(desk.socket):
        desk.socket.chmod(0)
        return desk.command("status", "--socket", desk.socket, before=(*AS_ANYBODY, *BRIDGE)).seen()


@case(
    SOCKETS,
    "`status`, but another program has that socket.",
    says=r"what answers at .* is no pupil-bridge",
    then=FAILED,
)
def _status_of_something_else(desk: Desk) -> Seen:
    command = [*BRIDGE, "status", "--socket", str(desk.socket)]
    with (
        _listening(desk.socket) as server,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client,
    ):
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        said, errors = client.communicate(timeout=PATIENCE_S)
    return Ended(client.returncode, said, errors).seen()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(PATIENCE_S)
        server.bind(str(path))
        server.listen()
        yield server


@case(SOCKETS, "A command that does not exist.", says=r"No such command 'fly'", then=MISUSED)
def _unknown_command(desk: Desk) -> Seen:
    return desk.command("fly").seen()


@case(
    SOCKETS,
    "An unknown command at the control socket.",
    says=r'"error": "unknown command .fly.; there are status, ',
    then=LAB_GOES_ON,
)
def _unknown_request(desk: Desk) -> Seen:
    answer = desk.lab.ask_raw(b'{"command": "fly"}\n').decode().strip()
    desk.lab.goes_on()
    return Seen([f"answer: {answer}"], LAB_GOES_ON)


@case(SOCKETS, "What is no request at the control socket.", says=r"a request is one line such as", then=LAB_GOES_ON)
def _no_request(desk: Desk) -> Seen:
    answer = desk.lab.ask_raw(b"GET / HTTP/1.1\r\n").decode().strip()
    desk.lab.goes_on()
    return Seen([f"answer: {answer}"], LAB_GOES_ON)


@case(SOCKETS, "A request without end at the control socket.", says=r"the connection is closed", then=LAB_GOES_ON)
def _endless_request(desk: Desk) -> Seen:
    assert desk.lab.ask_raw(b"x" * 100_000) == b""
    desk.lab.goes_on()
    return Seen(["no answer: the connection is closed"], LAB_GOES_ON)


@case(
    SOCKETS,
    "A command over HTTP without the token.",
    says=r"answer: 401 .*Authorization: Bearer TOKEN",
    then=LAB_GOES_ON,
)
def _http_without_token(desk: Desk) -> Seen:
    return _over_http(desk, "POST", "/control/reload", "{}", **{"Content-Type": "application/json"})


@case(
    SOCKETS,
    "A command over HTTP with a wrong token.",
    says=r"answer: 401 (.|\n)*log: WARNING HTTP: 127\.0\.0\.1 sent a wrong token",
    then=LAB_GOES_ON,
)
def _http_with_wrong_token(desk: Desk) -> Seen:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer not the right one"}
    seen = _over_http(desk, "POST", "/control/reload", "{}", **headers)
    assert desk.lab.daemon.status()["config"]["reloads"] <= 1
    return Seen([*seen.lines, logged(desk.lab.daemon, "wrong token")], seen.then)


@case(
    SOCKETS,
    "A web site that has its name point to this computer asks for the status (DNS rebinding).",
    says=r"answer: 421 .*not known by that name",
    then=LAB_GOES_ON,
)
def _foreign_host(desk: Desk) -> Seen:
    return _over_http(desk, "GET", "/status", None, Host="eyes.example")


@case(
    SOCKETS,
    "A command over HTTP with wrong arguments.",
    says=r"answer: 400 .*record: .*devise",
    then=LAB_GOES_ON,
)
def _wrong_arguments(desk: Desk) -> Seen:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    return _over_http(desk, "POST", "/control/record", '{"action": "start", "devise": "phone"}', **headers)


def _over_http(desk: Desk, method: str, path: str, body: str | None, **headers: str) -> Seen:
    answer = desk.lab.ask_http(method, path, body, **headers)
    assert TOKEN not in answer
    desk.lab.goes_on()
    return Seen([answer], LAB_GOES_ON)


# --- disk ------------------------------------------------------------------------------------------------------------

DISK = "Disk"
NAMED_ONLY_NOW = "goes on; the names of devices that were found last until it ends, and are kept once it can be written"


def _with_a_phone(desk: Desk, *, before: tuple[str, ...] = BRIDGE) -> tuple[Bridge, RawPhone]:
    """A daemon on the case's state directory that has just found a phone, and has its gaze."""
    port = free_port(socket.SOCK_DGRAM)
    config = f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {port}\n'
    daemon = desk.daemon(config + LSL, before)
    phone = desk.phone(daemon, port, "Lab Phone 7")

    def streams() -> bool:
        phone.serve()
        phone.gaze.send(gaze_frames(device_time(), 1.0, 2.0))
        taken = daemon.stream("lab_phone_7", "gaze").get("samples_out", {}).get("lsl", 0)
        return int(taken) > MORE_SAMPLES

    wait_until(streams, f"gaze of the phone; log: {daemon.process.errors()}")
    return daemon, phone


def _seen_of_state(desk: Desk, daemon: Bridge, *more: str) -> Seen:
    lines = [*more, logged(daemon, "cannot be kept"), shown(desk, daemon, "! the names of devices cannot be kept")]
    assert daemon.process.popen.poll() is None
    assert "Traceback" not in daemon.process.errors()
    return Seen(lines, NAMED_ONLY_NOW)


@case(
    DISK,
    "The state directory cannot be written.",
    says=r"cannot be kept in .*: .*Permission denied",
    then=NAMED_ONLY_NOW,
)
def _closed_state(desk: Desk) -> Seen:
    desk.state.mkdir(mode=0o500)
    daemon, _ = _with_a_phone(desk, before=(*AS_ANYBODY, *BRIDGE))
    return _seen_of_state(desk, daemon)


@case(DISK, "The disk is full.", says=r"cannot be kept in .*: .*No space left on device", then=NAMED_ONLY_NOW)
def _full_disk(desk: Desk) -> Seen:
    desk.enter(_full(desk.state))
    daemon, _ = _with_a_phone(desk)
    return _seen_of_state(desk, daemon)


@contextlib.contextmanager
def _full(path: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        with (path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@case(
    DISK,
    "A file is where the state directory should be.",
    says=r"cannot be read and begin anew(.|\n)*cannot be kept",
    then=NAMED_ONLY_NOW,
)
def _state_is_a_file(desk: Desk) -> Seen:
    desk.state.write_text("precious", encoding="ascii")
    daemon, _ = _with_a_phone(desk)
    seen = _seen_of_state(desk, daemon, logged(daemon, "begin anew"))
    assert desk.state.read_text(encoding="ascii") == "precious"
    return seen


@case(
    DISK,
    "The file of names is broken (`names.json`, after a crash of the computer).",
    says=r"names\.json cannot be read and begin anew",
    then="goes on; devices that were found before get new names where the old ones are not what they call themselves",
)
def _broken_names(desk: Desk) -> Seen:
    desk.state.mkdir()
    (desk.state / "names.json").write_text('{"own_names": {"lab_', encoding="utf-8")
    daemon, _ = _with_a_phone(desk)
    names = desk.state / "names.json"
    wait_until(
        lambda: "lab_phone_7" in json.loads(names.read_text(encoding="utf-8"))["own_names"], "the names are kept"
    )
    assert daemon.status()["problems"] is not None
    return Seen(
        [logged(daemon, "begin anew")],
        "goes on; devices that were found before get new names where the old ones are not what they call themselves",
    )


# --- network and devices ---------------------------------------------------------------------------------------------

DEVICES = "Network and devices"
TRIES_AGAIN = "goes on and tries again for ever; the other devices lose nothing"
COUNTED = "dropped and counted; the other devices lose nothing"


@case(
    DEVICES, "The network interface is not there.", says=r"no interface of this host has the address", then=TRIES_AGAIN
)
def _no_interface(desk: Desk) -> Seen:
    line = logged(desk.lab.daemon, r"198\.51\.100\.7")
    desk.lab.goes_on()
    return Seen([line], TRIES_AGAIN)


@case(
    DEVICES,
    "Pupil Capture does not run.",
    says=r"does not answer; trying again\nstatus: ! away: not there",
    then=TRIES_AGAIN,
)
def _no_capture(desk: Desk) -> Seen:
    lines = [logged(desk.lab.daemon, r"does not answer"), shown(desk, desk.lab.daemon, "! away: not there")]
    desk.lab.goes_on()
    return Seen(lines, TRIES_AGAIN)


@case(
    DEVICES,
    "What answers is no Pupil Remote.",
    says=r"is no Pupil Remote: (.|\n)*status: ! wrong: not there",
    then=TRIES_AGAIN,
)
def _no_pupil_remote(desk: Desk) -> Seen:
    lines = [logged(desk.lab.daemon, r"is no Pupil Remote"), shown(desk, desk.lab.daemon, "! wrong: not there")]
    desk.lab.goes_on()
    return Seen(lines, TRIES_AGAIN)


@case(
    DEVICES,
    "A phone sends a gaze sample that is cut off.",
    says=r"status: bad_phone malformed: gaze 1$",
    then=COUNTED,
    vary=((r"echo_lost_or_doubtful \d+, |, echo_lost_or_doubtful \d+", ""),),  # its echoes are the lab's business
)
def _malformed_gaze(desk: Desk) -> Seen:
    lab = desk.lab
    lab.there().gaze.send([frame[:-1] for frame in gaze_frames(device_time(), 1.0, 2.0)])
    lab.counted(lambda: lab.malformed("bad_phone", "gaze"), "malformed gaze")
    line = shown(desk, lab.daemon, "bad_phone malformed")
    lab.goes_on()
    return Seen([line], COUNTED)


@case(
    DEVICES,
    "Somebody publishes a datum that is none to Pupil Capture.",
    says=r"core malformed: datums_malformed 1",
    then=COUNTED,
)
def _malformed_datum(desk: Desk) -> Seen:
    lab = desk.lab
    with lab.backbone() as publisher:
        publisher.send_multipart([b"gaze.2d.0.", b"\x00"])
        lab.counted(lambda: lab.malformed("core", "datums_malformed"), "malformed datums")
    line = shown(desk, lab.daemon, "core malformed")
    lab.goes_on()
    return Seen([line], COUNTED)


def _counts(desk: Desk, kind: str) -> Seen:
    """A count of the discovery's that has begun."""
    lab = desk.lab
    lab.counted(lambda: lab.source_count(kind), kind)
    told = desk.command("status", "--json", "--socket", lab.daemon.control)
    line = next(line for line in told.said.splitlines() if kind in line)
    lab.goes_on()
    return Seen([f"status --json: {line.strip().rstrip(',')}"], COUNTED)


@case(
    DEVICES,
    "Something else sends datagrams to the port of discovery.",
    says=r'"beacons_malformed": 3',
    then=COUNTED,
)
def _datagrams(desk: Desk) -> Seen:
    for data in (b"M-SEARCH * HTTP/1.1\r\n", b"ZRE\x01" + bytes(3), bytes(1400)):
        desk.lab.there().datagram(data)
    wait_until(lambda: desk.lab.source_count("beacons_malformed") == 3, "three datagrams are counted")
    return _counts(desk, "beacons_malformed")


@case(
    DEVICES,
    "A phone announces a sensor at a host name. (Only addresses are connected to.)",
    says=r'"announcements_malformed": 1',
    then=COUNTED,
)
def _host_name(desk: Desk) -> Seen:
    phone = desk.lab.there()
    phone.whisper(phone.gaze.attach(sensor_uuid="another", data_endpoint="tcp://eyes.example:5000"))
    return _counts(desk, "announcements_malformed")


@case(
    DEVICES,
    "A device sends far too much.",
    says=r"log: WARNING bad_phone: gaze: more than 200 samples a second(.|\n)*status: ! bad_phone: gaze sends too much",
    then="what is beyond the limit is dropped and counted (`flood`); the other devices lose nothing",
)
def _flood(desk: Desk) -> Seen:
    lab = desk.lab

    def flood() -> None:
        phone = lab.there()
        for _ in range(500):
            phone.gaze.send(gaze_frames(device_time(), 1.0, 2.0))

    line = shown(desk, lab.daemon, "! bad_phone: gaze sends too much", flood)
    assert lab.dropped("bad_phone", "gaze", "flood") > 0
    lab.goes_on()
    lines = [logged(lab.daemon, "bad_phone: gaze: more than"), line]
    return Seen(lines, "what is beyond the limit is dropped and counted (`flood`); the other devices lose nothing")


@case(
    DEVICES,
    "A device that is there has stopped sending.",
    says=r"status: ! bad_phone: gaze is silent for ",
    then=LAB_GOES_ON,
    vary=((r"for \d+ s", "for N s"),),
)
def _silent(desk: Desk) -> Seen:
    lab = desk.lab
    lab.there().gaze.send(gaze_frames(device_time(), 1.0, 2.0))
    line = shown(desk, lab.daemon, "! bad_phone: gaze is silent", lab.there)
    lab.goes_on()
    return Seen([line], LAB_GOES_ON)


@case(
    DEVICES,
    "`calibrate` on a device that has no calibration.",
    says=r"phone: calibrate is not possible with this device",
    then=LAB_GOES_ON,
)
def _cannot_calibrate(desk: Desk) -> Seen:
    return _told_to(desk, "calibrate", action="start", device="phone")


@case(
    DEVICES,
    "`record` on a device that is not known.",
    says=r"there is no device 'phnoe'; known are: ",
    then=LAB_GOES_ON,
)
def _record_on_nothing(desk: Desk) -> Seen:
    return _told_to(desk, "record", action="start", device="phnoe")


def _told_to(desk: Desk, command: str, **arguments: str) -> Seen:
    request = json.dumps({"command": command, "arguments": arguments})
    answer = json.loads(desk.lab.ask_raw(request.encode() + b"\n"))
    desk.lab.goes_on()
    return Seen([f"answer: {answer['error']}"], LAB_GOES_ON)


# --- clocks ----------------------------------------------------------------------------------------------------------

CLOCKS = "Clocks"


@case(
    CLOCKS,
    "One sample has a stamp in the future.",
    says=r"status: core pupil_1_2d dropped: impossible_stamp 1$",
    then=COUNTED,
)
def _corrupt_stamp(desk: Desk) -> Seen:
    lab = desk.lab
    with lab.backbone() as publisher:
        wrong_s = float(lab.ask_remote("t")) + 60.0
        datum = {"timestamp": wrong_s, "confidence": 1.0, "norm_pos": [0.5, 0.5], "diameter": 30.0}
        publisher.send_multipart([b"pupil.1.2d", msgspec.msgpack.encode(datum)])
        lab.counted(lambda: lab.dropped("core", "pupil_1_2d", "impossible_stamp"), "the impossible stamp")
    line = shown(desk, lab.daemon, "core pupil_1_2d dropped")
    assert lab.daemon.device("core")["clock"]["epoch"] == 0
    lab.goes_on()
    return Seen([line], COUNTED)


@case(
    CLOCKS,
    "A clock does not lock: the device never answers when it is asked for its time.",
    says=r"! bad_phone: its clock is not locked(.|\n)*bad_phone gaze dropped: .*clock_unlocked N",
    then="its samples are dropped and counted, since no true time can be given; the other devices lose nothing",
    vary=((r"(flood|clock_unlocked) \d+", r"\1 N"), ("clock_unlocked N, flood N", "flood N, clock_unlocked N")),
)
def _no_lock(desk: Desk) -> Seen:
    lab = desk.lab

    def given_up() -> bool:
        lab.there().gaze.send(gaze_frames(device_time(), 1.0, 2.0))
        return lab.dropped("bad_phone", "gaze", "clock_unlocked") > 0

    wait_until(given_up, "samples that waited in vain", interval_s=0.05)
    lines = [shown(desk, lab.daemon, "! bad_phone: its clock"), shown(desk, lab.daemon, "bad_phone gaze dropped")]
    lab.goes_on()
    return Seen(
        lines, "its samples are dropped and counted, since no true time can be given; the other devices lose nothing"
    )


SET = "samples go on with right stamps; LSL and ROS 2 tell the new epoch"


@case(
    CLOCKS,
    "Somebody sets the clock of Pupil Capture three seconds forward.",
    says=r"log: WARNING core: the device's clock was set by \+3\.0 s; epoch 1 begins",
    then=SET,
    vary=((r"by \+(2\.9|3\.0)\d* s", "by +3.0 s"),),
)
def _clock_set(desk: Desk) -> Seen:
    lab = desk.lab
    device_s = float(lab.ask_remote("t"))
    assert lab.ask_remote(f"T {device_s + 3.0!r}") == "Timesync successful."
    line = logged(lab.daemon, r"core: .* epoch 1 begins")
    lab.daemon.wait_locked("core")
    lab.goes_on(but="core")
    return Seen([line], SET)


# --- ROS 2 and LSL ---------------------------------------------------------------------------------------------------

SINKS = "ROS 2 and LSL"
LSL_ALONE = "goes on with LSL"


def _without_ros(desk: Desk, before: tuple[str, ...] = BRIDGE, **env: str) -> Seen:
    daemon = desk.daemon(_nobody() + LSL + ROS, before, env)
    lines = [logged(daemon, "ROS 2: "), shown(desk, daemon, "! ROS 2: ")]
    assert daemon.status()["sinks"] == ["lsl"]
    assert daemon.process.stop() == 0
    assert "Traceback" not in daemon.process.errors()
    return Seen(lines, LSL_ALONE)


def _nobody() -> str:
    """A source at an address of which nothing comes."""
    return f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {free_port(socket.SOCK_DGRAM)}\n'


@case(
    SINKS,
    "ROS 2 is configured and not installed.",
    says=r"rclpy is not installed(.|\n)*status: ! ROS 2",
    then=LSL_ALONE,
)
def _no_rclpy(desk: Desk) -> Seen:
    return _without_ros(desk, (sys.executable, "-c", WITHOUT_RCLPY))


@case(SINKS, "`ROS_DOMAIN_ID=999`.", says=r"ROS_DOMAIN_ID is 999: it must be from 0 to 232", then=LSL_ALONE)
def _bad_domain(desk: Desk) -> Seen:
    if importlib.util.find_spec("rclpy") is None:
        pytest.skip("needs rclpy")
    return _without_ros(desk, ROS_DOMAIN_ID="999")


LSL_DEFAULTS = "goes on with liblsl's own settings, which are all interfaces; the line is liblsl's"


def _with_lsl_cfg(desk: Desk, path: Path, words: str) -> Seen:
    """In a network of its own: with its own settings liblsl would use every interface."""
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)
    alone = ("unshare", "--net", "--", *BRIDGE)
    if subprocess.run([*alone[: -len(BRIDGE)], "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces")
    daemon = desk.daemon(CORE + LSL, alone, {"LSLAPICFG": str(path)})
    line = logged(daemon, words)
    assert daemon.status()["sinks"] == ["lsl"]
    assert daemon.process.stop() == 0
    return Seen([line], LSL_DEFAULTS)


LIBLSL = ((r"^log: .*?(ERR\|)", r"log: ... \1"),)  # a time, a thread, a line of its source


@case(
    SINKS,
    "`LSLAPICFG` names a file that is not there.",
    says=r"LSLAPICFG file .* not found",
    then=LSL_DEFAULTS,
    vary=LIBLSL,
)
def _no_lsl_cfg(desk: Desk) -> Seen:
    return _with_lsl_cfg(desk, desk.directory / "lsl_api.cfg", "LSLAPICFG")


@case(
    SINKS,
    "The file of `LSLAPICFG` has a fault.",
    says=r"Error parsing config file .*rolling back to defaults",
    then=LSL_DEFAULTS,
    vary=LIBLSL,
)
def _bad_lsl_cfg(desk: Desk) -> Seen:
    path = desk.directory / "lsl_api.cfg"
    path.write_text("[multicast]\nResolveScope = the lab\n", encoding="ascii")
    return _with_lsl_cfg(desk, path, "Error parsing")
