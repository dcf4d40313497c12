"""Everything that is known of a running bridge as JSON types, and what of it a person should know now, in sentences."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import psutil

from bridge.pipeline import Device
from bridge.stream_input import StreamInput

SILENT_S = 3.0  # a stream with an expected rate; or so many of its intervals
SILENT_INTERVALS = 10


def device_status(device: Device, now_ns: int, sinks: Iterable[str]) -> dict[str, Any]:
    """One device with its clock and its streams; ``sinks`` are the names that ``samples_out`` has.

    "log" is there only of a device whose own log is listened to.
    """
    clock = device.clock_status(now_ns)
    log = {} if device.log is None else {"log": dict(device.log)}
    return {
        "name": device.descriptor.name,
        "kind": device.descriptor.kind,
        "connected": device.connected,
        "recording": device.recording,
        "functions": sorted(device.actions),
        "clock": {
            "state": clock.state.name.lower(),
            "offset_s": _seconds(clock.offset_ns),
            "bound_s": _seconds(clock.bound_ns),
            "precision_s": _seconds(clock.precision_ns),
            "rtt_min_s": _seconds(clock.rtt_min_ns),
            "rtt_median_s": _seconds(clock.rtt_median_ns),
            "slew_s": clock.slew_ns / 1e9,  # stamps are off by this much more, and glide to the estimate
            "drift_ppm": clock.drift_ppm,
            "age_s": _seconds(clock.age_ns),
            "epoch": clock.epoch,
            "pings_accepted": clock.pings_accepted,
            "pings_rejected": device.clock.pings_rejected,
        },
        "streams": [_stream(stream, now_ns, sinks) for stream in device.streams.values()],
        "malformed": dict(device.malformed),
        **log,
    }


def _stream(stream: StreamInput, now_ns: int, sinks: Iterable[str]) -> dict[str, Any]:
    recent_in_hz, recent_out_hz = stream.recent_rates_hz()
    return {
        "name": stream.descriptor.name,
        "lsl_name": stream.descriptor.lsl_name,
        "expected_rate_hz": stream.descriptor.expected_rate_hz,
        "rate_in_hz": stream.rate_in_hz,
        "recent_rate_in_hz": recent_in_hz,
        "recent_rate_out_hz": recent_out_hz,
        "age_s": None if stream.last_received_ns is None else (now_ns - stream.last_received_ns) / 1e9,
        "samples_in": stream.samples_in,
        "samples_out": {s: stream.outputs[s].samples_out if s in stream.outputs else 0 for s in sinks},
        "dropped": stream.all_drops(),
        "late_kept": stream.late,
        "flooding": stream.flooding,
    }


def device_problems(status: dict[str, Any]) -> list[str]:
    """What is wrong with a device now, from its status; nothing of what was wrong and is over."""
    name, clock = status["name"], status["clock"]
    if not status["connected"]:
        return [f"{name}: not there"]
    problems = []
    if clock["state"] == "unlocked":
        problems.append(f"{name}: its clock is not locked; samples wait or are dropped")
    elif clock["state"] == "holdover":
        problems.append(f"{name}: does not answer; its clock is extrapolated since {clock['age_s']:.0f} s")
    for stream in status["streams"]:
        rate_hz, age_s = stream["expected_rate_hz"], stream["age_s"]
        if stream["flooding"]:
            problems.append(f"{name}: {stream['name']} sends too much; what is beyond the limit is dropped")
        if rate_hz is None:
            continue
        if age_s is None:
            problems.append(f"{name}: {stream['name']} has sent nothing yet")
        elif age_s > max(SILENT_S, SILENT_INTERVALS / rate_hz):
            problems.append(f"{name}: {stream['name']} is silent for {age_s:.0f} s")
    return problems


def rss_bytes() -> int | None:
    """The memory of this process that is not swapped out. None where no file is left to look it up."""
    try:
        rss: int = psutil.Process().memory_info().rss
    except OSError:
        return None
    return rss


def process_status() -> dict[str, Any]:
    """Memory, descriptors, threads and CPU time of this process; None where the system does not tell."""
    found: dict[str, Any] = {"pid": os.getpid(), "rss_bytes": None, "open_files": None, "threads": None, "cpu_s": None}
    try:
        process = psutil.Process()
        with process.oneshot():
            times = process.cpu_times()
            found |= {
                "rss_bytes": process.memory_info().rss,
                "open_files": process.num_fds() if hasattr(process, "num_fds") else None,
                "threads": process.num_threads(),
                "cpu_s": times.user + times.system,
            }
    except OSError:  # no file is left to look it up
        pass
    return found


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9
