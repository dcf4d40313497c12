"""The one control surface: what the command line, and later ROS, LSL markers and HTTP, can ask of the daemon."""

from __future__ import annotations

from typing import Any

from bridge import __version__
from bridge.pipeline import Device, Pipeline
from bridge.sources import Source


class Control:
    """Answers questions about a running daemon. Every answer is made of JSON types."""

    def __init__(self, pipeline: Pipeline, sources: list[Source]) -> None:
        self._pipeline = pipeline
        self._sources = sources
        self._started_ns = pipeline.now_ns()

    def status(self) -> dict[str, Any]:
        """Everything that is known now: devices with clock and streams, sources, sinks, seconds since the start."""
        now_ns = self._pipeline.now_ns()
        return {
            "version": __version__,
            "duration_s": (now_ns - self._started_ns) / 1e9,
            "devices": [_device(device, now_ns, self.sink_names) for device in self._pipeline.devices.values()],
            "sources": [{"name": source.name, **source.status()} for source in self._sources],
            "sinks": self.sink_names,
        }

    @property
    def sink_names(self) -> list[str]:
        return [sink.name for sink in self._pipeline.sinks]


def _device(device: Device, now_ns: int, sinks: list[str]) -> dict[str, Any]:
    clock = device.clock_status(now_ns)
    streams = []
    for stream in device.streams.values():
        recent_in_hz, recent_out_hz = stream.recent_rates_hz()
        streams.append(
            {
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
            }
        )
    return {
        "name": device.descriptor.name,
        "kind": device.descriptor.kind,
        "connected": device.connected,
        "clock": {
            "state": clock.state.name.lower(),
            "offset_s": _seconds(clock.offset_ns),
            "bound_s": _seconds(clock.bound_ns),
            "precision_s": _seconds(clock.precision_ns),
            "rtt_min_s": _seconds(clock.rtt_min_ns),
            "rtt_median_s": _seconds(clock.rtt_median_ns),
            "drift_ppm": clock.drift_ppm,
            "age_s": _seconds(clock.age_ns),
            "epoch": clock.epoch,
            "pings_accepted": clock.pings_accepted,
            "pings_rejected": device.clock.pings_rejected,
        },
        "streams": streams,
        "malformed": dict(device.malformed),
    }


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9
