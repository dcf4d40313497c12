"""`pupil-bridge simulate core`: a simulated Pupil Capture in its own process.

Pupil Remote, the IPC backbone and Pupil Time Sync as Pupil Capture 3.6.14 speaks them, with a clock of its own,
replaying a tape of the real one in a loop or synthesising. The truth about every datum can be written to a file.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import click
import zmq

from bridge.errors import ConfigError
from bridge.simulators.core_capture import Capture, CaptureCrashed
from bridge.simulators.core_datums import GAZE_MAPPINGS
from bridge.simulators.core_options import CoreOptions
from bridge.simulators.core_synthetic import Synthesis, synthesise
from bridge.simulators.tape import SHORT_TAPE, load
from bridge.simulators.truth import TruthWriter

__all__ = ["CoreOptions", "command", "run"]

EXIT_CONFIG = 78
EXIT_CRASHED = 1

log = logging.getLogger(__name__)


def run(options: CoreOptions) -> int:
    """Be a Pupil Capture until SIGINT, SIGTERM or the duration's end; the exit status. For a main thread only.

    Prints one JSON line on stdout when everything is bound, before the first message. 78: a tape, an address or a
    truth file cannot be used. 1: Capture has crashed, as the real one does.
    """
    try:
        tape = synthesise(_synthesis(options)) if options.synthesise else load(options.tape)
        with _Stop() as stop, TruthWriter(options.truth) as truth, Capture(options, tape, truth) as capture:
            print(json.dumps(capture.description()), flush=True)
            capture.serve(stop.wakeup_fd, lambda: stop.requested)
    except (ConfigError, ValueError, OSError, zmq.ZMQError) as error:
        log.error("%s", error)
        return EXIT_CONFIG
    except CaptureCrashed as error:
        log.error("Process Capture crashed with trace: %s", error)
        return EXIT_CRASHED
    return 0


def _synthesis(options: CoreOptions) -> Synthesis:
    return Synthesis(
        options.gaze_rate,
        options.pupil_rate,
        options.gaze_mapping,
        options.integer_keys,
        options.gaze_age_ms / 1000,
        options.frame_rate,
    )


class _Stop:
    """SIGINT and SIGTERM as a flag and as a readable socket, which ends a wait at once."""

    def __init__(self) -> None:
        self.requested = False
        self._reader, self._writer = socket.socketpair()

    @property
    def wakeup_fd(self) -> int:
        return self._reader.fileno()

    def __enter__(self) -> Self:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            # What is asked for twice (by `ros2 launch` and the terminal) is not to disturb the end.
            signal.signal(number, signal.SIG_IGN if self.requested else handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@click.command("core")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to; * for all.")
@click.option("--port", default=50020, show_default=True, type=click.IntRange(0, 65535), help="Pupil Remote; 0: any.")
@click.option("--tape", default=None, type=click.Path(path_type=Path), help="Tape to loop.  [default: the shipped one]")
@click.option("--synthesise", is_flag=True, help="Make everything up instead of replaying a tape.")
@click.option("--gaze-rate", default=120.0, show_default=True, type=click.FloatRange(0), help="Hz, synthesised.")
@click.option(
    "--pupil-rate", default=120.0, show_default=True, type=click.FloatRange(0), help="Hz an eye, synthesised."
)
@click.option("--offset-s", default=1000.0, show_default=True, help="Pupil time minus CLOCK_MONOTONIC at the start.")
@click.option("--drift-ppm", default=0.0, show_default=True, help="How fast Pupil time gains on the host's clock.")
@click.option("--delay-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="One way, each direction.")
@click.option(
    "--jitter-ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Mean of an exponential on top, in order.",
)
@click.option(
    "--asymmetry-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="More delay from Capture to host."
)
@click.option("--loss", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Fraction of datums dropped.")
@click.option("--truth", default=None, type=click.Path(path_type=Path), help="File that gets the truth, as JSON lines.")
@click.option("--seed", default=0, show_default=True, help="For jitter and loss.")
@click.option(
    "--duration", "duration_s", default=0.0, show_default=True, type=click.FloatRange(0), help="s; 0: for ever."
)
@click.option("--topics", default="", help="Topics to publish, prefixes with commas between them.  [default: all]")
@click.option(
    "--frame-rate", default=30.0, show_default=True, type=click.FloatRange(0, 1000), help="Hz a camera; 0: no images."
)
@click.option("--frames-by-plugin", is_flag=True, help="Images once Frame_Publisher was started, as before Pupil 2.1.")
@click.option(
    "--missing-plugins", default="", help="Names of plugins that cannot be started, with commas between them."
)
@click.option("--calibration-error", default="", help="The reason for which every calibration fails.  [default: none]")
@click.option(
    "--gaze-mapping",
    default="3d",
    show_default=True,
    type=click.Choice(GAZE_MAPPINGS),
    help="Of synthesised gaze; mono: of one eye and the other in turn.",
)
@click.option(
    "--gaze-age-ms",
    default=35.0,
    show_default=True,
    type=click.FloatRange(0, 1000),
    help="Synthesised gaze, when it leaves Capture.",
)
@click.option("--integer-keys", is_flag=True, help="Synthesised gaze has its eyes under 0 and 1, not under text.")
@click.option(
    "--binocular-pause-s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="After a step back only gaze of single eyes comes.",
)
@click.option("--sync-step-ms", default=0.0, show_default=True, help="What Pupil Time Sync adds to the clock; 0: none.")
@click.option(
    "--sync-every-s", default=5.0, show_default=True, type=click.FloatRange(0.2), help="How often it does so."
)
@click.option("--time-sync", is_flag=True, help="Tell the time by Pupil Time Sync as well, on the interface of --host.")
@click.option("--beacon-port", default=5670, show_default=True, type=click.IntRange(1, 65535), help="UDP port of ZRE.")
@click.option(
    "--log-every-s", default=0.0, show_default=True, type=click.FloatRange(0), help="A line of the log; 0: none."
)
@click.option(
    "--app", default="capture", show_default=True, type=click.Choice(["capture", "service"]), help="Which one to be."
)
def command(tape: Path | None, topics: str, missing_plugins: str, **options: Any) -> None:
    """Be a Pupil Capture: Pupil Remote and the IPC backbone, with a clock of its own.

    One JSON line on stdout tells the ports when all is bound. SIGINT and SIGTERM end it.
    """
    if tape is not None and options["synthesise"]:
        raise click.UsageError("--tape and --synthesise exclude each other")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # pyre warns of ordinary things, such as a group without members.
    logging.getLogger("pyre").setLevel(logging.ERROR)
    prefixes, missing = _split(topics), _split(missing_plugins)
    sys.exit(run(CoreOptions(tape=tape or SHORT_TAPE, topics=prefixes, missing_plugins=missing, **options)))


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


if __name__ == "__main__":
    command(prog_name="pupil-bridge simulate core")
