"""Puts the systemd service there and takes it away: the commands ``install-service`` and ``uninstall-service``.

What is shipped in systemd/ is a unit for an installation in /opt/pupil-bridge; here it gets the paths of the
installation that runs. The first line of what is written has a checksum, so that nothing else is ever overwritten or
removed: neither somebody else's unit nor one that was changed by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import bridge
from bridge.errors import BridgeError, ConfigError
from bridge.process import WHEELS_MARK, environment_for_others
from bridge.shipped import shipped

UNIT = "pupil-bridge.service"
SYSTEM_UNITS = Path("/etc/systemd/system")
SYSTEM_CONFIG = Path("/etc/pupil-bridge/bridge.toml")
SYSTEMD_RUNS = Path("/run/systemd/system")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome hides
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - what PrivateTmp replaces
MARK = re.compile(r"# Written by pupil-bridge install-service \(sha256 ([0-9a-f]{64})\)[^\n]*\n")
ROS_VARIABLES = (
    "AMENT_PREFIX_PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "ROS_DISTRO",
    "ROS_VERSION",
    "ROS_PYTHON_VERSION",
)
Say = Callable[[str], None]


def install(user: bool, config: Path | None, now: bool, say: Say) -> None:
    """Writes and enables the unit, and a first configuration where there is none; starts it with ``now``.

    Every step is said in a line. Running it again brings the unit up to date. Raises BridgeError, with a sentence that
    says what to do, before anything is changed; and when systemd refuses or the service does not start.
    """
    systemctl = _systemctl(user, "install-service")
    unit = _units(user) / UNIT
    _check_ours(unit)
    config = Path(os.path.abspath(config)) if config is not None else _default_config(user)
    visible = [] if user else _visible_to_the_service(config)
    text = _unit_text(user, config, visible)

    _first_configuration(config, user, say)
    unit.parent.mkdir(parents=True, exist_ok=True)
    _write(unit, text, 0o644)
    say(f"wrote {unit}: it runs {_program()[0]}")
    for directory in visible:
        say(f"{directory} is in a home directory: the service may read it, and needs it to stay where it is")
    _call(systemctl, "daemon-reload")
    _call(systemctl, "enable", "--quiet", UNIT)
    say(f"enabled it: it starts {'when you log in' if user else 'at boot'}")
    faults = _faults(config)
    if faults:
        say(f"the configuration has faults, and the service does not start before they are mended:\n{faults}")
    elif now:
        if _call(systemctl, "restart", UNIT, check=False).returncode != 0:
            raise BridgeError(f"the service is installed but does not start: see {_journalctl(user)} -e")
        say("started it: it runs")
    _say_what_is_next(user, config, systemctl, now and not faults, say)


def uninstall(user: bool, say: Say) -> None:
    """Stops, disables and removes the service and what it kept; the configuration stays. Raises BridgeError."""
    systemctl = _systemctl(user, "uninstall-service")
    unit = _units(user) / UNIT
    if not unit.exists():
        raise BridgeError(f"there is nothing to remove: {unit} is not there")
    _check_ours(unit)
    config = _config_of(unit.read_text(encoding="utf-8"))
    _call(systemctl, "disable", "--quiet", "--now", UNIT)
    say("stopped and disabled the service")
    if not user:  # a user's state is that of `pupil-bridge run` as well
        _call(systemctl, "clean", "--what=state", UNIT, check=False)
        say("removed /var/lib/pupil-bridge, where it kept the names of the devices that it had seen")
    unit.unlink()
    _call(systemctl, "daemon-reload")
    _call(systemctl, "reset-failed", UNIT, check=False)  # it says no more that it had failed, if it had
    say(f"removed {unit}")
    say(f"kept the configuration: {config}")
    if (drop_ins := unit.with_name(f"{UNIT}.d")).exists():
        say(f"kept what is not its own: {drop_ins}")


def _systemctl(user: bool, command: str) -> list[str]:
    """The beginning of every systemctl command. Raises BridgeError when it would be of no use."""
    found = shutil.which("systemctl")
    if found is None or not SYSTEMD_RUNS.is_dir():
        raise BridgeError(
            "systemd does not run here, so there are no services; `pupil-bridge run --config FILE` needs none"
        )
    if not user:
        if os.geteuid() != 0:
            raise BridgeError(
                f"the system's service needs root: sudo {' '.join(_program())} {command}; "
                f"or take one of your own: pupil-bridge {command} --user"
            )
        return [found]
    if _call([found, "--user"], "show-environment", check=False).returncode != 0:
        raise BridgeError(
            "your own systemd cannot be reached: log in as this user, on the computer or by ssh (su and sudo do not do)"
        )
    return [found, "--user"]


def _call(systemctl: list[str], *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603 - systemctl, by its full path
        [*systemctl, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment_for_others(),
    )
    if check and done.returncode != 0:
        raise BridgeError(f"systemctl {' '.join(arguments)}: {' '.join(done.stderr.split())}")
    return done


def _units(user: bool) -> Path:
    return _user_config_home() / "systemd/user" if user else SYSTEM_UNITS


def _default_config(user: bool) -> Path:
    return _user_config_home() / "pupil-bridge/bridge.toml" if user else SYSTEM_CONFIG


def _user_config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _program() -> list[str]:
    """The command that is this installation."""
    script = Path(sysconfig.get_path("scripts")) / "pupil-bridge"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "bridge"]


def _check_ours(unit: Path) -> None:
    """Raises BridgeError when what is at ``unit`` was not written here, or was changed since."""
    if not unit.exists() and not unit.is_symlink():
        return
    text = unit.read_text(encoding="utf-8", errors="replace") if unit.is_file() else ""
    mark = MARK.match(text)
    if mark is None:
        raise BridgeError(f"{unit} is there, but not from this command: it is left alone. Move it away to go on")
    if _checksum(text[mark.end() :]) != mark[1]:
        raise BridgeError(
            f"{unit} was changed by hand: it is left alone. Move your changes into a drop-in "
            f"(systemctl edit pupil-bridge), and this file away, to go on"
        )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _unit_text(user: bool, config: Path, visible: list[Path]) -> str:
    """The shipped unit with this installation's program, configuration and ROS."""
    template = shipped("systemd/pupil-bridge-user.service" if user else f"systemd/{UNIT}").read_text(encoding="utf-8")
    command = " ".join(map(_quoted, [*_program(), "run", "--config", str(config)]))
    text = re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={command}", template)
    environment = config.parent / "environment"
    text = re.sub(r"(?m)^EnvironmentFile=.*$", lambda _: f"EnvironmentFile=-{_escaped(str(environment))}", text)
    added = [f"Environment={_quoted(f'{name}={value}')}" for name, value in _ros_environment(os.environ).items()]
    if added:
        added.insert(0, "# The ROS that was sourced when this was installed.")
    if visible:
        text = re.sub(r"(?m)^ProtectHome=.*$", "ProtectHome=tmpfs", text)
        added.append(
            "# This installation is in a home directory. Of those, the service sees this alone, and cannot write there."
        )
        added += [f"BindReadOnlyPaths={_quoted(str(directory).replace(':', chr(92) + ':'))}" for directory in visible]
    if added:
        text = text.replace("\n[Install]", "\n".join(["", *added, "", "[Install]"]))
    return (
        f"# Written by pupil-bridge install-service (sha256 {_checksum(text)}); uninstall-service removes it.\n{text}"
    )


