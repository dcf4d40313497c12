"""What install-service writes and whom it refuses, without a systemd; tests/system/test_systemd.py has one."""

from __future__ import annotations

import os
import re
import site
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bridge
from bridge.errors import BridgeError
from bridge.service import install

CONFIG = Path("/etc/pupil-bridge/bridge.toml")


def settings(text: str, name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", text)


def text_of(user: bool = False, config: Path = CONFIG, visible: tuple[Path, ...] = ()) -> str:
    return install._unit_text(user, config, list(visible))


@pytest.fixture(autouse=True)
def _no_sourced_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)


@pytest.mark.parametrize("user", [False, True])
def test_the_unit_runs_this_installation_with_this_configuration(user: bool) -> None:
    text = text_of(user, Path("/srv/lab/bridge.toml"))
    assert settings(text, "ExecStart") == [f"{install._program()[0]} run --config /srv/lab/bridge.toml"]
    assert settings(text, "EnvironmentFile") == ["-/srv/lab/environment"]
    assert "/opt/pupil-bridge/bin/pupil-bridge run" not in text


@pytest.mark.parametrize("user", [False, True])
def test_what_the_issue_asks_of_a_unit_is_in_both(user: bool) -> None:
    text = text_of(user)
    assert settings(text, "Type") == ["notify"]
    assert settings(text, "WatchdogSec") == ["10"]
    assert settings(text, "Restart") == ["on-failure"]
    assert "78" in settings(text, "RestartPreventExitStatus")[0].split()
    assert settings(text, "StartLimitIntervalSec") == ["0"]
    assert settings(text, "ExecReload") == ["kill -HUP $MAINPID"]
    assert settings(text, "ExecStartPre") == []


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/srv/my lab/bridge.toml", '"/srv/my lab/bridge.toml"'),
        ("/srv/100%/bridge.toml", "/srv/100%%/bridge.toml"),
        ("/srv/$HOME/bridge.toml", "/srv/$$HOME/bridge.toml"),
        ('/srv/a"b/bridge.toml', '"/srv/a\\"b/bridge.toml"'),
        ("/srv/a\\b/bridge.toml", '"/srv/a\\\\b/bridge.toml"'),
    ],
)
def test_a_path_means_itself_in_the_unit(path: str, word: str) -> None:
    assert settings(text_of(config=Path(path)), "ExecStart")[0].endswith(f" run --config {word}")


def test_an_installation_in_a_home_is_shown_to_the_service_and_no_other_home_is() -> None:
    text = text_of(visible=(Path("/home/u/venv"), Path("/root/python")))
    assert settings(text, "ProtectHome") == ["tmpfs"]
    assert settings(text, "BindReadOnlyPaths") == ["/home/u/venv", "/root/python"]
    assert text.index("BindReadOnlyPaths") < text.index("[Install]")
    assert settings(text_of(), "ProtectHome") == ["yes"]
    assert settings(text_of(), "BindReadOnlyPaths") == []


def test_a_ros_that_is_sourced_goes_into_the_unit_and_that_of_the_wheels_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/ros/jazzy:/home/u/my ws")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.delenv(install.WHEELS_MARK, raising=False)
    text = text_of()
    assert '"AMENT_PREFIX_PATH=/opt/ros/jazzy:/home/u/my ws"' in settings(text, "Environment")
    assert "ROS_DISTRO=jazzy" in settings(text, "Environment")
    monkeypatch.setenv(install.WHEELS_MARK, "1")
    assert "AMENT_PREFIX_PATH" not in text_of()


def test_what_it_wrote_is_known_again_and_what_was_changed_or_is_another_s_is_left_alone(tmp_path: Path) -> None:
    unit = tmp_path / "pupil-bridge.service"
    install._check_ours(unit)
    text = text_of()
    unit.write_text(text)
    install._check_ours(unit)
    for other, reason in (
        (text.replace("WatchdogSec=10", "WatchdogSec=60"), "was changed by hand"),
        (text.split("\n", 1)[1], "not from this command"),
        ("", "not from this command"),
    ):
        unit.write_text(other)
        with pytest.raises(BridgeError, match=reason):
            install._check_ours(unit)
    unit.unlink()
    unit.symlink_to("/dev/null")  # masked
    with pytest.raises(BridgeError, match="not from this command"):
        install._check_ours(unit)


