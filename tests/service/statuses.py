"""Statuses written by hand, as ``Control.status()`` gives them."""

from __future__ import annotations

from typing import Any


def stream(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "lsl_name": f"pupil_labs_{name}",
        "expected_rate_hz": 200.0,
        "rate_in_hz": 199.8,
        "recent_rate_in_hz": 199.6,
        "recent_rate_out_hz": 199.4,
        "age_s": 0.004,
        "samples_in": 5000,
        "samples_out": {"lsl": 4990, "ros2": 4980},
        "dropped": {},
        "flooding": False,
    } | changes


def clock(**changes: Any) -> dict[str, Any]:
    return {
        "state": "locked",
        "offset_s": -1763741234.123456,
        "bound_s": 0.000321,
        "precision_s": 0.00001,
        "rtt_min_s": 0.0006,
        "rtt_median_s": 0.0008,
        "slew_s": 0.00002,
        "drift_ppm": 50.12,
        "age_s": 0.5,
        "epoch": 2,
        "pings_accepted": 300,
        "pings_rejected": 4,
    } | changes


def device(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "companion",
        "connected": True,
        "recording": None,
        "functions": ["event", "record"],
        "clock": clock(),
        "streams": [stream("gaze"), stream("event", expected_rate_hz=None, age_s=None)],
        "malformed": {},
    } | changes


def marker(stream: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": stream,
        "stream": stream,
        "does": "events",
        "connected": True,
        "uncertainty_s": 0.00004,
        "waiting": 0,
        "taken": 12,
        "done": 24,
        "refused": {},
        "dropped": 0,
    } | changes


def status(*devices: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "duration_s": 83.2,
        "devices": list(devices),
        "sources": [{"name": "ndsi", "type": "ndsi", "peers": [], "counts": {}}],
        "sinks": ["lsl", "ros2"],
        "problems": [],
        "markers": [],
        "loop": {"lag_s": 0.002, "worst_lag_s": 0.03},
        "process": {"rss_bytes": 90_000_000, "open_files": 40, "threads": 9, "cpu_s": 12.5},
        "config": {
            "path": "/etc/pupil-bridge/bridge.toml",
            "loaded_at": "2025-01-01T00:00:00Z",
            "reloads": 1,
            "refused": None,
        },
        "sink_status": [
            {"name": "lsl", "queued": 0, "queue_size": None},
            {"name": "ros2", "queued": 3, "queue_size": 1000},
        ],
    } | changes
