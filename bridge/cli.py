"""The command ``pupil-bridge``. What is heavy is imported by the command that needs it, so that ``--help`` is quick."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, ParamSpec

import click

from bridge import __version__
from bridge.errors import BridgeError, ConfigError

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h; systemd is told not to restart after it
P = ParamSpec("P")


def _errors_in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BridgeError as error:
            # The journal takes the level of a line from its beginning.
            level = "<3>" if "JOURNAL_STREAM" in os.environ and not (sys.stderr and sys.stderr.isatty()) else ""
            lines = f"pupil-bridge: {error}".splitlines()
            click.echo("\n".join(level + line for line in lines), err=True)
            sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else 1)

    return wrapped


class _Main(click.Group):
    """Leaves to ROS what is ROS': `ros2 launch` and `ros2 run` append `--ros-args -r __ns:=/robot ...`."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        return super().main(_without_ros(sys.argv[1:] if args is None else args), *rest, **options)


def _without_ros(arguments: Sequence[str]) -> list[str]:
    """Without everything from each `--ros-args` to the next `--`."""
    kept: list[str] = []
    of_ros = False
    for argument in arguments:
        if argument == "--ros-args":
            of_ros = True
        elif of_ros and argument == "--":
            of_ros = False
        elif not of_ros:
            kept.append(argument)
    return kept


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pupil-bridge")
def main() -> None:
    """Pupil Labs eye trackers as honestly synchronised LSL streams and ROS 2 topics.

    Try `pupil-bridge demo`: it needs no eye tracker.
    """


@main.command()
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="The TOML file to run.",
)
@_errors_in_one_line
def run(config_path: Path) -> None:
    """Run the bridge until it is stopped (Ctrl-C or SIGTERM)."""
    from bridge import config, daemon, heap, process, reloads
    from bridge.service import logs
    from bridge.service.notify import Notifier

    def load(settings: reloads.Settings | None = None) -> config.Config:
        return config.load(config_path, settings=settings)

    heap.bound()
    if sys.stderr is not None:
        faulthandler.enable()  # the watchdog's SIGABRT shows where the loop hangs
    tree = load()
    logs.set_up(tree.logging.level, tree.logging.format)
    process.raise_file_limit()

    async def serve() -> None:
        notifier = Notifier.from_environment(os.environ)
        bridge = daemon.Daemon(tree, load=load, path=config_path, notifier=notifier)
        process.on_reload_signal(bridge.request_reload)
        await bridge.run(process.stop_signal)
        if not bridge.ended:
            logging.shutdown()
            os._exit(0)  # a library's threads that do not end would keep the process

    process.run_loop(serve())


@main.command("check-config")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--show", is_flag=True, help="Print what is in effect, every setting with its value, as JSON.")
@_errors_in_one_line
def check_config(file: Path, show: bool) -> None:
    """Check the configuration FILE, and name all its faults.

    With it its drop-ins (config.d/*.toml beside it) and the variables PUPIL_BRIDGE_... of the environment.
    """
    from bridge import config, config_layers

    tree = config.load(file)
    tree.http.secret()
    if show:
        click.echo(tree.model_dump_json(indent=2, by_alias=True))  # pydantic writes secrets as stars
        return
    drop_ins = config_layers.drop_ins(file)
    names = f" and {len(drop_ins)} drop-ins" if drop_ins else ""
    click.echo(f"{file}{names}: good: {len(tree.sources)} sources, {len(tree.sinks)} sinks")


