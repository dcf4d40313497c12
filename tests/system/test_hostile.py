"""The whole daemon among hostile neighbours: nothing that they send ends it, blinds it, fills its memory or its log.

A good phone and a good Pupil Capture stream all the time, and every sample of theirs has to arrive.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from tests.sources.lab import RawPhone, RawSensor
from tests.sources.zre_peer import BROADCAST, HELLO, RawPeer, beacon, header, hello
from tests.system.harness import Bridge, bridge, free_port, simulator, truth, wait_until

MANY = 10_000
USUAL_FILES = 1024  # what a process may have open where nobody has raised it
MAX_GROWTH_BYTES = 30_000_000
DEVICE_BYTES = 1_500_000
CONFIGURED = 3
MAX_LINES = 200
GOOD_STREAMS = {  # of the bridge: where the simulator's truth is
    ("good", "gaze"): ("companion", "gaze"),
    ("core", "gaze"): ("core", "gaze"),
    ("core", "pupil_0_3d"): ("core", "pupil.0.3d"),
    ("core", "pupil_1_2d"): ("core", "pupil.1.2d"),
}
CONFIG = """
[[source]]
type = "ndsi"
interface = "127.0.0.1"
beacon_port = {beacon_port}
[[source.device]]
name = "good"
match = "Good Phone"

[[source]]
type = "pupil_core"
name = "core"
address = "{core}"

[[source]]
type = "pupil_core"
name = "liar"
address = "127.0.0.1:{liar_port}"

