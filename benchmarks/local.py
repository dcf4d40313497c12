"""Keeps LSL and ROS 2 of a benchmark and its child processes on this machine."""

from __future__ import annotations

import os
import random
from pathlib import Path

from bridge.service.loopback import write_lsl_api_cfg


def stay_local(directory: Path) -> None:
    """To be called before pylsl or rclpy is imported; children inherit it."""
    path = directory / "lsl_api.cfg"
    write_lsl_api_cfg(path, f"pupil-bridge-benchmark-{random.randrange(10**6)}")
    os.environ.update(
        LSLAPICFG=str(path), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_DOMAIN_ID=str(random.randrange(1, 100))
    )
