"""What a running daemon listens on, in a network namespace of its own, beside what docs/security.md says it does.

LSL and ROS 2 run as they do by default, not confined to loopback: nothing leaves the namespace.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import networks
from tests.system.harness import Bridge, bridge, free_port, simulator, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ADDRESS = "10.213.8.1"
BROADCAST = "10.213.8.255"
DOMAIN_ID = 3
TCP_LISTEN = "0A"
LSL_PORTS = range(16571, 16604)
ROW = re.compile(r"\| (TCP|UDP) \| ([^|]+) \| (all|loopback|interface|broadcast) \| ([^|]+) \| ([^|]+) \| [^|]+ \|")
PORTS = re.compile(r"(\d+)(?:-(\d+))?( \+ 250 d)?")
CONFIG = """
[[source]]
type = "ndsi"
interface = "{address}"
[[source.device]]
name = "companion"
[[source]]
type = "pupil_core"
name = "core"
address = "{core}"
[[sink]]
type = "lsl"
{more}
"""
ROS = '[[sink]]\ntype = "ros2"'


MISSING = networks.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is there")]


class Row(NamedTuple):
    """One line of the page's table. ``ports`` None is any port that the kernel gives away."""

    protocol: str
    ports: range | None
    bound_to: str
    opener: str
    who: str

    def allows(self, listener: Listener, free: range) -> bool:
        ports = free if self.ports is None else self.ports
        place = (self.protocol, self.bound_to) == (listener.protocol, listener.bound_to)
        return place and listener.port in ports


class Listener(NamedTuple):
    """A socket that takes what nobody here asked for: TCP that listens, UDP without a peer."""

    protocol: str
    address: str
    port: int

    @property
    def bound_to(self) -> str:
        """In the words of the page; the address itself where it has no word for it."""
        address = ipaddress.ip_address(self.address)
        if address.is_unspecified:
            return "all"
        if address.is_loopback:
            return "loopback"
        return {ADDRESS: "interface", BROADCAST: "broadcast"}.get(self.address, self.address)


def table(text: str, domain_id: int) -> list[Row]:
    """The page's table of what listens."""
    rows = []
    for protocol, ports, bound_to, opener, who in ROW.findall(text):
        if ports == "free":
            rows.append(Row(protocol, None, bound_to, opener, who))
            continue
        found = PORTS.fullmatch(ports)
        assert found is not None, f"{ports!r} is no port of the table"
        shift = 250 * domain_id if found[3] else 0
        numbers = range(int(found[1]) + shift, int(found[2] or found[1]) + shift + 1)
        rows.append(Row(protocol, numbers, bound_to, opener, who))
    return rows


