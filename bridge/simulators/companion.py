"""A simulated Pupil Invisible Companion: a process that speaks NDSI v4 and knows the truth.

It shares no code with the bridge's reader. On loopback (the default) nothing leaves the machine. Once it can be
found it prints one JSON line on stdout (`companion_setup.build` makes it); logs go to stderr.
The app's clock starts with the process, not with the first streaming sensor as on a phone, and restarts when its last
sensor stops only where that is asked for.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import zmq

from bridge.simulators import companion_wire as wire
from bridge.simulators.companion_setup import CompanionOptions, bind, build, make_clock
from bridge.simulators.truth import TruthWriter
from bridge.simulators.zre_peer import ZrePeer, zre_address

__all__ = ["CompanionOptions", "command", "run"]

_log = logging.getLogger(__name__)


def run(options: CompanionOptions) -> int:
    """Simulate until SIGINT, SIGTERM or the end of the duration; the exit status is 0 unless the ZRE node died.

    Signals are heard only when this runs on the main thread. Raises `OSError` (addresses, ports, the truth file) or
    `ValueError` (options that cannot be) when it cannot start.
    """
    started_ns = time.monotonic_ns()
    end_ns = started_ns + round(options.duration_s * 1e9) if options.duration_s > 0 else None
    clock = make_clock(options, started_ns)
    address = zre_address(options.interface, options.beacon_port)
    context: zmq.Context[Any] = zmq.Context()
    healthy, clean = False, True
    try:
        with (
            TruthWriter(options.truth) as truth,
            _stop_signals() as (wakeup, signalled),
            bind(context, options) as sockets,
        ):
            peer = ZrePeer(context, address, name=options.name, identity=options.zre_uuid or uuid.uuid4())
            try:
                app, ready = build(options, sockets, peer, clock, truth)
                peer.start(wire.GROUP)
                app.announce()
                print(json.dumps(ready), flush=True)
                healthy = app.serve(wakeup, lambda: signalled() or _passed(end_ns))
                if healthy:
                    app.retire()
                _log.debug("ignored %d malformed messages and %d datagrams", app.malformed, peer.malformed)
            finally:
                clean = peer.stop()
    finally:
        if clean:  # an abandoned node still has sockets, and term() would wait for them
            context.term()
    if not healthy:
        _log.critical("the ZRE node died")
    return 0 if healthy and clean else 1


def _passed(end_ns: int | None) -> bool:
    return end_ns is not None and time.monotonic_ns() >= end_ns


@contextmanager
def _stop_signals() -> Iterator[tuple[socket.socket, Callable[[], bool]]]:
    """A socket that wakes a `select` when SIGINT or SIGTERM comes, and whether one came. What was there is restored,
    unless one came: then the others are not to disturb the end."""
    arrived = threading.Event()
    receiver, sender = socket.socketpair()
    restore: list[Callable[[], object]] = []
    try:
        receiver.setblocking(False)
        sender.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            wakeup_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            restore.append(lambda: signal.set_wakeup_fd(wakeup_fd))
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.signal(number, lambda *_: arrived.set())

                def undo_signal(number: int = number, previous: Any = previous) -> None:
                    # What is asked for twice (by `ros2 launch` and the terminal) is not to disturb the end.
                    signal.signal(number, signal.SIG_IGN if arrived.is_set() else previous)

                restore.append(undo_signal)
        yield receiver, arrived.is_set
    finally:
        for undo in reversed(restore):
            undo()
        receiver.close()
        sender.close()


@click.command("companion")
@click.option("--name", default="Simulated Companion", show_default=True, help="The device's name in ZRE.")
@click.option(
    "--interface",
    default="127.0.0.1",
    show_default=True,
    help="An IPv4 address of this machine; on loopback nothing leaves it.",
)
@click.option("--beacon-port", default=5670, show_default=True, type=click.IntRange(1, 65535), help="UDP port of ZRE.")
@click.option(
    "--gaze-rate", default=120.0, show_default=True, type=click.FloatRange(0, 1000), help="Gaze, Hz; 0: none."
)
@click.option(
    "--event-rate", default=1.0, show_default=True, type=click.FloatRange(0, 1000), help="Events, Hz; 0: none."
)
@click.option(
    "--imu-rate", default=200.0, show_default=True, type=click.FloatRange(0, 2000), help="IMU, Hz; 0: no such sensor."
)
@click.option(
    "--imu-batch", default=10, show_default=True, type=click.IntRange(1, 80), help="Samples of the IMU in a message."
)
@click.option(
    "--scene-rate",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 240),
    help="JPEGs of the scene camera, Hz; 0: no such sensor.",
)
@click.option("--refuse-recording", metavar="TEXT", help="Say this to who starts a recording.  [default: record]")
@click.option(
    "--offset-s", default=0.0, show_default=True, help="The device clock's UTC minus the host's at its origin."
)
@click.option("--drift-ppm", default=0.0, show_default=True, help="How much faster the device clock runs.")
@click.option(
    "--restart-step-s", default=0.0, show_default=True, help="Added to the clock whenever the last sensor stops."
)
@click.option("--delay-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="One way, each direction.")
@click.option(
    "--jitter-ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Mean of an exponential, each message and direction, in order.",
)
@click.option(
    "--asymmetry-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="More delay from device to host."
)
@click.option(
    "--loss", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Fraction of data messages dropped."
)
@click.option("--truth", type=click.Path(dir_okay=False, path_type=Path), help="Append every sample's truth here.")
@click.option("--seed", default=0, show_default=True, help="Seed of the gaze path, the jitter and the loss.")
@click.option("--zre-uuid", type=click.UUID, help="The node's identity; random by default.")
@click.option("--sensor-uuid-seed", help="The sensors' UUIDs are made of this; the name by default.")
@click.option(
    "--clock-origin-ns", type=int, help="CLOCK_MONOTONIC instant at which the device clock started; now by default."
)
@click.option(
    "--utc-at-origin-ns", type=int, help="UTC at that instant, to continue a clock exactly; looked up by default."
)
@click.option(
    "--duration", "duration_s", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds; 0: no end."
)
def command(**options: Any) -> None:
    """Simulate a Pupil Invisible Companion phone (NDSI v4).

    Prints one JSON line when it can be found on the network. Data flows when a host sets "streaming".
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    # pyre warns of ordinary things, such as a group without members.
    logging.getLogger("pyre").setLevel(logging.ERROR)
    try:
        status = run(CompanionOptions(**options))
    except (OSError, ValueError, zmq.ZMQError) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(status)


if __name__ == "__main__":
    command()
