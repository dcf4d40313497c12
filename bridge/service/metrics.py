"""The status as Prometheus metrics. Names end in their base unit, what only grows in ``_total``.

A counter begins anew when the daemon does, or when the stream's device is configured anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
CLOCK_STATES = ("unlocked", "locked", "bridging", "holdover")
# What strangers can add to. Discovered devices are bounded by the sources; a hundred configured ones is a big lab.
MAX_DEVICES = 128
MAX_STREAMS = 16  # of a device
MAX_REASONS = 32  # of one stream or source; what is beyond is counted together
MAX_SOURCES = 64
MAX_SINKS = 16
MAX_MARKER_STREAMS = 64
MAX_LABEL_CHARACTERS = 100
OTHER = "other"

Tree = dict[str, Any]


class StatusCollector(Collector):
    """Makes the metrics anew from ``status()``, at every scrape."""

    def __init__(self, status: Callable[[], Tree]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return []  # so that to register it does not ask for a status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from _daemon(status)
        devices = _distinct(status["devices"], MAX_DEVICES)
        yield from _devices(devices)
        yield from _clocks(devices)
        yield from _streams(
            [
                (device, name, stream)
                for device, tree in devices.items()
                for name, stream in _distinct(tree["streams"], MAX_STREAMS).items()
            ]
        )
        yield from _sources(status)
        yield from _markers(status)
        yield from _sinks(status)
        yield from _process(status.get("process", {}))


class Metrics:
    """The metrics as text, in Prometheus' format 0.0.4 of the content type ``CONTENT_TYPE``."""

    def __init__(self, status: Callable[[], Tree]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)  # of its own: no other's metrics are in it
        self._registry.register(StatusCollector(status))

    def text(self) -> bytes:
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """The text of one status metric by metric: of 30 devices they take 10 ms together, too long for the loop."""
        for metric in self._registry.collect():
            yield generate_latest(_One(metric))


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


class _Family:
    """One metric with its labels. A value that is not known has no sample, and not zero."""

    def __init__(self, metric: CounterMetricFamily | GaugeMetricFamily) -> None:
        self.metric = metric

    def add(self, value: float | bool | None, *labels: str) -> None:
        if value is not None:
            self.metric.add_metric([_label(label) for label in labels], float(value))


def _gauge(name: str, text: str, *labels: str) -> _Family:
    return _Family(GaugeMetricFamily(f"pupil_bridge_{name}", text, labels=labels))


def _counter(name: str, text: str, *labels: str) -> _Family:
    return _Family(CounterMetricFamily(f"pupil_bridge_{name}", text, labels=labels))


