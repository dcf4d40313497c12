"""What `colcon test` runs: what colcon has installed, as `ros2 launch` and `ros2 run` will find it.

Needs pytest alone. The Python that runs it has to have what setup.py's install_requires names.
"""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2]
VERSION = ElementTree.parse(SOURCES / "package.xml").findtext("version")
ENDINGS = (".toml", ".yaml", ".rviz", ".json", ".xml")


@pytest.fixture
def prefix():
    """Where this package has been installed; colcon's environment names it."""
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    found = [entry for entry in prefixes if (entry / "share" / "pupil_bridge").is_dir()]
    assert found, f"no share/pupil_bridge in {prefixes}"
    return found[0]


def run(*command, cwd):
    # Not in the sources: Python would import them in place of what is installed.
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_launch_files_and_configuration_are_in_the_share_folder(prefix):
    expected = set((SOURCES / "launch").glob("*.launch.py"))
    expected |= {path for path in (SOURCES / "config").rglob("*") if path.name.endswith(ENDINGS)}
    assert len(expected) > 2
    for path in expected:
        installed = prefix / "share" / "pupil_bridge" / path.relative_to(SOURCES)
        assert installed.read_bytes() == path.read_bytes()


def test_the_package_is_in_the_resource_index(prefix):
    assert (prefix / "share" / "ament_index" / "resource_index" / "packages" / "pupil_bridge").is_file()
    assert ElementTree.parse(prefix / "share" / "pupil_bridge" / "package.xml").findtext("version") == VERSION


def test_ros2_run_finds_an_executable_of_this_version(prefix, tmp_path):
    executable = prefix / "lib" / "pupil_bridge" / "pupil_bridge"
    assert run(executable, "--version", cwd=tmp_path) == f"pupil-bridge, version {VERSION}\n"


def test_the_module_that_launch_starts_is_the_installed_one_and_accepts_the_shipped_configuration(prefix, tmp_path):
    where = run(sys.executable, "-c", "import bridge; print(bridge.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(prefix) or (prefix.parents[1] / "build") in Path(where).parents
    config = prefix / "share" / "pupil_bridge" / "config" / "bridge.toml"
    assert "good: " in run(sys.executable, "-m", "bridge", "check-config", config, "--ros-args", cwd=tmp_path)


def test_the_messages_of_this_workspace_can_be_sent(tmp_path):
    if importlib.util.find_spec("pupil_msgs") is None:
        pytest.skip("pupil_msgs is not in this workspace")
    code = (
        "from rclpy.serialization import deserialize_message, serialize_message; from pupil_msgs.msg import Gaze;"
        "gaze = Gaze(pixel_x=1.5); assert deserialize_message(serialize_message(gaze), Gaze) == gaze; print('equal')"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "equal\n"
