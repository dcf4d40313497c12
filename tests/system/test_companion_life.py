"""What happens to phones and networks in a lab: they sleep, restart, get names and leave; Wi-Fi comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.clock.host import SuspendWatch
from tests import networks
from tests.networks import ip
from tests.sources import lab as clock_of_phones
from tests.sources.lab import TIME_ECHO, device_time, gaze_frames
from tests.sources.test_ndsi_source import Lab
from tests.sources.zre_peer import until
from tests.system.harness import Bridge, Process, bridge, free_port, simulator, truth, wait_until

NUMBER = random.randrange(10**9)  # see test_restart.py
NAME = f"phone_{NUMBER}"
LSL = '[[sink]]\ntype = "lsl"\n'
HERE, THERE, SECOND = "10.213.8.1", "10.213.8.2", "10.213.9.1"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


class Phones:
    """Simulated phones in one process, which take commands."""

    def __init__(self, process: Process, truth_path: Path) -> None:
        self._process = process
        self.truth = truth_path

    def do(self, command: str) -> list[dict[str, Any]]:
        stdin = self._process.popen.stdin
        assert stdin is not None
        stdin.write(command.encode() + b"\n")
        stdin.flush()
        answer = self._process.json_line()
        assert answer["ok"], answer
        found: list[dict[str, Any]] = answer["devices"]
        return found


@contextmanager
def phones(tmp_path: Path, port: int, *options: str, name: str = "phones") -> Iterator[Phones]:
    path = tmp_path / f"{name}.jsonl"
    given = ("--beacon-port", str(port), "--truth", str(path), "--control", "-", "--scene-rate", "0", *options)
    with simulator("companion", tmp_path, *given, name=name) as (process, _):
        yield Phones(process, path)


def config(port: int, *devices: tuple[str, str], interface: str = "127.0.0.1") -> str:
    text = f'[[source]]\ntype = "ndsi"\ninterface = "{interface}"\nbeacon_port = {port}\n'
    for name, match in devices:
        text += f'[[source.device]]\nname = "{name}"\nmatch = "{match}"\n'
    return text + LSL


def flows(daemon: Bridge, name: str, count: int = 200) -> None:
    """Waits until so many more samples of gaze have left, on a clock that is known."""
    wait_until(lambda: daemon.device(name).get("clock", {}).get("state") == "locked", f"{name} is locked", 45.0)
    before = out(daemon, name)
    wait_until(lambda: out(daemon, name) >= before + count, f"gaze of {name}; {daemon.device(name)}", 45.0)


def out(daemon: Bridge, name: str) -> int:
    return int(daemon.stream(name, "gaze").get("samples_out", {}).get("lsl", 0))


def names(daemon: Bridge) -> list[str]:
    return [device["name"] for device in daemon.status()["devices"]]


def no_bugs(daemon: Bridge) -> None:
    assert daemon.process.stop() == 0
    assert not re.search("Traceback|ERROR", daemon.process.errors())


# --- phones -----------------------------------------------------------------------------------------------------------


def test_three_phones_live_their_lives_and_keep_their_names(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    one, two, three = (f"{NAME}_{letter}" for letter in "abc")
    expected = config(port, (one, "Lab 1"), (two, "Lab 2"), (three, "Lab 3"))
    with phones(tmp_path, port, "--devices", "3", "--name", "Lab {n}") as lab, bridge(tmp_path, expected) as daemon:
        for name in (one, two, three):
            flows(daemon, name)
        offsets_s = [daemon.device(name)["clock"]["offset_s"] for name in (one, two, three)]
        assert offsets_s[0] - offsets_s[1] == pytest.approx(10, abs=0.1)

        before = out(daemon, two)
        lab.do("@1 sleep")
        wait_until(lambda: daemon.stream(one, "gaze")["age_s"] > 1.0, "it is silent")
        assert out(daemon, two) > before
        lab.do("@1 wake")
        flows(daemon, one)
        assert daemon.device(one)["clock"]["epoch"] == 0, "its clock has gone on"

        for how in ("same-uuid", "same-sensors", "goodbye", "same-uuid goodbye"):
            lab.do(f"@2 restart {how}")
            flows(daemon, two)

        lab.do("@3 leave")
        wait_until(lambda: not daemon.device(three)["connected"], "it has left")
        lab.do("@3 join")
        flows(daemon, three)
        lab.do("@3 leave")
        lab.do("@3 join new-uuid")
        flows(daemon, three)

        assert names(daemon) == [one, two, three]
        assert daemon.device(three)["clock"]["offset_s"] == pytest.approx(offsets_s[2], abs=0.1)
        no_bugs(daemon)


def test_a_phone_that_is_renamed_is_the_same_device_where_its_new_name_is_nobodys(tmp_path: Path) -> None:
    port, other = free_port(socket.SOCK_DGRAM), f"{NAME}_lab"
    with phones(tmp_path, port, "--name", "Anna") as lab, bridge(tmp_path, config(port, (other, "Lab *"))) as daemon:
        flows(daemon, "anna")
        lab.do("rename Berta")
        wait_until(lambda: daemon.status()["sources"][0]["peers"] == ["Berta"], "it is back under its new name")
        flows(daemon, "anna")
        lab.do("rename Lab 7")
        flows(daemon, other)
        wait_until(lambda: not daemon.device("anna")["connected"], "it is this one no more")
        assert set(names(daemon)) == {other, "anna"}
        no_bugs(daemon)


def test_a_phone_that_sleeps_for_longer_than_zre_waits_is_taken_up_again(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with phones(tmp_path, port, "--name", "Lab") as lab, bridge(tmp_path, config(port, (NAME, "Lab"))) as daemon:
        flows(daemon, NAME)
        lab.do("sleep")
        wait_until(lambda: not daemon.device(NAME)["connected"], "it is given up", 60.0)
        lab.do("wake")
        flows(daemon, NAME)
        no_bugs(daemon)


# --- several bridges on one phone -------------------------------------------------------------------------------------


def test_bridges_that_share_a_phone_see_its_events_and_never_each_others_pings(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)

    async def share(lab: Phones) -> list[list[str]]:
        device = {"name": "companion", "match": "Lab"}
        # Begun at one moment: in step, they would find each other's echoes among their own for ever.
        labs = [Lab(tmp_path / str(number), device, beacon_port=port, ping_s=1.0) for number in range(3)]
        try:
            for each in labs:
                await until(lambda each=each: each.device().clock.locked, "its clock is known", 30.0)
            outs = [each.out("event") for each in labs]
            for number in range(20):
                lab.do(f"event button {number}")
                await asyncio.sleep(0.05)
            await until(lambda: all("button 19" in each.payloads for each in outs), "the last one")
            accepted = [each.device().clock.pings_accepted for each in labs]
            assert min(accepted) > 0, accepted
            return [list(each.payloads) for each in outs]
        finally:
            for each in labs:
                await each.end()

    with phones(tmp_path, port, "--name", "Lab", "--event-rate", "0") as lab:
        came = asyncio.run(share(lab))
        told = {row["payload"] for row in truth(lab.truth, "event")}
    sessions = {text.split(".")[2] for text in told if text.startswith("lsl.time_sync.")}
    assert len(sessions) == 3, "each bridge has one"
    for payloads in came:
        assert TIME_ECHO not in payloads
        assert [text for text in payloads if text.startswith("button")] == [f"button {number}" for number in range(20)]
        assert set(payloads) <= told


# --- this computer ----------------------------------------------------------------------------------------------------


async def test_after_a_sleep_of_this_computer_stamps_are_right_at_once(tmp_path: Path) -> None:
    """The phone's clock goes on while CLOCK_MONOTONIC stands still: seen from here, it steps ahead."""
    slept_ns = 0
    watch = SuspendWatch(lambda: time.monotonic_ns() + slept_ns)
    lab = Lab(tmp_path)
    try:
        phone = lab.phone()
        await phone.attached()
        await lab.serves(phone)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clock_of_phones, "DEVICE_OFFSET_NS", clock_of_phones.DEVICE_OFFSET_NS + 30 * 10**9)
            slept_ns = 30 * 10**9
            lab.pipeline.host_suspended(watch.poll())
            assert lab.device().clock.epoch == 1
            gaze = lab.out("gaze")
            count, now_ns = len(gaze.samples), time.monotonic_ns()
            phone.gaze.send(gaze_frames(device_time(now_ns), 1.0, 2.0))
            await until(lambda: len(gaze.samples) > count, "the first sample after it")
            assert abs(gaze.host_ns[count] - now_ns) < 50_000_000
            await lab.serves(phone)
            assert lab.device().clock.epoch == 1
    finally:
        await lab.end()


