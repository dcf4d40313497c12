"""/diagnostics once a second: one status for the bridge, one for each device.

STALE: the device is not there, or says nothing. WARN: what somebody should look at. OK: everything else. What a status
says is what `pupil-bridge status` says.
"""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from bridge.sinks.ros2.desk import Desk
from bridge.status import device_problems

SILENT_S = 3.0


class Diagnostics:
    """Makes and publishes the array."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._publisher = desk.publisher("", "/diagnostics")
        self.publishers: list[Any] = [self._publisher]

    def publish(self, status: dict[str, Any], host_ns: int) -> None:
        """``status``: everything, as `pupil-bridge status --json` prints it."""
        array = DiagnosticArray()
        array.header.stamp = self._desk.stamps.at(host_ns)
        warn_s = self._desk.settings.bound_warn_ms * 1e-3
        name = self._desk.node.get_name()
        array.status = [_bridge(name, status), *(_device(name, device, warn_s) for device in status["devices"])]
        self._publisher.publish(array)


def _bridge(name: str, status: dict[str, Any]) -> DiagnosticStatus:
    own = [problem for problem in status["problems"] if problem not in _of_devices(status)]
    there = sum(device["connected"] for device in status["devices"])
    values = {
        "devices": f"{there} of {len(status['devices'])}",
        "version": status["version"],
        "duration_s": f"{status['duration_s']:.0f}",
        "worst_lag_s": f"{status['loop']['worst_lag_s']:.3f}",
        "queued": ", ".join(f"{sink['name']} {sink['queued']}" for sink in status["sink_status"] if "queued" in sink),
    }
    level = DiagnosticStatus.WARN if own else DiagnosticStatus.OK
    return _status(level, f"{name}: bridge", "pupil-bridge", "; ".join(own) or "running", values)


def _of_devices(status: dict[str, Any]) -> set[str]:
    return {problem for device in status["devices"] for problem in device_problems(device)}


def _device(name: str, device: dict[str, Any], warn_s: float) -> DiagnosticStatus:
    clock, ages = device["clock"], [s["age_s"] for s in device["streams"] if s["age_s"] is not None]
    bound_s = clock["bound_s"]
    expected = any(stream["expected_rate_hz"] for stream in device["streams"])
    if not device["connected"]:
        level, text = DiagnosticStatus.STALE, "not there"
    elif clock["state"] == "holdover" or (expected and (not ages or min(ages) > SILENT_S)):
        level = DiagnosticStatus.STALE
        text = "silent" if clock["state"] != "holdover" else "does not answer; its clock is extrapolated"
    elif clock["state"] != "locked":
        level, text = DiagnosticStatus.WARN, f"clock {clock['state']}"
    elif bound_s is not None and bound_s > warn_s:
        level = DiagnosticStatus.WARN
        text = f"stamps are uncertain by {bound_s * 1e3:.1f} ms, more than {warn_s * 1e3:g} ms"
    elif problems := device_problems(device):
        level, text = DiagnosticStatus.WARN, "; ".join(problems)
    else:
        level, text = DiagnosticStatus.OK, "clock locked"
    values = {
        **{key: _number(clock[key]) for key in ("offset_s", "bound_s", "precision_s", "slew_s", "rtt_min_s")},
        "drift_ppm": f"{clock['drift_ppm']:.3f}",
        "state": clock["state"],
        "epoch": str(clock["epoch"]),
        "recording": {None: "unknown", True: "yes", False: "no"}[device["recording"]],
    }
    for stream in device["streams"]:
        values[f"{stream['name']}_hz"] = f"{stream['recent_rate_in_hz']:.1f}"
    dropped = {reason: n for s in device["streams"] for reason, n in s["dropped"].items()}
    values["samples_dropped"] = str(sum(sum(s["dropped"].values()) for s in device["streams"]))
    values["dropped_by"] = ", ".join(sorted(dropped)) or "nothing"
    values["malformed"] = str(sum(device["malformed"].values()))
    if (log := device.get("log")) is not None:  # the device's own, where it is listened to
        values |= {"log errors": str(log["errors"]), "log warnings": str(log["warnings"])}
        values["last log line"] = log["last"]
    return _status(level, f"{name}: {device['name']}", device["name"], text, values)


def _status(level: bytes, name: str, hardware_id: str, message: str, values: dict[str, str]) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def _number(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:.9f}"