def _label(text: str) -> str:
    # A lone surrogate cannot be written as UTF-8 and would spoil the whole scrape.
    return text[:MAX_LABEL_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _distinct(trees: Iterable[Tree], limit: int) -> dict[str, Tree]:
    """By name as far as the limit goes; of two with one label the second one gets a number."""
    found: dict[str, Tree] = {}
    for tree in trees:
        if len(found) == limit:
            break
        name, number = _label(tree["name"]), 1
        while name in found:
            number += 1
            name = f"{_label(tree['name'])[: MAX_LABEL_CHARACTERS - 4]}_{number}"
        found[name] = tree
    return found


def _reasons(counts: Mapping[str, int]) -> Mapping[str, int]:
    """At most so many reasons, those that came first; the others' counts together."""
    if len(counts) <= MAX_REASONS:
        kept = Counter[str]()
        for reason, count in counts.items():
            kept[_label(reason)] += count
        return kept
    kept = Counter({OTHER: 0})
    for reason, count in counts.items():
        reason = _label(reason)
        kept[reason if reason in kept or len(kept) < MAX_REASONS else OTHER] += count
    return kept


def _daemon(status: Tree) -> Iterator[Metric]:
    info = _gauge("build_info", "Always 1; the version is in the label.", "version")
    info.add(1, status["version"])
    yield info.metric
    uptime = _gauge("uptime_seconds", "Since the daemon started.")
    uptime.add(status["duration_s"])
    yield uptime.metric
    problems = _gauge("problems", "How many things a person should know now; /healthz has their sentences.")
    problems.add(len(status.get("problems", [])))
    yield problems.metric
    loop = status.get("loop", {})
    lag = _gauge("loop_lag_seconds", "How late the event loop was, at worst in the last second.")
    lag.add(loop.get("lag_s"))
    yield lag.metric
    worst = _gauge("loop_lag_max_seconds", "How late the event loop was, at worst since the start.")
    worst.add(loop.get("worst_lag_s"))
    yield worst.metric
    config = status.get("config", {})
    reloads = _counter("config_reloads_total", "Configurations that were loaded while it ran.")
    reloads.add(config.get("reloads"))
    yield reloads.metric
    refused = _gauge("config_refused", "1 if the last reload was refused, and the configuration before it goes on.")
    refused.add(config.get("refused") is not None if config else None)
    yield refused.metric


def _devices(devices: dict[str, Tree]) -> Iterator[Metric]:
    connected = _gauge("device_connected", "1 while the eye tracker is there.", "device", "kind")
    recording = _gauge("device_recording", "1 while it records; missing where that is not known.", "device")
    malformed = _counter("device_malformed_messages_total", "Messages that broke the protocol.", "device", "reason")
    for name, device in devices.items():
        connected.add(device["connected"], name, device["kind"])
        recording.add(device.get("recording"), name)
        for reason, count in _reasons(device["malformed"]).items():
            malformed.add(count, name, reason)
    yield from (family.metric for family in (connected, recording, malformed))


def _clocks(devices: dict[str, Tree]) -> Iterator[Metric]:
    state = _gauge("clock_state", "1 for the state that the clock is in.", "device", "state")
    offset = _gauge("clock_offset_seconds", "What is added to device time to get host time.", "device")
    gauges = {
        "bound_s": _gauge("clock_bound_seconds", "The offset is wrong by at most this.", "device"),
        "precision_s": _gauge("clock_precision_seconds", "How much the offset scatters.", "device"),
        "rtt_min_s": _gauge("clock_round_trip_min_seconds", "The fastest recent round trip.", "device"),
        "rtt_median_s": _gauge("clock_round_trip_median_seconds", "The usual recent round trip.", "device"),
        "age_s": _gauge("clock_age_seconds", "Since the last round trip.", "device"),
        "epoch": _gauge("clock_epoch", "How often the device's clock was set or replaced.", "device"),
    }
    drift = _gauge("clock_drift_ratio", "Gain of the device's clock; 1e-6 is one part per million.", "device")
    accepted = _counter("clock_pings_accepted_total", "Round trips that were used.", "device")
    rejected = _counter("clock_pings_rejected_total", "Round trips that were set aside.", "device")
    for name, device in devices.items():
        clock = device["clock"]
        for known in CLOCK_STATES:
            state.add(clock["state"] == known, name, known)
        offset.add(clock["offset_s"], name)
        for key, gauge in gauges.items():
            gauge.add(clock[key], name)
        drift.add(None if clock["drift_ppm"] is None else clock["drift_ppm"] / 1e6, name)
        accepted.add(clock["pings_accepted"], name)
        rejected.add(clock["pings_rejected"], name)
    yield from (family.metric for family in (state, offset, *gauges.values(), drift, accepted, rejected))


def _streams(streams: list[tuple[str, str, Tree]]) -> Iterator[Metric]:
    labels = ("device", "stream")
    received = _counter("stream_samples_received_total", "Samples from the device.", *labels)
    sent = _counter("stream_samples_sent_total", "Samples that a sink passed on.", *labels, "sink")
    # A reason appears with its first drops, of which increase() sees nothing; the sum is there from the beginning.
    dropped = _counter("stream_samples_dropped_total", "Samples that did not leave, or not by every sink.", *labels)
    reasons = _counter("stream_samples_dropped_by_reason_total", "The same, by reason.", *labels, "reason")
    gauges = {
        "age_s": _gauge("stream_age_seconds", "Since the last sample came; missing before the first.", *labels),
        "recent_rate_in_hz": _gauge("stream_receive_rate_hertz", "Samples in, over the last seconds.", *labels),
        "recent_rate_out_hz": _gauge("stream_send_rate_hertz", "Samples out a sink, over the last seconds.", *labels),
        "rate_in_hz": _gauge("stream_device_rate_hertz", "Mean rate by the device's own stamps.", *labels),
        "expected_rate_hz": _gauge("stream_expected_rate_hertz", "As configured; missing if it is not.", *labels),
    }
    for device, name, stream in streams:
        received.add(stream["samples_in"], device, name)
        for sink, count in _reasons(stream["samples_out"]).items():
            sent.add(count, device, name, sink)
        dropped.add(sum(stream["dropped"].values()), device, name)
        for reason, count in _reasons(stream["dropped"]).items():
            reasons.add(count, device, name, reason)
        for key, gauge in gauges.items():
            gauge.add(stream[key], device, name)
    yield from (family.metric for family in (received, sent, dropped, reasons, *gauges.values()))


def _sources(status: Tree) -> Iterator[Metric]:
    events = _counter("source_events_total", "What a source counts, mostly what it refused.", "source", "event")
    for name, source in _distinct(status["sources"], MAX_SOURCES).items():
        counts = source.get("counts", {})
        for event, count in _reasons(counts).items():
            events.add(count, name, event)
    yield events.metric


def _markers(status: Tree) -> Iterator[Metric]:
    connected = _gauge("marker_stream_connected", "1 while the LSL stream of markers is there.", "stream")
    waiting = _gauge("marker_stream_waiting", "Markers that wait for a device.", "stream")
    uncertainty = _gauge("marker_stream_uncertainty_seconds", "Of LSL's correction of the sender's clock.", "stream")
    received = _counter("markers_received_total", "LSL markers that came.", "stream")
    done = _counter("markers_done_total", "Markers that were carried out, once for each device.", "stream")
    dropped = _counter("markers_dropped_total", "Markers that were more than devices could take.", "stream")
    refused = _counter("markers_refused_total", "By the device that refused, or by what is wrong.", "stream", "reason")
    for name, stream in _distinct(status.get("markers", []), MAX_MARKER_STREAMS).items():
        connected.add(stream["connected"], name)
        waiting.add(stream["waiting"], name)
        uncertainty.add(stream["uncertainty_s"], name)
        received.add(stream["taken"], name)
        done.add(stream["done"], name)
        dropped.add(stream["dropped"], name)
        for reason, count in _reasons(stream["refused"]).items():
            refused.add(count, name, reason)
    yield from (family.metric for family in (connected, waiting, uncertainty, received, done, dropped, refused))


def _sinks(status: Tree) -> Iterator[Metric]:
    queued = _gauge("sink_queued_samples", "Samples that wait in the sink's queue.", "sink")
    size = _gauge("sink_queue_size_samples", "How many may wait before the oldest is dropped.", "sink")
    for name, sink in _distinct(status.get("sink_status", []), MAX_SINKS).items():
        queued.add(sink.get("queued"), name)
        size.add(sink.get("queue_size"), name)
    yield from (queued.metric, size.metric)


def _process(process: Tree) -> Iterator[Metric]:
    """Under the names that every Prometheus client library uses, so that common dashboards work."""
    for key, metric in (
        ("rss_bytes", GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", labels=())),
        ("open_files", GaugeMetricFamily("process_open_fds", "Open file descriptors.", labels=())),
        ("threads", GaugeMetricFamily("process_threads", "Threads.", labels=())),
        ("cpu_s", CounterMetricFamily("process_cpu_seconds_total", "User and system time.", labels=())),
    ):
        family = _Family(metric)
        family.add(process.get(key))
        yield family.metric