[[sink]]
type = "lsl"
"""


class LyingRemote:
    """A Pupil Remote that gives its ports and then hundreds of wrong answers to every request."""

    def __init__(self) -> None:
        self.lies = 0
        self._dice = random.Random(7)
        self._context: zmq.Context[Any] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self.port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self._backbone = self._context.socket(zmq.PUB)
        self._backbone_port = self._backbone.bind_to_random_port("tcp://127.0.0.1")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="lying remote")
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(0)

    def _serve(self) -> None:
        while not self._stop.is_set():
            if not self._router.poll(50):
                self._backbone.send_multipart([b"gaze.2d.0.", self._dice.randbytes(50)])
                continue
            identity, *frames = self._router.recv_multipart()
            split = frames.index(b"") + 1
            request = frames[split]
            assert request in (b"SUB_PORT", b"PUB_PORT", b"v", b"t"), request
            if request.endswith(b"PORT"):
                self._router.send_multipart([identity, *frames[:split], b"%d" % self._backbone_port])
                continue
            for _ in range(200):
                lie = self._dice.choice([b"", b"nan", b"1e999", b"-", b"\xff" * 30, self._dice.randbytes(60)])
                envelope = self._dice.choice([frames[:split], [b""], [b"0", b""], []])
                self._router.send_multipart([identity, *envelope, lie])
                self.lies += 1


@dataclass
class Lab:
    """Everything that runs."""

    daemon: Bridge
    beacon_port: int
    core: dict[str, Any]
    liar: LyingRemote
    truths: Path
    rss_bytes: int
    lost: dict[tuple[str, str], int]

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.daemon.process.popen.pid)

    def malformed(self, device: str) -> dict[str, int]:
        found: dict[str, int] = self.daemon.device(device).get("malformed", {})
        return found

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.daemon.status()["sources"][0]["counts"]
        return found

    def counted(self, count: Callable[[], int], atleast: int, what: str) -> None:
        try:
            wait_until(lambda: count() >= atleast, what)
        except AssertionError as error:
            raise AssertionError(f"{what}: {count()} of {atleast}; log: {self.daemon.process.errors()}") from error

    def healthy(self) -> None:
        """Fails unless the daemon is well and every good sample has arrived."""
        assert self.daemon.process.popen.poll() is None, self.daemon.process.errors()
        said = self.daemon.process.errors()
        assert "Traceback (most recent call last)" not in said, said
        assert len(said.splitlines()) < MAX_LINES, said[:10_000]
        lost = lost_samples(self.daemon, self.truths)
        # Two processes that are busy cannot be looked at in one instant.
        assert all(abs(lost[key] - self.lost[key]) <= 1 for key in GOOD_STREAMS), (lost, self.lost)
        for name in ("good", "core"):
            device = self.daemon.device(name)
            assert device["connected"]
            assert device["clock"]["state"] == "locked"
            assert device["clock"]["epoch"] == 0
            dropped = {stream["name"]: stream["dropped"] for stream in device["streams"]}
            assert not any(dropped.values()), dropped
        growth = self.process.memory_info().rss - self.rss_bytes
        # Phones that are made up are devices like others, with outlets; their number is what is bounded.
        made_up = len(self.daemon.status()["devices"]) - CONFIGURED
        assert made_up <= 12
        assert growth < MAX_GROWTH_BYTES + made_up * DEVICE_BYTES, f"{growth / 1e6:.1f} MB more than before"


def lost_samples(daemon: Bridge, truths: Path) -> dict[tuple[str, str], int]:
    """How many samples fewer the bridge has than were sent: those before it had subscribed, if no other was lost.

    What is on its way, or is sent between the two looks, only adds to the difference; a sample that the bridge has
    before its truth is written, which is rare, takes from it: one of the smallest of many is right.
    """
    seen: dict[tuple[str, str], list[int]] = {key: [] for key in GOOD_STREAMS}
    for number in range(30):
        time.sleep(number % 7 * 0.0013)  # looks in step with the samples would all find one on its way
        for (device, stream), (kind, name) in GOOD_STREAMS.items():
            samples_in = daemon.stream(device, stream)["samples_in"]
            written = (truths / f"{kind}.jsonl").read_text().count(f'"stream": "{name}"')  # of many thousands
            seen[device, stream].append(written - samples_in)
    return {key: sorted(found)[2] for key, found in seen.items()}


@contextlib.contextmanager
def files(count: int) -> Iterator[None]:
    """This process, and those that it starts, may have so many open; from there on it is as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        pytest.skip(f"may have only {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("hostile")
    beacon_port = free_port(socket.SOCK_DGRAM)
    with ExitStack() as stack:
        liar = LyingRemote()
        stack.callback(liar.end)
        companion = ["--name", "Good Phone", "--beacon-port", str(beacon_port), "--gaze-rate", "100"]
        stack.enter_context(
            simulator("companion", directory, *companion, "--truth", str(directory / "companion.jsonl"))
        )
        synthetic = ["--port", "0", "--synthesise", "--gaze-rate", "50", "--pupil-rate", "25"]
        _, core = stack.enter_context(
            simulator("core", directory, *synthetic, "--truth", str(directory / "core.jsonl"))
        )
        config = CONFIG.format(beacon_port=beacon_port, core=core["address"], liar_port=liar.port)
        with files(USUAL_FILES):
            daemon = stack.enter_context(bridge(directory, config))
        daemon.wait_locked("good", "core")
        for device, stream in GOOD_STREAMS:
            wait_until(lambda d=device, s=stream: daemon.stream(d, s)["samples_in"] > 100, f"{device} {stream} streams")
        made = Lab(daemon, beacon_port, core, liar, directory, 0, lost_samples(daemon, directory))
        made.rss_bytes = made.process.memory_info().rss
        yield made


@pytest.fixture
def peer(lab: Lab) -> Iterator[RawPhone]:
    made = RawPhone(lab.beacon_port, "Bad Phone")
    yield made
    made.close()


def meet(lab: Lab, peer: RawPeer) -> str:
    """Is found by the bridge, and finds it; the endpoint of its mailbox."""

    def of_the_bridge() -> str | None:
        peer.beacon()
        return next((m.endpoint for m in peer.got(HELLO) if b"pupil-bridge@" in m.body), None)

    endpoint = str(wait_until(of_the_bridge, "the bridge's greeting", interval_s=0.1))
    peer.connect(endpoint)
    return endpoint


def test_the_good_devices_stream(lab: Lab) -> None:
    lab.healthy()


def test_datagrams_at_the_beacon_port(lab: Lab, peer: RawPhone) -> None:
    dice = random.Random(1)
    before = lab.counts().get("beacons_malformed", 0)
    for number in range(MANY):
        data = dice.randbytes(dice.choice([0, 1, 4, 21, 22, 23, 300, 1400]))
        peer.datagram(data if number % 3 else b"ZRE\x01" + data, dice.choice([BROADCAST, BROADCAST, "127.0.0.1"]))
    for _ in range(2000):
        peer.datagram(beacon(uuid.UUID(bytes=dice.randbytes(16)), dice.randrange(1, 65536)))
    lab.counted(lambda: lab.counts().get("beacons_malformed", 0) - before, 500, "malformed datagrams")
    lab.healthy()


def test_malformed_messages_at_the_mailbox(lab: Lab, peer: RawPhone) -> None:
    endpoint = meet(lab, peer)
    dice = random.Random(2)
    before = lab.counts().get("messages_malformed", 0)
    greeting = hello(1, "tcp://127.0.0.1:9")
    for number in range(MANY):
        match number % 5:
            case 0:
                peer.raw(dice.randbytes(dice.randrange(60)))
            case 1:
                peer.raw(greeting[: dice.randrange(len(greeting))])
            case 2:
                peer.raw(header(dice.choice([0, 8, 200]), number), b"content", b"")
            case 3:
                peer.raw(hello(1, dice.choice(["", "ipc:///tmp/x", "inproc://x", "tcp://host.invalid:1"])))
            case _:
                peer.raw(hello(1, "tcp://127.0.0.1:9", ["x" * 20_000])[:-9], b"")
    lab.counted(lambda: lab.counts().get("messages_malformed", 0) - before, MANY, "malformed messages")
    assert lab.counts()["messages_malformed"] - before == MANY

    host, port = endpoint.removeprefix("tcp://").split(":")
    for _ in range(200):  # bytes that are no ZeroMQ
        with socket.create_connection((host, int(port)), 5) as raw:
            raw.sendall(dice.randbytes(500))
    lab.healthy()


def bad_data(dice: random.Random) -> list[bytes]:
    good, body = struct.pack("<Q", 1), struct.pack("<ff", 1.0, 2.0)
    return dice.choice(
        [
            [],
            [good],
            [good[1:], body],
            [good, body[1:]],
            [good, struct.pack("<ff", float("nan"), 1.0)],
            [b"\xff" * 8, body],
            [dice.randbytes(3), dice.randbytes(9)],
            [b"", b"", b""],
            [dice.randbytes(500), dice.randbytes(500)],
        ]
    )


def bad_notification(dice: random.Random) -> list[bytes]:
    return dice.choice(
        [
            [],
            [b""],
            [b"{"],
            [b"[" * 3000],
            [b"\xff\xfe"],
            [b'{"subject":"update","control_id":"streaming","seq":-1,"changes":{}}'],
            [b'{"subject":"unheard of"}'],
            [dice.randbytes(200)],
            [b"x" * 500],
        ]
    )


def test_a_phone_that_sends_malformed_data_notifications_and_announcements(lab: Lab, peer: RawPhone) -> None:
    meet(lab, peer)
    peer.greet()
    for sensor in peer.sensors:
        peer.whisper(sensor.attach())

    def subscribed() -> bool:
        peer.serve()
        return all(s.subscribed["data"] == s.subscribed["notify"] == 1 for s in (peer.gaze, peer.event))

    wait_until(subscribed, "the bridge listens to the bad phone")
    dice = random.Random(3)
    sensors: list[RawSensor] = [peer.gaze, peer.event]
    for number in range(MANY):
        peer.gaze.send(bad_data(dice))
        peer.event.send(bad_data(dice)[:1])
        sensors[number % 2].say(*bad_notification(dice))
        peer.whisper(dice.choice([b"", b"{", b"null", b'{"subject":"attach"}', dice.randbytes(100), b"x" * 500]))
        if number % 100 == 0:
            peer.serve()
    announcements = lab.counts().get("announcements_malformed", 0)
    for kind in ("gaze", "event", "notification"):
        lab.counted(lambda k=kind: lab.malformed("bad_phone").get(k, 0), MANY, f"malformed {kind}")
        assert lab.malformed("bad_phone")[kind] == MANY
    lab.counted(lambda: lab.counts().get("announcements_malformed", 0), MANY, "malformed announcements")
    assert announcements <= MANY == lab.counts()["announcements_malformed"]
    lab.healthy()


def test_sensors_that_come_and_go_without_end(lab: Lab, peer: RawPhone) -> None:
    meet(lab, peer)
    peer.greet()
    for number in range(2000):
        name = f"Gaze {number}\nTraceback (forged)"
        peer.whisper(peer.gaze.attach(sensor_name=name, sensor_uuid=str(number % 50)))
        peer.whisper(peer.gaze.attach(sensor_type="video", sensor_uuid=f"video {number}"))
        if number % 2:
            peer.whisper(json.dumps({"subject": "detach", "sensor_uuid": str(number % 50)}).encode())
    malformed = lab.counts().get("announcements_malformed", 0)
    peer.whisper(b"that was all")
    lab.counted(lambda: lab.counts().get("announcements_malformed", 0), malformed + 1, "the end")
    assert not any(line.startswith("Traceback") for line in lab.daemon.process.errors().splitlines())
    lab.healthy()


def test_many_peers_that_pretend_to_be_devices(lab: Lab, peer: RawPhone) -> None:
    endpoint = meet(lab, peer)
    context: zmq.Context[Any] = zmq.Context()
    dealers = []
    try:
        turned_away = lab.counts().get("devices_turned_away", 0)
        for number in range(100):
            dealer = context.socket(zmq.DEALER)
            dealers.append(dealer)
            dealer.setsockopt(zmq.IDENTITY, b"\x01" + uuid.UUID(int=number + 1).bytes)
            dealer.connect(endpoint)
            dealer.send(hello(1, f"tcp://127.0.0.1:{number + 1}", name=f"Liar {number}"))
            dealer.send_multipart([header(2, 2), peer.gaze.attach(sensor_uuid=f"liar {number}")])
        lab.counted(
            lambda: lab.counts().get("devices_turned_away", 0), turned_away + 30, "devices that were turned away"
        )
    finally:
        context.destroy(0)
    lab.healthy()


def test_more_connections_than_the_daemon_may_have_files(lab: Lab, peer: RawPhone) -> None:
    host, port = meet(lab, peer).removeprefix("tcp://").split(":")
    allowed = lab.process.rlimit(psutil.RLIMIT_NOFILE)
    before = lab.process.num_fds()  # by now it has outlets for many made-up phones
    limit = min(max(USUAL_FILES, before + 200), allowed[0])  # more would need too many connections
    with ExitStack() as stack:
        lab.process.rlimit(psutil.RLIMIT_NOFILE, (limit, allowed[1]))
        stack.callback(lab.process.rlimit, psutil.RLIMIT_NOFILE, allowed)
        stack.enter_context(files(2 * limit))
        for _ in range(limit + 50):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect((host, int(port)))
        wait_until(lambda: lab.process.num_fds() >= limit - 5, "the daemon has no files left")
        samples = len(truth(lab.truths / "companion.jsonl", "gaze"))
        peer.beacon(port=1)  # something to connect to
        wait_until(lambda: len(truth(lab.truths / "companion.jsonl", "gaze")) > samples + 300, "three seconds more")
        assert lab.daemon.process.popen.poll() is None, lab.daemon.process.errors()
    wait_until(lambda: lab.process.num_fds() < before + 100, "the daemon has files again")
    lab.healthy()


def test_garbage_on_pupil_cores_backbone(lab: Lab) -> None:
    context: zmq.Context[Any] = zmq.Context()
    try:
        publisher = context.socket(zmq.XPUB)
        publisher.set_hwm(100_000)
        publisher.connect(f"tcp://127.0.0.1:{lab.core['pub_port']}")
        wanted: set[bytes] = set()
        while not wanted >= {b"\x01gaze.", b"\x01pupil."}:
            assert publisher.poll(5000), f"only {wanted} is subscribed to"
            wanted.add(publisher.recv())
        dice = random.Random(4)
        encode = msgspec.msgpack.encode
        good = encode({"timestamp": 1.0, "confidence": 1.0, "norm_pos": [0.5, 0.5]})
        topics = [b"gaze.2d.0.", b"gaze.3d.01.", b"pupil.0.2d", b"pupil.1.3d"]
        for number in range(MANY):
            payload = dice.choice(
                [
                    b"",
                    good[: dice.randrange(len(good))],
                    encode(None),
                    encode([1, 2, 3]),
                    encode({"timestamp": float("nan"), "confidence": 1.0, "norm_pos": [0.5, 0.5], "diameter": 1.0}),
                    b"\x91" * 2000,
                    b"\xdf\xff\xff\xff\xff",
                    dice.randbytes(300),
                ]
            )
            publisher.send_multipart([dice.choice(topics), payload])
            if number % 2000 == 0:
                publisher.send_multipart([dice.choice(topics), b"\0" * 3_000_000])
            if number % 10 == 0:
                publisher.send_multipart([b"gaze." + dice.randbytes(5), good])
        lab.counted(lambda: lab.malformed("core").get("datums_malformed", 0), MANY + 5, "malformed datums")
        assert lab.malformed("core") == {"datums_malformed": MANY + 5, "topics_unknown": MANY // 10}
    finally:
        context.destroy(0)
    lab.healthy()


def test_a_lying_pupil_remote(lab: Lab) -> None:
    lab.counted(lambda: lab.liar.lies, MANY, "lies of Pupil Remote")
    source = next(s for s in lab.daemon.status()["sources"] if s["name"].endswith(str(lab.liar.port)))
    assert source["counts"]["replies_malformed"] > 0
    assert lab.malformed("liar")["datums_malformed"] > 0
    lab.healthy()


def test_garbage_at_the_control_socket(lab: Lab) -> None:
    path = str(lab.daemon.control)
    dice = random.Random(5)

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(10)
        made.connect(path)
        return made

    idle = [connect() for _ in range(50)]
    started = time.monotonic()
    requests = [
        b"\n",
        b"{}\n",
        b"null\n",
        b"\xff\xfe\n",
        b'{"command": 1}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "\\ud800"}\n',
        b"[" * 4000 + b"\n",
        b'{"command": ' + b"9" * 4000 + b"}\n",
    ]
    for number in range(MANY // 4):
        request = dice.choice([*requests, dice.randbytes(50) + b"\n"])
        with connect() as client:
            if number % 50 == 0:
                client.sendall(b"x" * 100_000)  # a line without end
                continue
            client.sendall(request)
            if number % 3:
                assert json.loads(client.makefile("rb").readline())["error"]
    assert time.monotonic() - started < 30
    lab.healthy()
    for each in idle:
        each.close()


def test_after_all_that_the_daemon_ends_politely_and_at_once(lab: Lab) -> None:
    lab.healthy()
    started = time.monotonic()
    assert lab.daemon.process.stop() == 0
    assert time.monotonic() - started < 5
    assert "Traceback (most recent call last)" not in lab.daemon.process.errors()