@pytest.mark.parametrize(
    "files",
    [
        ("systemd/pupil-bridge.service", "src/bridge/__init__.py", "src/systemd/pupil-bridge.service"),
        (
            "systemd/pupil-bridge.service",
            "venv/lib/python3.11/site-packages/bridge/__init__.py",
            "venv/share/pupil_bridge/systemd/pupil-bridge.service",
        ),
        (
            "config/bridge.toml",
            "ws/install/pupil_bridge/lib/python3.12/site-packages/bridge/__init__.py",
            "ws/install/pupil_bridge/share/pupil_bridge/config/bridge.toml",
        ),
    ],
    ids=["source tree", "virtual environment", "colcon"],
)
def test_what_is_shipped_is_found_wherever_it_is_installed(
    files: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, package, file = files
    monkeypatch.setattr(bridge, "__file__", str(tmp_path / package))
    with pytest.raises(BridgeError, match="not complete"):
        install.shipped(name)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert install.shipped(name) == tmp_path / file


@pytest.mark.parametrize("name", [f"systemd/{install.UNIT}", "systemd/pupil-bridge-user.service", "config/bridge.toml"])
def test_everything_it_needs_is_in_the_repository(name: str) -> None:
    assert install.shipped(name).is_file()


def test_a_first_configuration_is_written_and_a_second_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    config = tmp_path / "etc" / "bridge.toml"
    before = os.umask(0o077)  # of a careful root
    try:
        install._first_configuration(config, False, said.append)
    finally:
        os.umask(before)
    assert stat.S_IMODE(config.stat().st_mode) == 0o644
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o755
    assert (config.parent / "config.d").is_dir()
    config.write_text("mine")
    install._first_configuration(config, False, said.append)
    assert config.read_text() == "mine"
    assert said == [f"wrote a first configuration: {config}", f"kept the configuration {config}"]
    assert sorted(path.name for path in config.parent.iterdir()) == ["bridge.toml", "config.d"]


def test_a_users_first_configuration_is_for_that_user_alone(tmp_path: Path) -> None:
    config = tmp_path / "pupil-bridge" / "bridge.toml"
    install._first_configuration(config, True, lambda line: None)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretended installation in a directory that counts neither as a home nor as temporary."""
    prefix = tmp_path / "venv"
    package = prefix / "lib" / "bridge" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python").touch(0o755)
    (prefix / "bin" / "pupil-bridge").touch(0o755)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    monkeypatch.setattr(bridge, "__file__", str(package))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "executable", str(prefix / "bin" / "python"))
    monkeypatch.setattr(install, "_program", lambda: [str(prefix / "bin" / "pupil-bridge")])
    monkeypatch.setattr(install, "HOMES", ())
    monkeypatch.setattr(install, "TEMPORARY", ())
    return prefix


def test_an_installation_that_everybody_may_read_needs_nothing_special(installation: Path) -> None:
    assert install._visible_to_the_service(CONFIG) == []


def test_one_in_a_home_directory_that_is_closed_is_seen_by_itself(
    installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = installation.parent
    home.chmod(0o700)
    monkeypatch.setattr(install, "HOMES", (home,))
    assert install._visible_to_the_service(CONFIG) == [installation]


def _close_the_parent(installation: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    installation.parent.chmod(0o700)
    return f"only its owner may look into {installation.parent}"


def _close_the_package(installation: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    Path(bridge.__file__).chmod(0o600)
    return f"only its owner may look into {bridge.__file__}"


def _temporary(installation: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(install, "TEMPORARY", (installation.parent,))
    return "is a temporary place"


def _one_users_own(installation: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(installation / "lib"))
    return "pip install --user"


@pytest.mark.parametrize("prepare", [_close_the_parent, _close_the_package, _temporary, _one_users_own])
def test_one_that_the_service_cannot_run_is_refused_with_the_way_out(
    installation: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path, pytest.MonkeyPatch], str]
) -> None:
    reason = prepare(installation, monkeypatch)
    with pytest.raises(BridgeError) as refused:
        install._visible_to_the_service(CONFIG)
    assert reason in str(refused.value)
    assert "python3 -m venv /opt/pupil-bridge" in str(refused.value)
    assert "install-service --user" in str(refused.value)


def test_a_configuration_that_the_service_cannot_see_or_read_is_refused(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "lab.toml"
    config.touch(0o600)
    config.chmod(0o600)
    with pytest.raises(BridgeError, match=re.escape(f"chmod o+r {config}")):
        install._visible_to_the_service(config)
    config.chmod(0o644)
    assert install._visible_to_the_service(config) == []
    monkeypatch.setattr(install, "TEMPORARY", (tmp_path / "elsewhere",))
    monkeypatch.setattr(install, "HOMES", (config.parent / "lab.toml",))
    with pytest.raises(BridgeError, match=r"copy it to /etc/pupil-bridge/bridge\.toml"):
        install._visible_to_the_service(config)


def test_where_no_systemd_runs_both_commands_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SYSTEMD_RUNS", tmp_path / "not-there")
    for user in (False, True):
        with pytest.raises(BridgeError, match="systemd does not run here"):
            install.install(user, None, False, print)
        with pytest.raises(BridgeError, match="systemd does not run here"):
            install.uninstall(user, print)


def test_a_file_that_cannot_be_written_leaves_no_half_of_it(tmp_path: Path) -> None:
    (tmp_path / "unit").mkdir()  # cannot be replaced by a file
    with pytest.raises(BridgeError, match="cannot be written: Is a directory"):
        install._write(tmp_path / "unit", "text", 0o644)
    assert list(tmp_path.iterdir()) == [tmp_path / "unit"]


@pytest.mark.parametrize("command", ["install-service", "uninstall-service"])
def test_the_commands_explain_themselves(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bridge", command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--user" in done.stdout
    assert done.stderr == ""