@main.command()
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path, readable=False), help="The daemon's control socket."
)
@_errors_in_one_line
def reload(socket_path: Path | None) -> None:
    """Let a running daemon load its configuration anew.

    Devices, sources and sinks whose configuration stays go on without losing a sample. A configuration with a fault
    is refused whole, and the old one goes on.
    """
    from bridge.service import control_socket

    answer = control_socket.ask(socket_path or control_socket.default_socket_path(), "reload")
    click.echo(answer["changes"])


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
@click.option("--watch", is_flag=True, help="Draw it again twice a second, until Ctrl-C.")
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path, readable=False), help="The daemon's control socket."
)
@_errors_in_one_line
def status(as_json: bool, watch: bool, socket_path: Path | None) -> None:
    """Show a running daemon's devices, streams and clocks.

    What is wrong; rates, ages and drops of every stream; offset, error bound and drift of every device's clock.
    """
    from bridge.service import control_socket

    if as_json and watch:
        raise click.UsageError("--json and --watch exclude each other")
    path = socket_path or control_socket.default_socket_path()
    if as_json:
        click.echo(json.dumps(control_socket.ask(path, "status"), indent=2))
        return
    tree = None if watch else control_socket.ask(path, "status")
    from rich.console import Console

    from bridge.service import table

    if tree is not None:
        Console().print(table.status_table(tree))
        return
    with contextlib.suppress(KeyboardInterrupt):
        table.watch(lambda: control_socket.ask(path, "status"), Console())


