"""Keeps LSL and ROS 2 of a benchmark and its child processes on this machine."""

from __future__ import annotations

import os
import random
from pathlib import Path

LSL_API_CFG = """\
[ports]
IPv6 = disable
[multicast]
ResolveScope = link
AddressesOverride = {{224.0.0.183, 239.255.172.215}}
Interfaces = {{127.0.0.1}}
TTLOverride = 0
[lab]
KnownPeers = {{127.0.0.1}}
SessionID = pupil-bridge-benchmark-{session}
[log]
level = -2
"""


def stay_local(directory: Path) -> None:
    """To be called before pylsl or rclpy is imported; children inherit it."""
    path = directory / "lsl_api.cfg"
    path.write_text(LSL_API_CFG.format(session=random.randrange(10**6)), encoding="ascii")
    os.environ.update(
        LSLAPICFG=str(path), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_DOMAIN_ID=str(random.randrange(1, 100))
    )