def _ros_environment(environ: Mapping[str, str]) -> dict[str, str]:
    if "AMENT_PREFIX_PATH" not in environ or WHEELS_MARK in environ:
        return {}
    return {name: environ[name] for name in ROS_VARIABLES if name in environ}


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """A word of a unit file: specifiers and variables are not expanded in it."""
    text = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s\"'\\;]", text) else text


def _visible_to_the_service(config: Path) -> list[Path]:
    """The directories in home directories that the service must see. Raises BridgeError where that is not enough.

    The service is a user of its own, without a home, and with a /tmp of its own.
    """
    package = Path(bridge.__file__).resolve()
    if site.ENABLE_USER_SITE and package.is_relative_to(Path(site.getusersitepackages()).resolve()):
        raise BridgeError(_elsewhere("it is one user's own (pip install --user)"))
    interpreter = Path(sys.executable).resolve()
    roots = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), package.parents[1]}
    files = [interpreter, package, Path(_program()[0])]
    for root in roots:
        if any(root.is_relative_to(directory) for directory in TEMPORARY):
            raise BridgeError(_elsewhere(f"{root} is a temporary place"))
    homely = [root for root in roots if any(root.is_relative_to(home) for home in HOMES)]
    visible = sorted(
        root for root in homely if not any(root != other and root.is_relative_to(other) for other in homely)
    )
    for path in [*roots, *files]:
        if (closed := next(_closed_to_others(path, visible), None)) is not None:
            raise BridgeError(_elsewhere(f"only its owner may look into {closed}"))
    if any(config.is_relative_to(directory) for directory in (*HOMES, *TEMPORARY)):
        raise BridgeError(
            f"the service cannot see {config}, as it sees no home directories and has its own /tmp: "
            f"copy it to {SYSTEM_CONFIG}, and leave out --config"
        )
    if config.exists() and (closed := next(_closed_to_others(config, []), None)) is not None:
        mode = "o+rx" if closed.is_dir() else "o+r"
        raise BridgeError(f"the service is a user of its own, who cannot read {config}: chmod {mode} {closed}")
    return visible


