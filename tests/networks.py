"""Network namespaces: for a test, or for a process that runs tests beside others. On Linux, as root."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why network namespaces cannot be made here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, to make a network namespace"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"needs `{tool}` (packages util-linux and iproute2)"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0:
        return "network namespaces are not allowed here"
    return ""


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True, timeout=20)


_left: list[BinaryIO] = []


def leave() -> None:
    """This thread, and the threads and processes that it starts, in a network of their own from now on: loopback."""
    _left.append(_current())
    _call("unshare", CLONE_NEWNET)
    ip("link set lo up")
    ip("route add 224.0.0.0/4 dev lo")


def outside() -> list[str]:
    """What to put before a command that needs the network that was left, if one was."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_left[0].fileno()}"] if _left else []


@contextmanager
def fresh() -> Iterator[BinaryIO]:
    """This thread, and the processes that it starts, in a new network, of loopback alone. Yields the network."""
    with _current() as before:
        _call("unshare", CLONE_NEWNET)
        try:
            ip("link set lo up")
            with _current() as made:
                yield made
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


@contextmanager
def addressed(address: str) -> Iterator[None]:
    """The same with one interface besides, probe0, which has this address and broadcasts."""
    with fresh():
        for line in (
            "link add probe0 type veth peer name probe1",
            f"address add {address}/24 broadcast + dev probe0",
            "link set probe0 up",
            "link set probe1 up",
        ):
            ip(line)
        yield


@contextmanager
def inside(network: BinaryIO) -> Iterator[None]:
    """This thread in another network."""
    with _current() as before:
        _call("setns", network.fileno(), CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


def _current() -> BinaryIO:
    return open("/proc/thread-self/ns/net", "rb")


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)
