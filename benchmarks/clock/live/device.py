"""The device of the live benchmark: a process with a clock of its own, which is an exact function of CLOCK_MONOTONIC.

It answers pings on UDP and sends samples on TCP, both on 127.0.0.1, and ends when its host hangs up. Every message
carries the true host time of its stamp after it, for judging alone.

    ping        <I    sequence
    reply       <Iqq  sequence, device_ns, true host_ns
    sample      <qq   device_ns, true host_ns
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass

PING, REPLY, SAMPLE = struct.Struct("<I"), struct.Struct("<Iqq"), struct.Struct("<qq")
OFFSET_NS = 40_000 * 10**9  # a device that was started half a day ago
HOST_PATIENCE_S = 30.0


@dataclass(frozen=True)
class DeviceClock:
    """``device = offset + (1 + drift) * (host - origin)``, exact and rounded down. A drift of 1 ppb is 1e-9."""

    origin_ns: int
    drift_ppb: int
    offset_ns: int = OFFSET_NS

    def device_ns(self, host_ns: int) -> int:
        elapsed_ns = host_ns - self.origin_ns
        return self.offset_ns + elapsed_ns + elapsed_ns * self.drift_ppb // 10**9


def answer_pings(udp: socket.socket, clock: DeviceClock) -> None:
    """For ever. A thread that does nothing else, so that the stamp is as near to the reception as it can be."""
    while True:
        message, host = udp.recvfrom(64)
        now_ns = time.monotonic_ns()
        (sequence,) = PING.unpack(message)
        udp.sendto(REPLY.pack(sequence, clock.device_ns(now_ns), now_ns), host)


def send_samples(tcp: socket.socket, clock: DeviceClock, rate_hz: float) -> None:
    """Until the host hangs up. A stamp is the clock's reading just before its sample is sent."""
    origin_ns, sent = time.monotonic_ns(), 0
    while True:
        sent += 1
        time.sleep(max(0.0, (origin_ns + sent * 1e9 / rate_hz - time.monotonic_ns()) * 1e-9))
        now_ns = time.monotonic_ns()
        try:
            tcp.sendall(SAMPLE.pack(clock.device_ns(now_ns), now_ns))
        except ConnectionError:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drift-ppm", type=float, required=True)
    parser.add_argument("--sample-hz", type=float, required=True)
    options = parser.parse_args()
    clock = DeviceClock(time.monotonic_ns(), round(options.drift_ppm * 1000))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        udp.bind(("127.0.0.1", 0))
        threading.Thread(target=answer_pings, args=(udp, clock), name="pings", daemon=True).start()
        print(json.dumps({"pings": udp.getsockname()[1], "samples": server.getsockname()[1]}), flush=True)
        server.settimeout(HOST_PATIENCE_S)
        tcp, _ = server.accept()
        with tcp:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send_samples(tcp, clock, options.sample_hz)


if __name__ == "__main__":
    main()
