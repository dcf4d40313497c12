"""The host of the live benchmark: one loop that pings the device, takes its samples, and asks the estimator at once.

A message is stamped as soon as the wait for it ends, before it is read. The estimator's own computing is in the loop,
as it is in the bridge: what comes meanwhile is stamped late.
"""

from __future__ import annotations

import math
import select
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.clock.live.device import PING, REPLY, SAMPLE
from benchmarks.clock.score import Estimator
from bridge.clock.plan import PingPlan

BURST, BURST_INTERVAL_S = 10, 0.1
PING_HZ = 1.0
DITHER = 0.2  # of the interval, to either side
SECOND_REPLY_S = 0.05


@dataclass
class Log:
    """What happened, in order. Host times are CLOCK_MONOTONIC; truth_ns is the host time of the device's stamp.

    ``pings`` have (device_ns, truth_ns, received_ns, sent_ns); ``samples`` have (device_ns, truth_ns, received_ns), and
    ``answers`` what the estimator said of each: (t_local, bound) in s, NaN when it had no answer.
    """

    began_ns: int
    pings: list[tuple[int, int, int, int]] = field(default_factory=list)
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)
    pings_sent: int = 0

    def write(self, path: Path) -> None:
        """Pings and samples, as an .npz."""
        np.savez_compressed(path, pings=np.array(self.pings), samples=np.array(self.samples))

    @classmethod
    def replayed(cls, path: Path, estimator: Estimator) -> Log:
        """What ``write`` kept, answered anew."""
        with np.load(path) as kept:
            pings, samples = ([tuple(map(int, row)) for row in kept[name]] for name in ("pings", "samples"))
        log = cls(pings[0][3], pings, samples, pings_sent=len(pings))
        waiting = iter(pings)
        ping = next(waiting, None)
        for device_ns, _, received_ns in samples:
            while ping is not None and ping[2] <= received_ns:
                estimator.add_ping(ping[3] * 1e-9, ping[0] * 1e-9, ping[2] * 1e-9)
                ping = next(waiting, None)
            log.answers.append(_answer(estimator, device_ns, received_ns))
        return log


class Pinger:
    """One ping at a time; a reply to any but the last is of no use."""

    def __init__(self, udp: socket.socket, log: Log) -> None:
        self._udp = udp
        self._log = log
        self._sent_ns = 0

    def send(self) -> None:
        self._log.pings_sent += 1
        ping = PING.pack(self._log.pings_sent)
        self._sent_ns = time.monotonic_ns()
        self._udp.send(ping)

    def take(self, received_ns: int) -> None:
        """Reads a reply that is there since ``received_ns`` at the latest."""
        sequence, device_ns, truth_ns = REPLY.unpack(self._udp.recv(64))
        if sequence == self._log.pings_sent:
            self._log.pings.append((device_ns, truth_ns, received_ns, self._sent_ns))

    def again(self) -> None:
        """A second ping while the device is still awake from the first, and its reply if there is one."""
        self.send()
        ready, _, _ = select.select([self._udp], [], [], SECOND_REPLY_S)
        received_ns = time.monotonic_ns()
        if ready:
            self.take(received_ns)


def run(estimator: Estimator, ping_port: int, sample_port: int, seconds: float, pairs: bool = True) -> Log:
    """Talks to a device for so long; pinging by the bridge's plan, as a rule in pairs.

    Raises ConnectionError when the device ends before.
    """
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_connection(("127.0.0.1", sample_port)) as tcp,
        select.epoll() as poller,
    ):
        udp.connect(("127.0.0.1", ping_port))
        poller.register(udp, select.EPOLLIN)
        poller.register(tcp, select.EPOLLIN)
        log = Log(began_ns=time.monotonic_ns())
        pinger = Pinger(udp, log)
        end_ns = log.began_ns + round(seconds * 1e9)
        plan, next_ping_ns = PingPlan(round(1e9 / PING_HZ)), log.began_ns
        rest = b""
        while (now_ns := time.monotonic_ns()) < end_ns:
            if now_ns >= next_ping_ns:
                plan.sent(now_ns)
                next_ping_ns = plan.next_ns()
                pinger.send()
            ready = poller.poll(max(0.0, (min(next_ping_ns, end_ns) - time.monotonic_ns()) * 1e-9))
            received_ns = time.monotonic_ns()
            readable = {descriptor for descriptor, _ in ready}
            if udp.fileno() in readable:
                known = len(log.pings)
                pinger.take(received_ns)
                if pairs and len(log.pings) > known:
                    pinger.again()
                for device_ns, _, back_ns, sent_ns in log.pings[known:]:
                    estimator.add_ping(sent_ns * 1e-9, device_ns * 1e-9, back_ns * 1e-9)
            if tcp.fileno() in readable:
                chunk = tcp.recv(65536)
                if not chunk:
                    raise ConnectionError("the device has ended")
                rest += chunk
                whole = len(rest) // SAMPLE.size * SAMPLE.size
                for device_ns, truth_ns in SAMPLE.iter_unpack(rest[:whole]):
                    log.answers.append(_answer(estimator, device_ns, received_ns))
                    log.samples.append((device_ns, truth_ns, received_ns))
                rest = rest[whole:]
    return log


def _answer(estimator: Estimator, device_ns: int, received_ns: int) -> tuple[float, float]:
    """What it says of a sample that has just come."""
    estimator.add_arrival(device_ns * 1e-9, received_ns * 1e-9)
    return estimator.to_local(device_ns * 1e-9) or (math.nan, math.nan)