def _closed_to_others(path: Path, visible: list[Path]) -> Iterator[Path]:
    """What of ``path`` and the directories above it another user may not read or enter, from the top.

    Where the service sees a directory alone, those above it do not matter.
    """
    top = next((root for root in visible if path.is_relative_to(root)), Path("/"))
    for part in (*reversed(path.parents), path):
        if part.is_relative_to(top):
            needed = stat.S_IXOTH if part.is_dir() and part != path else stat.S_IROTH
            if not part.stat().st_mode & needed:
                yield part


def _elsewhere(reason: str) -> str:
    return (
        f"the system's service cannot run this installation: {reason}. Make one that everybody may read:\n"
        "  python3 -m venv /opt/pupil-bridge && /opt/pupil-bridge/bin/pip install pupil-bridge\n"
        "  /opt/pupil-bridge/bin/pupil-bridge install-service\n"
        "or take a service of your own: pupil-bridge install-service --user"
    )


def _first_configuration(config: Path, user: bool, say: Say) -> None:
    directory_mode, mode = (0o700, 0o600) if user else (0o755, 0o644)
    for directory in (config.parent, config.parent / "config.d"):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(directory_mode)
    if config.exists():
        say(f"kept the configuration {config}")
        return
    _write(config, shipped("config/bridge.toml").read_text(encoding="utf-8"), mode)
    say(f"wrote a first configuration: {config}")


def _write(path: Path, text: str, mode: int) -> None:
    """The file is whole or not there at all, also if the power fails. Raises BridgeError."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BridgeError(f"{path} cannot be written: {error.strerror or error}") from error


def _faults(config: Path) -> str:
    from bridge import config as config_module

    try:
        config_module.load(config)
    except ConfigError as error:
        return str(error)
    return ""


def _config_of(unit_text: str) -> str:
    found = re.search(r"(?m)^ExecStart=.* run --config (.*)$", unit_text)
    return found[1].strip('"').replace("%%", "%") if found else "where it was"


def _journalctl(user: bool) -> str:
    return f"journalctl {'--user ' if user else ''}--unit pupil-bridge"


def _say_what_is_next(user: bool, config: Path, systemctl: list[str], runs: bool, say: Say) -> None:
    manager = "systemctl --user" if user else "systemctl"
    say("next:")
    say(f"  edit {config}")
    say(f"  pupil-bridge check-config {config}")
    if runs:
        say(f"  {manager} reload pupil-bridge       after a change")
    elif _call(systemctl, "is-active", "--quiet", UNIT, check=False).returncode == 0:
        say(f"  {manager} restart pupil-bridge      it still runs as it was started")
    else:
        say(f"  {manager} start pupil-bridge")
    say(f"  {manager} status pupil-bridge")
    say(f"  {_journalctl(user)} --follow")
    if user:
        say("  loginctl enable-linger              to have it run from boot on, logged in or not")