MISSING = networks.why_not()
in_a_network = pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is there")


def nft(line: str) -> None:
    subprocess.run(["nft", line], check=True, timeout=20)


@contextmanager
def network() -> Iterator[Callable[[], Any]]:
    """This thread, and the processes that it starts, in a network of its own: lab0 is this computer's interface, and
    lab1, to which it leads, is in another namespace. Yields what starts a process over there: a ``with`` block."""
    with networks.fresh() as there, networks.fresh():
        ip(f"link add lab0 type veth peer name lab1 netns /proc/{os.getpid()}/fd/{there.fileno()}")
        ip(f"address add {HERE}/24 broadcast + dev lab0")
        ip("link set lab0 up")
        with networks.inside(there):
            ip(f"address add {THERE}/24 broadcast + dev lab1")
            ip("link set lab1 up")
        yield lambda: networks.inside(there)


@pytest.mark.root
@in_a_network
@pytest.mark.parametrize("how", ["link", "address"])
def test_an_interface_that_goes_down_and_comes_back_is_used_again(tmp_path: Path, how: str) -> None:
    port = free_port(socket.SOCK_DGRAM)
    down, up = {
        "link": (["link set lab0 down"], ["link set lab0 up"]),
        "address": ([f"address del {HERE}/24 dev lab0"], [f"address add {HERE}/24 broadcast + dev lab0"]),
    }[how]
    with ExitStack() as stack:
        over_there = stack.enter_context(network())
        with over_there():
            stack.enter_context(phones(tmp_path, port, "--name", "Lab", "--interface", THERE))
        daemon = stack.enter_context(bridge(tmp_path, config(port, (NAME, "Lab"), interface=HERE)))
        flows(daemon, NAME)
        for line in down:
            ip(line)
        wait_until(lambda: daemon.stream(NAME, "gaze")["age_s"] > 2.0, "nothing comes", 30.0)
        for line in up:
            ip(line)
        flows(daemon, NAME)
        assert names(daemon) == [NAME]
        no_bugs(daemon)


