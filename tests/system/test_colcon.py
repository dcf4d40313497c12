"""`colcon build` and `colcon test` of a clean copy of the repository, with colcon in an environment of its own.

`make test` makes that environment, .venv-colcon; it sees ROS' wheels in .venv-msgs and .venv, in place of a ROS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
COLCON, MESSAGES, ROS = (REPOSITORY / name for name in (".venv-colcon", ".venv-msgs", ".venv"))
BUILD_S = 400


def lacking() -> str | None:
    """What is not here, of what colcon needs."""
    if not (COLCON / "bin" / "colcon").exists():
        return "there is no .venv-colcon (make test makes it)"
    return next((f"there is no {tool}" for tool in ("g++", "make", "git", "bash") if not shutil.which(tool)), None)


@pytest.fixture(scope="module")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    """Makes workspaces, each with a clean copy of the repository as a clone would be, and both packages in sight."""
    if missing := lacking():
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")

    def make() -> Workspace:
        directory = tmp_path_factory.mktemp("workspace")
        for name in names:
            if (path := REPOSITORY / name).is_file():
                copy = directory / "src" / "pupil-bridge" / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        # colcon does not look for packages inside of a package.
        (directory / "src" / "pupil_msgs").symlink_to("pupil-bridge/pupil_msgs")
        return Workspace(directory)

    return make


class Workspace:
    """A folder in which colcon is run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bridge = directory / "install" / "pupil_bridge"
        self.messages = directory / "install" / "pupil_msgs"
        prefixes = f"{MESSAGES}:{ROS}"
        tools = [str(environment / "bin") for environment in (COLCON, MESSAGES)]
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
            "PATH": os.pathsep.join([*tools, os.environ["PATH"]]),
            "AMENT_PREFIX_PATH": prefixes,
            "CMAKE_PREFIX_PATH": prefixes,
            "COLCON_HOME": str(directory / "home"),
        }

    def run(self, *command: str, timeout_s: float = 60) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def sourced(self, command: str) -> str:
        """A command in a shell that has sourced the workspace, as users do."""
        return self.run("bash", "-c", f". install/setup.bash && {command}")


@pytest.fixture(scope="module")
def built(new_workspace: Callable[[], Workspace]) -> Workspace:
    workspace = new_workspace()
    said = workspace.run("colcon", "build", timeout_s=BUILD_S)
    assert re.findall(r"Finished <<< (\w+)", said) == ["pupil_msgs", "pupil_bridge"]
    return workspace


def assert_runs(workspace: Workspace) -> None:
    """What `ros2 run` and `ros2 launch` need is found, works, and is this workspace's."""
    assert "Usage: pupil-bridge" in workspace.sourced("install/pupil_bridge/lib/pupil_bridge/pupil_bridge --help")
    share = workspace.bridge / "share" / "pupil_bridge"
    assert (share / "launch" / "bridge.launch.py").is_file()
    assert (share / "launch" / "demo.launch.py").is_file()
    assert (share / "config" / "bridge.toml").is_file()
    assert (workspace.messages / "share" / "pupil_msgs" / "msg" / "Gaze.msg").is_file()
    code = "import bridge, pupil_msgs.msg as m; m.Gaze(); print(bridge.__file__, m.__file__, sep='\\n')"
    modules = workspace.sourced(f'python -c "{code}"').split()
    assert all(Path(module).is_relative_to(workspace.directory) for module in modules), modules
    prefixes = workspace.sourced("echo $AMENT_PREFIX_PATH").strip().split(":")
    assert {str(workspace.bridge), str(workspace.messages)} <= set(prefixes)


def test_colcon_builds_both_packages_of_a_clean_clone(built: Workspace) -> None:
    assert_runs(built)
    # In a ROS there are users of C++.
    assert (built.messages / "include" / "pupil_msgs" / "pupil_msgs" / "msg" / "gaze.hpp").is_file()


def test_colcon_test_runs_tests_of_what_was_installed(built: Workspace) -> None:
    built.run("colcon", "test", "--return-code-on-test-failure", timeout_s=BUILD_S)
    result = built.run("colcon", "test-result", "--all", "--verbose")
    summary = re.search(r"Summary: (\d+) tests, 0 errors, 0 failures, 0 skipped", result)
    assert summary, result
    assert int(summary[1]) >= 5


def test_a_clone_that_is_built_with_links_is_the_sources_themselves(new_workspace: Callable[[], Workspace]) -> None:
    workspace = new_workspace()
    # Without C++, which takes half of the time and was built by the other test.
    said = workspace.run("colcon", "build", "--symlink-install", "--cmake-args", "-DSKBUILD=ON", timeout_s=BUILD_S)
    assert re.findall(r"Finished <<< (\w+)", said) == ["pupil_msgs", "pupil_bridge"]
    assert_runs(workspace)
    clone = workspace.directory / "src" / "pupil-bridge"
    launch = workspace.bridge / "share" / "pupil_bridge" / "launch" / "bridge.launch.py"
    assert launch.resolve() == clone / "launch" / "bridge.launch.py"
    (clone / "bridge" / "changed.py").write_text("print('changed')\n")
    assert workspace.sourced("python -m bridge.changed") == "changed\n"