def _of_devices(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that a running daemon has its devices carry out."""
    command = click.option("--device", metavar="NAME", help="This device alone (default: all that can do it).")(command)
    return click.option(
        "--socket", "socket_path", type=click.Path(path_type=Path, readable=False), help="The daemon's control socket."
    )(command)


def _carry_out(socket_path: Path | None, command: str, arguments: dict[str, Any]) -> None:
    """Says what each device has answered. Raises BridgeError when one has refused."""
    from bridge.service import control_socket

    given = {key: value for key, value in arguments.items() if value is not None}
    answer = control_socket.ask(socket_path or control_socket.default_socket_path(), command, given)
    for device, words in answer["done"].items():
        click.echo(f"{device}: {words}")
    if answer["refused"]:
        raise BridgeError("\n".join(answer["refused"].values()))


@main.command()
@click.argument("action", type=click.Choice(["start", "stop"]))
@click.option("--session", metavar="NAME", help="A name for the recording, where the device takes one.")
@_of_devices
@_errors_in_one_line
def record(action: str, session: str | None, device: str | None, socket_path: Path | None) -> None:
    """Start or stop the devices' own recordings.

    A running daemon asks them, and waits until they say so. What a device refuses is said in its words, with status 1.
    """
    _carry_out(socket_path, "record", {"action": action, "session": session, "device": device})


@main.command()
@click.argument("text")
@click.option("--at", "host_s", type=float, metavar="S", help="When it was, on LSL's clock, in seconds (default: now).")
@_of_devices
@_errors_in_one_line
def event(text: str, host_s: float | None, device: str | None, socket_path: Path | None) -> None:
    """Have the devices keep TEXT as an event.

    The time is carried over to each device's own clock. To Pupil Capture it is an annotation.
    """
    _carry_out(socket_path, "event", {"text": text, "host_s": host_s, "device": device})


@main.command()
@click.argument("action", type=click.Choice(["start", "stop"]))
@_of_devices
@_errors_in_one_line
def calibrate(action: str, device: str | None, socket_path: Path | None) -> None:
    """Start or stop the calibration of Pupil Capture."""
    _carry_out(socket_path, "calibrate", {"action": action, "device": device})


def _installed_config() -> Path | None:
    """Where `install-service` puts it, for all or for this user, if it is there."""
    from bridge.service import install

    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pupil-bridge" / "bridge.toml"
    with contextlib.suppress(OSError, RuntimeError):
        return next((path for path in (install.SYSTEM_CONFIG, own) if path.is_file()), None)
    return None


@main.command()
@click.option(
    "--interface", help="IPv4 address of the interface to listen on (default: the first that is not loopback)."
)
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.1), help="How long to listen.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, readable=False),
    help="Judge by this configuration (default: the installed one, if there is one).",
)
@click.option(
    "--beacon-port", type=click.IntRange(1, 65535), help="UDP port to listen at (default: as configured, 5670)."
)
@click.option(
    "--core", "core_address", help="Pupil Remote to ask as well (default: those that are configured, 127.0.0.1:50020)."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_errors_in_one_line
def discover(
    interface: str | None,
    seconds: float,
    config_path: Path | None,
    beacon_port: int | None,
    core_address: str | None,
    as_json: bool,
) -> None:
    """List the eye trackers that can be heard now.

    Companion devices with their sensors, and Pupil Capture; what the bridge would not use, and why. It uses none of
    them.
    """
    from bridge import config, process
    from bridge.service import logs
    from bridge.sources import discovery

    logs.set_up("warning", "text")
    tree = None if config_path is None else config.load(config_path)
    whys = []
    if tree is None and (config_path := _installed_config()) is not None:
        try:
            tree = config.load(config_path)
        except ConfigError as error:
            whys = [f"the installed configuration is not judged by: {str(error).splitlines()[0]}"]
            config_path = None

    async def listen() -> None:
        found = await discovery.discover(interface, core_address, seconds, tree, beacon_port)
        found["config"] = None if config_path is None else str(config_path)
        found["why"] += whys
        click.echo(json.dumps(found, indent=2) if as_json else discovery.as_text(found))

    process.run_loop(listen())


@main.command()
@click.option("--duration", default=0.0, metavar="S", help="End after this many seconds (default: at Ctrl-C).")
@click.option("--report", type=click.Path(path_type=Path), help="Write the final numbers to this JSON file.")
@click.option("--no-ros", is_flag=True, help="LSL only.")
@click.option("--truth", "truth_dir", type=click.Path(path_type=Path), help="Directory for the simulators' true times.")
@_errors_in_one_line
def demo(duration: float, report: Path | None, no_ros: bool, truth_dir: Path | None) -> None:
    """Run the bridge on two simulated eye trackers.

    A Companion device and a Pupil Core, each in its own process, all on this machine, with a live table.
    """
    from bridge import demo as demo_module

    demo_module.run(duration_s=duration, report=report, ros=not no_ros, truth_dir=truth_dir)


@main.command("bag-preview")
@click.argument("bag", type=click.Path(path_type=Path, readable=False))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The picture: .png, .pdf, .svg.")
@click.option("--device", metavar="NAME", help="Draw this device alone (default: every one that has gaze).")
@click.option("--frames", default=4, show_default=True, type=click.IntRange(1, 8), help="Scene frames of each device.")
@_errors_in_one_line
def bag_preview(bag: Path, output: Path, device: str | None, frames: int) -> None:
    """Draw the gaze on frames of a recorded ROS 2 bag.

    Some frames of each device, and a time line with the bounds of the stamps.

    BAG is an MCAP file, or a folder that `ros2 bag record` made. It needs no ROS.
    """
    try:
        from bridge.bag import preview
    except ImportError as error:
        raise BridgeError(f"bag-preview needs {error.name}: pip install 'pupil-bridge[bag]'") from error
    click.echo(preview.run(bag, output, device, frames))


@main.command("install-service")
@click.option("--user", is_flag=True, help="A service of your own instead of the computer's.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The TOML file to run (default: bridge.toml in /etc/pupil-bridge or, with --user, ~/.config/pupil-bridge).",
)
@click.option("--now", is_flag=True, help="Start it as well.")
@_errors_in_one_line
def install_service(user: bool, config_path: Path | None, now: bool) -> None:
    """Have systemd run this installation at boot.

    Writes the unit, and a first configuration where there is none. Nothing that is there already is overwritten.
    """
    from bridge.service import install

    install.install(user, config_path, now, click.echo)


@main.command("uninstall-service")
@click.option("--user", is_flag=True, help="The service of your own.")
@_errors_in_one_line
def uninstall_service(user: bool) -> None:
    """Stop the service and take it out of systemd. The configuration stays."""
    from bridge.service import install

    install.uninstall(user, click.echo)


class _Simulators(click.Group):
    """Imports a simulator when its name is used, not to list it."""

    NAMES: ClassVar = {
        "companion": "Be a phone with the Companion app (NDSI v4).",
        "core": "Be a Pupil Capture: Pupil Remote and the IPC backbone.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.NAMES:
            return None
        module: Any = importlib.import_module(f"bridge.simulators.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.NAMES.items()))


@main.group(cls=_Simulators)
def simulate() -> None:
    """Be an eye tracker, to test and to try things out.

    It speaks the real protocol, from a process of its own, and knows the truth about its clock.
    """
