"""A simulated Pupil Invisible Companion: a process that speaks NDSI v4 and knows the truth.

It shares no code with the bridge's reader. On loopback (the default) nothing leaves the machine. Once all devices can
be found it prints one JSON line on stdout (`Phone.ready` makes what it says of each); logs go to stderr.
The app's clock starts with the process, not with the first streaming sensor as on a phone, and restarts when its last
sensor stops only where that is asked for. `companion_control` has the commands that it takes while it runs.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import zmq

from bridge.simulators.companion_control import ControlChannel
from bridge.simulators.companion_loop import Loop
from bridge.simulators.companion_options import CompanionOptions
from bridge.simulators.companion_phone import Phone
from bridge.simulators.zre_beacon import Beacon
from bridge.simulators.zre_peer import zre_address

__all__ = ["CompanionOptions", "command", "run"]

_log = logging.getLogger(__name__)

_SOCKETS_OF_A_DEVICE, _DESCRIPTORS_OF_A_DEVICE = 50, 100


def run(options: CompanionOptions) -> int:
    """Simulate until SIGINT, SIGTERM or the end of the duration; the exit status is 0 unless a ZRE node died.

    Signals are heard only when this runs on the main thread. Raises `OSError` (addresses, ports, the truth file) or
    `ValueError` (options that cannot be) when it cannot start.
    """
    started_ns = time.monotonic_ns()
    end_ns = started_ns + round(options.duration_s * 1e9) if options.duration_s > 0 else None
    _make_room(options.devices)
    beacon = Beacon(zre_address(options.interface, options.beacon_port))
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _SOCKETS_OF_A_DEVICE * options.devices + 1000)
    phones: list[Phone] = []
    healthy = False
    try:
        with ExitStack() as stack:
            stack.callback(beacon.close)
            stack.callback(lambda: _close(phones, goodbye=healthy))
            wakeup, signalled = stack.enter_context(_stop_signals())
            for number in range(1, options.devices + 1):
                phone = Phone(number, options.of_device(number), context, beacon, started_ns)
                phones.append(phone)
            control = ControlChannel(options.control)
            stack.callback(control.close)
            print(json.dumps(_ready(phones)), flush=True)
            healthy = Loop(phones, control, wakeup).serve(lambda: signalled() or _passed(end_ns))
            malformed = sum(phone.app.malformed for phone in phones)
            _log.debug("ignored %d malformed messages and %d datagrams", malformed, beacon.malformed)
    finally:
        clean = all(phone.clean for phone in phones)
        if clean:  # an abandoned node still has sockets, and term() would wait for them
            context.term()
    if not healthy:
        _log.critical("a ZRE node died")
    return 0 if healthy and clean else 1


def _close(phones: list[Phone], *, goodbye: bool) -> None:
    for phone in phones:
        phone.close(goodbye=goodbye)


def _ready(phones: list[Phone]) -> dict[str, Any]:
    """What a single device is like is said at the top as well."""
    devices = [phone.ready() for phone in phones]
    return {"ready": True, "kind": "companion", **(devices[0] if len(devices) == 1 else {}), "devices": devices}


def _make_room(devices: int) -> None:
    """Have enough descriptors, as far as that is allowed: a device needs some forty."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS_OF_A_DEVICE * devices + 1000
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


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
@click.option(
    "--name", default="Simulated Companion", show_default=True, help="The device's name in ZRE; {n} is its number."
)
@click.option(
    "--devices",
    default=1,
    show_default=True,
    type=click.IntRange(1, 200),
    help="So many devices, from 1 on, each with its number after its name and in the truth's.",
)
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
    help="Pictures of the scene camera, Hz; 0: no such sensor.",
)
@click.option("--scene-format", default="jpeg", show_default=True, type=click.Choice(["jpeg", "h264"]))
@click.option(
    "--scene-bytes", type=click.IntRange(1, 4_000_000), help="Size of each JPEG of the scene.  [default: some 86000]"
)
@click.option(
    "--eyes-rate",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 240),
    help="Pictures of each eye's camera, Hz; 0: no such sensors.",
)
@click.option("--eyes-format", default="jpeg", show_default=True, type=click.Choice(["jpeg", "h264"]))
@click.option(
    "--key-interval",
    default=30,
    show_default=True,
    type=click.IntRange(1, 65536),
    help="Pictures from one key picture of H.264 to the next.",
)
@click.option(
    "--h264-start",
    default="key",
    show_default=True,
    type=click.Choice(["key", "middle"]),
    help="Begin with a key picture, or half an interval before one, with what nobody can decode.",
)
@click.option(
    "--other-sensor", multiple=True, metavar="TYPE", help="Attach one of this type, without data; may be repeated."
)
@click.option("--refuse-recording", metavar="TEXT", help="Say this to who starts a recording.  [default: record]")
@click.option(
    "--offset-s", default=0.0, show_default=True, help="The device clock's UTC minus the host's at its origin."
)
@click.option("--offset-step-s", default=10.0, show_default=True, help="More offset for each further device.")
@click.option("--drift-ppm", default=0.0, show_default=True, help="How much faster the device clock runs.")
@click.option("--drift-step-ppm", default=2.0, show_default=True, help="More drift for each further device.")
@click.option(
    "--clock-follows-streaming",
    is_flag=True,
    help="As the real app: take the clock from the phone's UTC when a first sensor begins to stream.",
)
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
@click.option(
    "--control",
    metavar="PATH",
    help="Take commands (state, sleep, restart ...) on this Unix socket; '-': on stdin, answers on stdout.",
)
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
