"""What `pupil-bridge discover` says of everybody on the network, against peers of raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import Config, parse
from bridge.names import DeviceNames
from bridge.sources import discovery, ndsi_beacons, ndsi_heard
from bridge.sources.ndsi_heard import Heard
from bridge.sources.zre import ZreEvent
from tests.sources.lab import RawPhone, RawSensor
from tests.sources.zre_peer import RawPeer, beacon, free_tcp_port, free_udp_port, hello, until

ATTACH = {
    "subject": "attach",
    "sensor_name": "Gaze",
    "sensor_uuid": "1",
    "sensor_type": "gaze",
    "notify_endpoint": "tcp://127.0.0.1:1",
    "command_endpoint": "tcp://127.0.0.1:2",
    "data_endpoint": "tcp://127.0.0.1:3",
}
MAILBOX = """
import socket
made = socket.create_server(("127.0.0.1", 0))
print(made.getsockname()[1], flush=True)
input()
"""
NO_CORE = f"127.0.0.1:{free_tcp_port()}"


class Net:
    """Peers at one port of beacons, and what is found there."""

    def __init__(self, tmp_path: Path) -> None:
        self.port = free_udp_port()
        self.state_dir = tmp_path
        self.peers: list[RawPeer] = []

    def peer(self, name: str = "Raw") -> RawPeer:
        self.peers.append(RawPeer(self.port, name))
        return self.peers[-1]

    def phone(self, name: str = "Raw") -> RawPhone:
        made = RawPhone(self.port, name)
        made.live()
        self.peers.append(made)
        return made

    def config(self, devices: str = "", more: str = "") -> Config:
        return parse(
            f'[[source]]\ntype = "ndsi"\ninterface = "127.0.0.1"\nbeacon_port = {self.port}\n{devices}\n{more}\n'
            f'[[sink]]\ntype = "lsl"\n[service]\nstate_dir = "{self.state_dir}"\n',
            "test",
        )

    async def found(self, *meetings: Any, config: Config | None = None, seconds: float = 1.0) -> dict[str, Any]:
        """What is found while the peers do this."""
        listening = discovery.discover("127.0.0.1", NO_CORE, seconds, config, self.port)
        found, *_ = await asyncio.gather(listening, *meetings)
        return found


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    made = Net(tmp_path)
    yield made
    for peer in made.peers:
        if isinstance(peer, RawPhone):
            await peer.end()
        else:
            peer.close()


async def announce(phone: RawPhone, *sensors: RawSensor) -> None:
    await phone.meet()
    for sensor in sensors or (phone.gaze, phone.event):
        phone.whisper(sensor.attach())


def why(found: dict[str, Any]) -> dict[str, str | None]:
    """Of the one device that is there: by the names of its sensors."""
    (device,) = found["companions"]
    assert all(sensor["used"] == (sensor["why"] is None) for sensor in device["sensors"])
    return {sensor["name"]: sensor["why"] for sensor in device["sensors"]}


# --- sensors ----------------------------------------------------------------------------------------------------------


async def test_each_sensor_is_used_or_the_reason_is_told(net: Net) -> None:
    phone = net.phone()
    sensors = [
        phone.gaze,
        phone.event,
        phone.hardware,
        phone.sensor("imu", "IMU"),
        phone.sensor("video", "PI world v1"),
        phone.sensor("video", "PI world v2"),
        phone.sensor("video", "PI left v1"),
        phone.sensor("video", "Webcam"),
        phone.sensor("annotate", "Notes"),
    ]
    config = net.config('[[source.device]]\nname = "lab"\nmatch = "Raw"\nsensors = ["event", "gaze", "scene"]')
    found = await net.found(announce(phone, *sensors), config=config)
    assert why(found) == {
        "Gaze": None,
        "Event": None,
        "Hardware": None,
        "IMU": '"imu" is not among `sensors` in the configuration',
        "PI world v1": None,
        "PI world v2": "a second camera for what 'PI world v1' shows already",
        "PI left v1": '"eyes" is not among `sensors` in the configuration',
        "Webcam": 'a camera whose name says neither "world" nor "left" nor "right"',
        "Notes": "the bridge does not know sensors of type 'annotate'",
    }
    (device,) = found["companions"]
    assert (device["name"], device["address"], device["in_group"]) == ("Raw", "127.0.0.1", True)
    assert (device["device"], device["why"]) == ("lab", None)
    assert found["why"] == []


async def test_without_a_configuration_everything_that_the_bridge_can_use_is_used(net: Net) -> None:
    phone = net.phone()
    sensors = [phone.gaze, phone.sensor("video", "PI world v1"), phone.sensor("video", "PI right v1")]
    found = await net.found(announce(phone, *sensors, phone.sensor("sound", "Microphone")))
    assert why(found) == {
        "Gaze": None,
        "PI world v1": None,
        "PI right v1": None,
        "Microphone": "the bridge does not know sensors of type 'sound'",
    }
    assert found["companions"][0]["device"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_endpoint": None}, "NDSI gaze sensor has no data_endpoint"),
        ({"notify_endpoint": "tcp://nas.local:80"}, "is not at an IPv4 address"),
        ({"command_endpoint": "ipc:///tmp/x"}, "is not tcp://host:port"),
        ({"sensor_uuid": 3}, "cannot be read"),
        ({"subject": "hello"}, "cannot be read"),
    ],
)
async def test_an_announcement_that_is_malformed_is_told_with_what_is_wrong(
    net: Net, change: dict[str, Any], says: str
) -> None:
    peer = net.peer()

    async def meet() -> None:
        await peer.meet()
        peer.whisper(json.dumps({**ATTACH, **change}).encode())

    found = await net.found(meet(), config=net.config())
    (device,) = found["companions"]
    assert says in device["malformed"]
    assert device["why"] == "nothing that it announces can be used"
    assert device["sensors"] == []
    assert f"    not used: {device['malformed']}" in discovery.as_text(found).splitlines()


async def test_a_sensor_that_is_detached_is_not_listed(net: Net) -> None:
    phone = net.phone()

    async def come() -> None:
        await announce(phone)
        phone.whisper(phone.event.detach())

    assert why(await net.found(come(), config=net.config())) == {"Gaze": None}


def test_a_device_that_leaves_meanwhile_is_not_used_and_one_that_comes_back_is() -> None:
    heard, peer = Heard("127.0.0.1"), uuid.uuid4()
    source = parse('[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n', "test").sources[0]
    names = DeviceNames(Path(tempfile.gettempdir()) / uuid.uuid4().hex)

    def comes() -> dict[str, Any]:
        heard.event(ZreEvent("ENTER", peer, "Phone", (b"tcp://127.0.0.1:1",)))
        heard.event(ZreEvent("SHOUT", peer, "Phone", (json.dumps(ATTACH).encode(),)))
        return heard.companions(source, names)[0]  # type: ignore[arg-type]

    assert comes()["device"] == "phone"
    heard.event(ZreEvent("EXIT", peer, "Phone"))
    (gone,) = heard.companions(source, names)  # type: ignore[arg-type]
    assert (gone["device"], gone["why"]) == (None, "it has left while it was listened to")
    assert [sensor["used"] for sensor in gone["sensors"]] == [False]
    assert comes()["sensors"][0]["used"]


# --- devices ----------------------------------------------------------------------------------------------------------


async def test_a_device_that_no_entry_matches_is_told_with_the_name_that_it_gets(net: Net) -> None:
    phone = net.phone("Visitor 1")
    config = net.config('[[source.device]]\nname = "lab"\nmatch = "Lab *"')
    found = await net.found(announce(phone), config=config)
    (device,) = found["companions"]
    assert device["device"] == "visitor_1"
    assert device["why"].startswith("no [[source.device]] matches its name; so it is 'visitor_1'")


async def test_of_two_of_one_name_each_is_told_which_device_it_is(net: Net) -> None:
    phones = [net.phone("Twin"), net.phone("Twin")]
    config = net.config('[[source.device]]\nname = "one"\nmatch = "Twin"')
    # The second one is known from before.
    DeviceNames(net.state_dir).remember("twin_left", "Twin", phones[0].gaze.uuid)
    DeviceNames(net.state_dir).remember("one", "Twin", phones[1].gaze.uuid)

    async def one_after_the_other() -> None:
        await announce(phones[1])
        await announce(phones[0])

    before = (net.state_dir / "names.json").read_text()
    found = await net.found(one_after_the_other(), config=config)
    devices = {device["sensors"][0]["uuid"]: device for device in found["companions"]}
    first, second = (devices[phone.gaze.uuid] for phone in phones)
    assert (first["device"], second["device"]) == ("twin_left", "one")
    assert second["why"] == "2 devices call themselves 'Twin': this one is 'one'"
    assert "this one is 'twin_left'" in first["why"]
    assert "every [[source.device]] that matches it is another one already ('one' is 'Twin')" in first["why"]
    assert (net.state_dir / "names.json").read_text() == before, "it only looks"


async def test_a_name_that_a_core_has_is_not_given_to_a_phone(net: Net) -> None:
    phone = net.phone("Core")
    config = net.config(more=f'[[source]]\ntype = "pupil_core"\nname = "core"\naddress = "{NO_CORE}"')
    found = await net.found(announce(phone), config=config)
    assert found["companions"][0]["device"] == "core_2"


async def test_a_configuration_that_listens_elsewhere_or_not_at_all_is_told(net: Net) -> None:
    core = parse('[[source]]\ntype = "pupil_core"\n[[sink]]\ntype = "lsl"\n', "test")
    elsewhere = parse('[[source]]\ntype = "ndsi"\ninterface = "127.0.0.2"\n[[sink]]\ntype = "lsl"\n', "test")
    found = await net.found(config=core, seconds=0.1)
    assert 'no [[source]] of type "ndsi"' in found["why"][0]
    found = await net.found(config=elsewhere, seconds=0.1)
    assert 'no [[source]] of type "ndsi" listens on 127.0.0.1' in found["why"][0]


# --- everybody else ---------------------------------------------------------------------------------------------------


async def test_peers_that_are_no_device_are_told_with_what_they_may_be(net: Net) -> None:
    capture, listener, bridge = net.peer("Capture"), net.peer("Listener"), net.peer("pupil-bridge@lab:1")

    async def meet() -> None:
        await listener.meet()
        await bridge.meet()
        capture.beacon()
        greeting = (await until(lambda: capture.got(1), "the node's HELLO"))[0]
        capture.connect(greeting.endpoint)
        capture.raw(hello(1, capture.endpoint, ("pupil-groups",), "Capture"))

    found = await net.found(meet())
    others = {peer["name"]: peer for peer in found["others"]}
    assert set(found["other_peers"]) == set(others) == {"Capture", "Listener", "pupil-bridge@lab:1"}
    assert others["Capture"]["in_group"] is False
    assert (others["Capture"]["groups"], others["Listener"]["groups"]) == (["pupil-groups"], ["pupil-mobile-v4"])
    assert "but in pupil-groups: Pupil Groups" in others["Capture"]["why"]
    assert others["Listener"]["in_group"] is True
    assert "announces no sensors" in others["Listener"]["why"]
    assert others["pupil-bridge@lab:1"]["why"].startswith("a pupil-bridge")
    assert all(peer["address"] == "127.0.0.1" for peer in others.values())


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (("pupil-mobile-v3",), "it speaks version 3 of NDSI, the bridge speaks version 4"),
        (("default-time_sync-v1",), "Pupil Time Sync"),
        (("pupil-groups",), "Pupil Groups"),
        (("x" * 9, "chat"), "but in xxxxxxxxx, chat"),
        ((), "it may be Pupil Capture's Time Sync or Groups"),
    ],
)
def test_a_peer_is_known_by_its_groups(groups: tuple[str, ...], says: str) -> None:
    heard = Heard("127.0.0.1")
    content = (b"tcp://192.0.2.7:4000", *(group.encode() for group in groups))
    heard.event(ZreEvent("ENTER", uuid.uuid4(), "Someone", content))
    (other,) = heard.others()
    assert (other["address"], other["groups"]) == ("192.0.2.7", list(groups))
    assert says in other["why"]


async def test_one_whose_beacons_come_and_who_does_not_speak_is_told_with_what_is_in_the_way(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndsi_beacons, "JUST_NOW_S", 0.5)
    silent, ended, late, newer = net.peer("Silent"), net.peer("Ended"), net.peer("Late"), net.peer("Newer")
    closed = free_tcp_port()

    async def call() -> None:
        silent.beacon(mailbox)
        ended.beacon(closed)
        newer.datagram(beacon(newer.identity, newer.port).replace(b"ZRE\x01", b"ZRE\x03"))
        await asyncio.sleep(0.9)
        late.beacon(closed)

    # Ports of this process are taken for the node's own.
    with subprocess.Popen([sys.executable, "-c", MAILBOX], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        mailbox = int(other.stdout.readline())
        found = await net.found(call())
        other.communicate()
    told = {one["zre_uuid"]: one for one in found["unreachable"]}
    assert len(told) == 4, "the node's own beacons are not among them"
    assert "127.0.0.1 answers, but it does not speak" in told[str(silent.identity)]["why"]
    assert f"TCP port {closed} of 127.0.0.1 refuses: Connection refused" in told[str(ended.identity)]["why"]
    assert "listen for longer" in told[str(late.identity)]["why"]
    assert told[None]["why"] == "its beacons are of version 3 of ZRE, NDSI's are of version 1"
    text = discovery.as_text(found)
    assert text.count("127.0.0.1: its ") == 4


async def test_when_nothing_is_heard_it_says_what_may_be_the_reason_and_what_helps(net: Net) -> None:
    found = await net.found()
    assert (found["companions"], found["others"], found["unreachable"]) == ([], [], [])
    (text,) = found["why"]
    for words in (f"broadcasts on port {net.port}", "no way around", "Real-Time API"):
        assert words in text
    assert [each["address"] for each in found["interfaces"] if each["used"]] == ["127.0.0.1"]
    shown = discovery.as_text(found)
    for each in found["interfaces"]:
        assert (f"Not listened on: {each['name']}" in shown) == (not each["address"].startswith("127."))


def test_that_not_even_its_own_beacons_are_heard_is_told() -> None:
    heard = Heard("192.0.2.1")
    here = discovery.Interface("192.0.2.1", "192.0.2.255")
    whys = list(discovery._why_nothing(heard, [], here, 5670))
    assert "a firewall on it may block UDP port 5670" in whys[-1]
    heard.beacon("192.0.2.1", beacon(uuid.uuid4(), 4000))
    assert len(list(discovery._why_nothing(heard, [], here, 5670))) == 1


# --- hostile ----------------------------------------------------------------------------------------------------------

EVENTS = st.builds(
    ZreEvent,
    st.sampled_from(["ENTER", "EXIT", "JOIN", "LEAVE", "WHISPER", "SHOUT"]),
    st.sampled_from([uuid.UUID(int=number) for number in range(3)]),
    st.text(max_size=20),
    st.lists(
        st.binary(max_size=40)
        | st.fixed_dictionaries(
            {"sensor_type": st.sampled_from(["gaze", "video", "x\x1b"]), "sensor_name": st.text(max_size=9)}
        ).map(lambda change: json.dumps({**ATTACH, **change, "sensor_uuid": change["sensor_name"] or "u"}).encode()),
        max_size=3,
    ).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.lists(st.binary(max_size=30), max_size=10), st.booleans())
def test_whatever_is_said_is_listed_or_left_out_and_never_steers_a_terminal(
    events: list[ZreEvent], datagrams: list[bytes], configured: bool
) -> None:
    heard = Heard("127.0.0.1")
    for event in events:
        heard.event(event)
    for datagram in datagrams:
        heard.beacon("127.0.0.1", datagram)
        heard.beacon("127.0.0.1", (b"ZRE" + datagram)[:22].ljust(22))
    source, names = None, None
    if configured:
        source = parse('[[source]]\ntype = "ndsi"\n[[sink]]\ntype = "lsl"\n', "test").sources[0]
        names = DeviceNames(Path(tempfile.gettempdir()) / uuid.uuid4().hex)
    companions, others = heard.companions(source, names), heard.others()  # type: ignore[arg-type]
    assert len(companions) + len(others) == len(heard.peers)
    found = {
        "interface": "127.0.0.1",
        "broadcast": "127.255.255.255",
        "port": 5670,
        "interfaces": [],
        "companions": companions,
        "others": others,
        "unreachable": [],
        "why": [],
        "cores": [{"address": "127.0.0.1:50020", "version": "3\x1b[31m"}],
    }
    assert all(line.isprintable() and len(line) < 700 for line in discovery.as_text(found).split("\n"))
    json.dumps(found)


def test_what_is_listed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard("127.0.0.1")
    for number in range(2 * ndsi_heard.MAX_PEERS):
        identity = uuid.UUID(int=number)
        heard.event(ZreEvent("ENTER", identity, "Many", (b"tcp://127.0.0.1:1",)))
        heard.beacon("127.0.0.1", beacon(identity, 1 + number))
        heard.beacon(f"10.0.0.{number}", beacon(identity, 1).replace(b"ZRE\x01", b"ZRE\x07"))
    for number in range(2 * ndsi_heard.MAX_SENSORS):
        attach = {**ATTACH, "sensor_uuid": str(number)}
        heard.event(ZreEvent("SHOUT", uuid.UUID(int=0), "Many", (json.dumps(attach).encode(),)))
        heard.event(ZreEvent("SHOUT", uuid.UUID(int=0), "Many", (b"%d" % number,)))
    assert len(heard.peers) == len(heard.beacons) == len(heard.versions) == ndsi_heard.MAX_PEERS
    first = heard.peers[uuid.UUID(int=0)]
    assert len(first.sensors) == ndsi_heard.MAX_SENSORS
    assert len(first.malformed) <= ndsi_heard.MAX_MALFORMED


def test_what_strangers_call_themselves_does_not_steer_a_terminal() -> None:
    heard, identity, evil = Heard("127.0.0.1"), uuid.uuid4(), "Phone\x07\x1b]0;title\x07\n" + "!" * 200
    heard.event(ZreEvent("ENTER", identity, evil, (b"tcp://127.0.0.1:1", b"\x1b[2J")))
    attach = {**ATTACH, "sensor_name": "Gaze\n\x1b[2J" + "!" * 200, "sensor_type": "ga\rze\x1b"}
    heard.event(ZreEvent("SHOUT", identity, evil, (json.dumps(attach).encode(),)))
    found = {
        "interface": "127.0.0.1",
        "broadcast": "127.255.255.255",
        "port": 5670,
        "interfaces": [],
        "companions": heard.companions(None, None),
        "others": [],
        "unreachable": [],
        "why": [],
        "cores": [{"address": "127.0.0.1:50020", "version": "3\x1b[31m"}],
    }
    lines = discovery.as_text(found).split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() and len(line) < 350 for line in lines)


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", "discover", "--interface", "127.0.0.1", "--seconds", "0.2"]
    return subprocess.run(
        [*command, "--core", NO_CORE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def test_the_command_judges_by_the_configuration_that_is_given_or_installed(tmp_path: Path) -> None:
    text = f'[[source]]\ntype = "ndsi"\nbeacon_port = {free_udp_port()}\ninterface = "127.0.0.1"\n'
    given, installed = tmp_path / "given.toml", tmp_path / "pupil-bridge" / "bridge.toml"
    given.write_text(text + '[[sink]]\ntype = "lsl"\n')
    installed.parent.mkdir()
    installed.write_text(text)  # without a sink
    ended = run("--config", given, "--json", XDG_CONFIG_HOME=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found["config"] == str(given)
    assert f"beacon_port = {found['port']}\n" in text
    if not Path("/etc/pupil-bridge/bridge.toml").exists():
        ended = run("--json", "--beacon-port", free_udp_port(), XDG_CONFIG_HOME=str(tmp_path))
        assert (ended.returncode, ended.stderr) == (0, "")
        found = json.loads(ended.stdout)
        assert found["config"] is None
        assert found["why"][-1].startswith("the installed configuration is not judged by:")
        installed.write_text(given.read_text())
        ended = run("--json", XDG_CONFIG_HOME=str(tmp_path))
        assert json.loads(ended.stdout)["config"] == str(installed)


def test_a_configuration_with_faults_that_is_given_is_status_78(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text('[[source]]\ntype = "ndsi"\n')
    ended = run("--config", path)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "sink" in ended.stderr
