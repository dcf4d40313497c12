"""An LSL configuration that keeps streams and their discovery on this machine, for demos, tests and benchmarks."""

from __future__ import annotations

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
SessionID = {session_id}
[log]
level = -2
"""


def write_lsl_api_cfg(path: Path, session_id: str) -> None:
    """The file that LSLAPICFG has to name before pylsl is imported. Only programs of one session see each other."""
    path.write_text(LSL_API_CFG.format(session_id=session_id), encoding="ascii")
