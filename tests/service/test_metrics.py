"""The metrics: every number of a status under its name, as Prometheus' own parser reads them, and bounded."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from bridge.service import metrics
from bridge.service.metrics import MAX_DEVICES, MAX_LABEL_CHARACTERS, MAX_REASONS, MAX_STREAMS, OTHER, Metrics
from tests.service.statuses import clock, device, marker, status, stream

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(tree: dict[str, Any]) -> Samples:
    """Every sample by name and labels. Fails where two have the same."""
    found: Samples = {}
    for family in text_string_to_metric_families(Metrics(lambda: tree).text().decode("utf-8")):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def named(samples: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {labels: value for (found, labels), value in samples.items() if found == name}


def test_the_daemon_and_its_process() -> None:
    found = scraped(status(problems=["a", "b"]))
    assert value(found, "pupil_bridge_build_info", version="1.2.3") == 1
    assert value(found, "pupil_bridge_uptime_seconds") == 83.2
    assert value(found, "pupil_bridge_problems") == 2
    assert value(found, "pupil_bridge_loop_lag_seconds") == 0.002
    assert value(found, "pupil_bridge_loop_lag_max_seconds") == 0.03
    assert value(found, "pupil_bridge_config_reloads_total") == 1
    assert value(found, "pupil_bridge_config_refused") == 0
    assert value(found, "process_resident_memory_bytes") == 90e6
    assert value(found, "process_open_fds") == 40
    assert value(found, "process_threads") == 9
    assert value(found, "process_cpu_seconds_total") == 12.5


def test_a_refused_configuration_is_one() -> None:
    tree = status()
    tree["config"]["refused"] = "2 faults"
    assert value(scraped(tree), "pupil_bridge_config_refused") == 1


def test_a_device_and_its_clock() -> None:
    found = scraped(status(device("phone", malformed={"event": 3}, clock=clock(state="bridging"))))
    assert value(found, "pupil_bridge_device_connected", device="phone", kind="companion") == 1
    assert value(found, "pupil_bridge_device_malformed_messages_total", device="phone", reason="event") == 3
    assert value(found, "pupil_bridge_clock_offset_seconds", device="phone") == -1763741234.123456
    assert value(found, "pupil_bridge_clock_bound_seconds", device="phone") == 0.000321
    assert value(found, "pupil_bridge_clock_precision_seconds", device="phone") == 0.00001
    assert value(found, "pupil_bridge_clock_drift_ratio", device="phone") == 50.12 / 1e6
    assert value(found, "pupil_bridge_clock_round_trip_min_seconds", device="phone") == 0.0006
    assert value(found, "pupil_bridge_clock_round_trip_median_seconds", device="phone") == 0.0008
    assert value(found, "pupil_bridge_clock_age_seconds", device="phone") == 0.5
    assert value(found, "pupil_bridge_clock_epoch", device="phone") == 2
    assert value(found, "pupil_bridge_clock_pings_accepted_total", device="phone") == 300
    assert value(found, "pupil_bridge_clock_pings_rejected_total", device="phone") == 4
    states = {dict(labels)["state"]: value for labels, value in named(found, "pupil_bridge_clock_state").items()}
    assert states == {"unlocked": 0, "locked": 0, "bridging": 1, "holdover": 0}


def test_the_states_are_those_of_the_clock() -> None:
    from bridge.clock import ClockState

    assert set(metrics.CLOCK_STATES) == {state.name.lower() for state in ClockState}


def test_a_recording_is_known_or_left_out() -> None:
    tree = status(device("on", recording=True), device("off", recording=False), device("unknown"))
    found = named(scraped(tree), "pupil_bridge_device_recording")
    assert {dict(labels)["device"]: value for labels, value in found.items()} == {"on": 1, "off": 0}


def test_a_stream() -> None:
    drops = {"late": 2, "ros2_queue_full": 8}
    found = scraped(status(device("phone", streams=[stream("gaze", dropped=drops)])))
    labels = {"device": "phone", "stream": "gaze"}
    assert value(found, "pupil_bridge_stream_samples_received_total", **labels) == 5000
    assert value(found, "pupil_bridge_stream_samples_sent_total", **labels, sink="lsl") == 4990
    assert value(found, "pupil_bridge_stream_samples_sent_total", **labels, sink="ros2") == 4980
    assert value(found, "pupil_bridge_stream_samples_dropped_total", **labels) == 10
    assert value(found, "pupil_bridge_stream_samples_dropped_by_reason_total", **labels, reason="late") == 2
    assert value(found, "pupil_bridge_stream_samples_dropped_by_reason_total", **labels, reason="ros2_queue_full") == 8
    assert value(found, "pupil_bridge_stream_age_seconds", **labels) == 0.004
    assert value(found, "pupil_bridge_stream_receive_rate_hertz", **labels) == 199.6
    assert value(found, "pupil_bridge_stream_send_rate_hertz", **labels) == 199.4
    assert value(found, "pupil_bridge_stream_device_rate_hertz", **labels) == 199.8
    assert value(found, "pupil_bridge_stream_expected_rate_hertz", **labels) == 200


def test_drops_are_zero_before_the_first_one_so_that_an_alert_sees_that() -> None:
    found = scraped(status(device("phone", streams=[stream("gaze")])))
    assert value(found, "pupil_bridge_stream_samples_dropped_total", device="phone", stream="gaze") == 0
    assert named(found, "pupil_bridge_stream_samples_dropped_by_reason_total") == {}


def test_what_is_not_known_is_left_out_and_not_zero() -> None:
    unknown = dict.fromkeys(("offset_s", "bound_s", "precision_s", "rtt_min_s", "rtt_median_s", "age_s"))
    silent = stream("gaze", age_s=None, rate_in_hz=None, expected_rate_hz=None)
    found = scraped(status(device("phone", clock=clock(**unknown), streams=[silent])))
    for name in ("offset", "bound", "precision", "round_trip_min", "round_trip_median", "age"):
        assert named(found, f"pupil_bridge_clock_{name}_seconds") == {}
    for name in ("age_seconds", "device_rate_hertz", "expected_rate_hertz"):
        assert named(found, f"pupil_bridge_stream_{name}") == {}
    assert value(found, "pupil_bridge_stream_receive_rate_hertz", device="phone", stream="gaze") == 199.6


def test_sources_and_sinks() -> None:
    counts = {"beacons_malformed": 4}
    found = scraped(status(sources=[{"name": "ndsi", "counts": counts}, {"name": "core"}]))
    assert named(found, "pupil_bridge_source_events_total") == {
        frozenset({("source", "ndsi"), ("event", "beacons_malformed")}): 4
    }
    assert value(found, "pupil_bridge_sink_queued_samples", sink="ros2") == 3
    assert value(found, "pupil_bridge_sink_queue_size_samples", sink="ros2") == 1000
    assert value(found, "pupil_bridge_sink_queue_size_samples", sink="lsl") is None


def test_marker_streams() -> None:
    refused = {"phone": 2, "empty": 1}
    away = marker("Sounds (on lab-2)", connected=False, uncertainty_s=None)
    found = scraped(status(markers=[marker("Markers", refused=refused, dropped=5, waiting=3), away]))
    assert value(found, "pupil_bridge_marker_stream_connected", stream="Markers") == 1
    assert value(found, "pupil_bridge_marker_stream_connected", stream="Sounds (on lab-2)") == 0
    assert value(found, "pupil_bridge_marker_stream_waiting", stream="Markers") == 3
    assert value(found, "pupil_bridge_markers_received_total", stream="Markers") == 12
    assert value(found, "pupil_bridge_markers_done_total", stream="Markers") == 24
    assert value(found, "pupil_bridge_markers_dropped_total", stream="Markers") == 5
    assert value(found, "pupil_bridge_markers_refused_total", stream="Markers", reason="phone") == 2
    assert value(found, "pupil_bridge_markers_refused_total", stream="Markers", reason="empty") == 1
    uncertain = named(found, "pupil_bridge_marker_stream_uncertainty_seconds")
    assert uncertain == {frozenset({("stream", "Markers")}): 0.00004}


def test_a_status_of_which_parts_are_missing_has_the_rest() -> None:
    tree = status(device("phone"))
    for part in ("problems", "loop", "process", "config", "sink_status", "markers"):
        del tree[part]
    found = scraped(tree)
    assert named(found, "pupil_bridge_config_refused") == {}
    assert named(found, "process_resident_memory_bytes") == {}
    assert value(found, "pupil_bridge_device_connected", device="phone", kind="companion") == 1


def test_names_follow_the_conventions() -> None:
    text = Metrics(lambda: status(device("phone"))).text().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert len(types) > 30
    for name, kind in types.items():
        assert re.fullmatch("(pupil_bridge|process)_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search("_(ms|ns|ppm|percent|s|hz)(_|$)", name), f"{name} is not in a base unit"
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert helps.keys() == types.keys()
    assert all(sentence.endswith(".") for sentence in helps.values())


def test_every_metric_that_the_page_names_is_there() -> None:
    drops = {"late": 1}
    found = {name for name, _ in scraped(status(device("phone", streams=[stream("gaze", dropped=drops)])))}
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    named_there = set(re.findall(r"\b(?:pupil_bridge|process)_[a-z_]+[a-z]\b", page))
    assert len(named_there) >= 9
    assert named_there <= found


def test_they_are_in_a_registry_of_their_own() -> None:
    before = set(REGISTRY._collector_to_names)
    first, second = Metrics(status), Metrics(status)
    assert first.text() == second.text()
    assert set(REGISTRY._collector_to_names) == before


def test_a_status_is_asked_for_at_every_scrape_and_not_before() -> None:
    asked = []

    def ask() -> dict[str, Any]:
        asked.append(1)
        return status(duration_s=float(len(asked)))

    made = Metrics(ask)
    assert asked == []
    assert b"pupil_bridge_uptime_seconds 1.0" in made.text()
    assert b"pupil_bridge_uptime_seconds 2.0" in made.text()


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_two_of_one_name_are_told_apart() -> None:
    tree = status(device("a"), device("a"), sources=[{"name": "ndsi", "counts": {"x": n}} for n in (1, 2, 3)])
    found = scraped(tree)
    assert value(found, "pupil_bridge_device_connected", device="a_2", kind="companion") == 1
    assert value(found, "pupil_bridge_source_events_total", source="ndsi_3", event="x") == 3


def test_long_names_that_begin_alike_are_told_apart_and_short() -> None:
    found = scraped(status(device("a" * 1000 + "1"), device("a" * 1000 + "2")))
    labels = [dict(key)["device"] for key in named(found, "pupil_bridge_device_connected")]
    assert len(set(labels)) == 2
    assert max(map(len, labels)) <= MAX_LABEL_CHARACTERS


def test_reasons_without_end_are_counted_together() -> None:
    drops = {f"reason_{n}": 1 for n in range(1000)}
    found = scraped(status(device("phone", streams=[stream("gaze", dropped=drops)], malformed=drops)))
    for name in ("pupil_bridge_stream_samples_dropped_by_reason_total", "pupil_bridge_device_malformed_messages_total"):
        samples = named(found, name)
        assert len(samples) == MAX_REASONS
        assert sum(samples.values()) == 1000
        other = [value for labels, value in samples.items() if dict(labels)["reason"] == OTHER]
        assert other == [1000 - (MAX_REASONS - 1)]


def test_devices_and_streams_without_end_are_not_all_shown() -> None:
    tree = status(*(device(f"d{n}", streams=[stream(f"s{m}") for m in range(20)]) for n in range(200)))
    found = scraped(tree)
    assert len(named(found, "pupil_bridge_device_connected")) == MAX_DEVICES
    assert len(named(found, "pupil_bridge_stream_samples_received_total")) == MAX_DEVICES * MAX_STREAMS


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(), max_size=6), st.floats(), st.dictionaries(st.text(), st.integers(0, 2**60), max_size=40))
def test_whatever_strangers_are_called_it_can_be_read(names: list[str], number: float, counts: dict[str, int]) -> None:
    odd = clock(offset_s=number, bound_s=number, drift_ppm=number, state=names[0] if names else "locked")
    found = scraped(
        status(
            *(device(name, clock=odd, streams=[stream(name, dropped=counts)], malformed=counts) for name in names),
            sources=[{"name": name, "counts": counts} for name in names],
            sink_status=[{"name": name, "queued": 1} for name in names],
        )
    )
    assert len(named(found, "pupil_bridge_device_connected")) == len(names)
    total = sum(named(found, "pupil_bridge_source_events_total").values())
    assert math.isclose(total, len(names) * sum(counts.values()))