@pytest.mark.root
@in_a_network
def test_of_two_networks_only_the_chosen_one_is_used(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with ExitStack() as stack:
        over_there = stack.enter_context(network())
        ip("link add lab2 type veth peer name lab3")
        ip(f"address add {SECOND}/24 broadcast + dev lab2")
        for name in ("lab2", "lab3"):
            ip(f"link set {name} up")
        with over_there():
            stack.enter_context(phones(tmp_path, port, "--name", "Chosen", "--interface", THERE, name="chosen"))
        stack.enter_context(phones(tmp_path, port, "--name", "Other", "--interface", SECOND, name="other"))
        daemon = stack.enter_context(bridge(tmp_path, config(port, (NAME, "*"), interface=HERE)))
        flows(daemon, NAME)
        assert daemon.status()["sources"][0]["peers"] == ["Chosen"]
        found = discover(port, HERE)
        assert [device["name"] for device in found["companions"]] == ["Chosen"]
        assert {each["name"]: each["used"] for each in found["interfaces"]}["lab2"] is False
        assert [device["name"] for device in discover(port, SECOND)["companions"]] == ["Other"]
        no_bugs(daemon)


def discover(port: int, interface: str, seconds: float = 3.0) -> dict[str, Any]:
    options = ["--interface", interface, "--beacon-port", str(port), "--seconds", str(seconds), "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "bridge", "discover", *options, "--core", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.root
@in_a_network
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs `nft` (package nftables)")
@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["in tcp flags & (syn|ack) == syn drop"], "answers, but it does not speak to this computer: a firewall here"),
        ([f"in ip saddr {THERE} meta l4proto tcp drop"], "does not answer: a firewall there"),
        # One way would be enough: who hears our beacons greets us.
        (
            ["in meta l4proto udp drop", "out meta l4proto udp drop"],
            "not even this computer's own broadcasts are heard",
        ),
    ],
)
def test_discover_tells_what_a_firewall_is_in_the_way_of(tmp_path: Path, rules: list[str], says: str) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with ExitStack() as stack:
        over_there = stack.enter_context(network())
        nft("add table ip lab")
        nft("add chain ip lab in { type filter hook input priority 0 ; }")
        nft("add chain ip lab out { type filter hook output priority 0 ; }")
        with over_there():
            stack.enter_context(phones(tmp_path, port, "--name", "Lab", "--interface", THERE))
        assert [device["name"] for device in discover(port, HERE)["companions"]] == ["Lab"]
        for rule in rules:
            nft(f"add rule ip lab {rule}")
        found = discover(port, HERE)
    assert found["companions"] == []
    assert says in " ".join([*found["why"], *(one["why"] for one in found["unreachable"])])