def listeners(pid: int) -> set[Listener]:
    """The IP sockets of a process, as the kernel lists them in the namespace that the process is in."""
    own = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except FileNotFoundError:  # closed since it was listed
            continue
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            if f"socket:[{inode}]" not in own:
                continue
            if (state != TCP_LISTEN) if kind.startswith("tcp") else not remote.endswith(":0000"):
                continue
            address, port = local.split(":")
            found.add(Listener(kind[:3].upper(), _address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """From the kernel's form: words of 32 bits in the order of this machine's bytes."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


@contextmanager
def network() -> Iterator[None]:
    with networks.addressed(ADDRESS):
        networks.ip("route add 224.0.0.0/4 dev probe0")
        yield


@contextmanager
def daemon(tmp_path: Path, more: str = "") -> Iterator[Bridge]:
    """A daemon with NDSI, Core and LSL as a lab runs it; yields when both devices stream."""
    open_lsl = tmp_path / "lsl_api.cfg"
    open_lsl.write_text("[log]\nlevel = -2\n", encoding="ascii")
    env = {"LSLAPICFG": str(open_lsl), "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET", "ROS_DOMAIN_ID": str(DOMAIN_ID)}
    with ExitStack() as stack:
        stack.enter_context(network())
        stack.enter_context(simulator("companion", tmp_path, "--interface", ADDRESS))
        _, core = stack.enter_context(simulator("core", tmp_path, "--port", "0"))
        config = CONFIG.format(address=ADDRESS, core=core["address"], more=more)
        running = stack.enter_context(bridge(tmp_path, config, env))
        running.wait_locked("companion", "core")
        wait_until(
            lambda: all(running.stream(name, "gaze").get("samples_in") for name in ("companion", "core")), "gaze"
        )
        yield running


def free_ports() -> range:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    return range(int(first), int(last) + 1)


def page_rows() -> list[Row]:
    rows = table(PAGE.read_text(encoding="utf-8"), DOMAIN_ID)
    assert len(rows) >= 10, "the table of docs/security.md cannot be read"
    return rows


def test_every_listening_socket_is_in_the_table_and_every_line_of_the_table_is_true(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'pupil-bridge[ros]', or source a ROS")
    with daemon(tmp_path, ROS) as running:
        found, free = listeners(running.process.popen.pid), free_ports()
    rows = [row for row in page_rows() if "[http]" not in row.opener]
    unnamed = sorted(one for one in found if not any(row.allows(one, free) for row in rows))
    assert not unnamed, f"docs/security.md does not name {unnamed}"
    stale = [row for row in rows if not any(row.allows(one, free) for one in found)]
    assert not stale, f"docs/security.md names what nobody opened: {stale}"


def test_without_ros_2_all_that_listens_beyond_this_computer_is_lsl_and_discovery(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        found, free = listeners(running.process.popen.pid), free_ports()
    others = {one for one in found if not (one.bound_to == "all" and one.port in LSL_PORTS)}
    assert {(one.protocol, one.bound_to) for one in others} == {("UDP", "broadcast"), ("TCP", "interface")}
    assert len(others) == 2, others
    rows = [row for row in page_rows() if row.opener in ("LSL", "NDSI (ZRE)")]
    assert all(any(row.allows(one, free) for row in rows) for one in found), found


def test_our_own_sockets_are_loopback_or_unix_and_the_control_socket_is_its_users_alone(tmp_path: Path) -> None:
    with network():
        port = free_port(socket.SOCK_STREAM)
    with daemon(tmp_path, f'[http]\nlisten = "127.0.0.1:{port}"') as running:
        found = listeners(running.process.popen.pid)
        control = (tmp_path / "control.sock").lstat()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # it is there, in this namespace
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ADDRESS, port), timeout=5)
    assert stat.S_ISSOCK(control.st_mode)
    assert stat.S_IMODE(control.st_mode) == 0o600
    assert control.st_uid == os.geteuid()
    ours = {one for one in found if not (one.bound_to == "all" and one.port in LSL_PORTS)}
    ours = {one for one in ours if one.bound_to not in ("broadcast", "interface")}  # of NDSI, see above
    assert ours == {Listener("TCP", "127.0.0.1", port)}


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs `nft` (package nftables)")
def test_the_firewall_of_the_page_can_be_loaded_and_lets_in_what_the_table_says(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^    table inet pupil_bridge \{\n(?:    .*\n)*?    \}\n", text, re.MULTILINE)
    assert found is not None, "docs/security.md has no nftables rules"
    rules = tmp_path / "fence.nft"
    rules.write_text("\n".join(line.removeprefix("    ") for line in found[0].splitlines()), encoding="utf-8")
    with network():
        subprocess.run(["nft", "-f", str(rules)], check=True, timeout=20)
        loaded = subprocess.run(["nft", "list", "ruleset"], check=True, timeout=20, capture_output=True, text=True)
    assert "policy drop" in loaded.stdout
    opened = {
        (protocol.upper(), range(int(first), int(last or first) + 1))
        for protocol, first, last in re.findall(r"(tcp|udp) dport (\d+)(?:-(\d+))? accept", found[0])
    }
    for row in table(text, 0):
        if row.bound_to == "loopback" or row.ports is None or row.who == "nobody":
            continue
        assert any(protocol == row.protocol and set(row.ports) <= set(ports) for protocol, ports in opened), row
