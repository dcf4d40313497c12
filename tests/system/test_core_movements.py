"""Fixations, blinks and surfaces of a Pupil Core, from a simulated Pupil Capture into a LabRecorder's file."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.harness import bridge, free_port, lab_recorder, simulator, truth, wait_for_streams, wait_until
from tests.system.recording import Recorded, goes_backwards, load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NAME = f"core_{random.randrange(10**9)}"  # see test_restart.py
PREFIX = f"pupil_labs_{NAME}"
SUFFIXES = ("fixations", "fixations_live", "Blinks", "Surface_Screen_left", "Surface_Screen_left_fixations", "Sync")
BLINKS, FIXATIONS = 3, 6


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Recorded], Path, dict[str, Any]]:
    """The streams by suffix, the truth, and the device's status at the end."""
    tmp_path = tmp_path_factory.mktemp("movements")
    port, path, xdf = str(free_port(socket.SOCK_STREAM)), tmp_path / "truth.jsonl", tmp_path / "movements.xdf"
    config = (
        f'[[source]]\ntype = "pupil_core"\naddress = "127.0.0.1:{port}"\nname = "{NAME}"\nlive = true\n'
        'topics = ["gaze", "fixations", "blinks", "surfaces"]\nsurfaces = ["Screen left"]\n[[sink]]\ntype = "lsl"\n'
    )
    names = {suffix: f"{PREFIX}_{suffix}" for suffix in SUFFIXES}
    simulated = ("--port", port, "--synthesise", "--truth", str(path), "--drift-ppm", "40", "--jitter-ms", "0.2")
    with simulator("core", tmp_path, *simulated), bridge(tmp_path, config) as daemon:
        daemon.wait_locked(NAME)
        wait_for_streams(*names.values())

        def came(stream: str) -> int:
            return int(daemon.stream(NAME, stream)["samples_in"])

        with lab_recorder(tmp_path, xdf, *(f"name='{name}'" for name in names.values())):
            for stream, more in (("blinks", BLINKS), ("fixations", FIXATIONS)):
                wanted = came(stream) + more
                wait_until(
                    lambda stream=stream, wanted=wanted: came(stream) >= wanted,
                    f"{more} {stream}; {daemon.process.errors()}",
                    timeout_s=60,
                )
            device = daemon.device(NAME)
        assert daemon.process.complaints() == []
        assert daemon.process.stop() == 0
    found = load(xdf, synchronize_clocks=False)
    return {suffix: found[name] for suffix, name in names.items()}, path, device


def within_bounds(streams: dict[str, Recorded], suffix: str, host_ns: list[int]) -> float:
    """The worst error in ms; fails where one is beyond its bound."""
    sync, stamps_s = streams["Sync"], streams[suffix].stamps_s
    errors_s = np.abs(stamps_s - np.array(host_ns) * 1e-9)
    bounds_s = sync.column("bound")
    after = np.clip(np.searchsorted(sync.stamps_s, stamps_s), 1, len(bounds_s) - 1)
    assert (errors_s <= np.maximum(bounds_s[after - 1], bounds_s[after])).all()
    assert goes_backwards(streams[suffix]) == []
    return float(errors_s.max() * 1e3)


def test_each_fixation_is_there_once_from_its_true_start_to_its_true_end(recorded: Any) -> None:
    streams, path, device = recorded
    rows = {row["payload"][0]: row for row in truth(path, "fixation")}
    for suffix in ("fixations", "Surface_Screen_left_fixations"):
        stream = streams[suffix]
        ids = stream.column("fixation id").astype(int).tolist()
        assert len(ids) >= 8
        assert ids == list(range(ids[0], ids[0] + len(ids))), "each once, none is missing"
        true = [rows[number] for number in ids]
        if suffix == "fixations":
            worst_ms = within_bounds(streams, suffix, [row["host_ns"] for row in true])
            print(f"\n{len(ids)} fixations, starts wrong by {worst_ms:.3f} ms at most")
            durations_ms = [(row["payload"][1] - row["device_ns"]) / 1e6 for row in true]
            assert stream.column("duration") == pytest.approx(durations_ms, abs=0.01)
            assert stream.column("duration_s") == pytest.approx(np.array(durations_ms) / 1e3, abs=1e-5)
            assert stream.column("norm_pos_x") == pytest.approx([row["payload"][3] for row in true], abs=0.02)
            assert stream.column("norm_pos_y") == pytest.approx([row["payload"][4] for row in true], abs=0.02)
    assert device["malformed"] == {}


def test_the_windows_are_those_that_capture_sends(recorded: Any) -> None:
    streams, path, _ = recorded
    windows = {(row["payload"][0], row["device_ns"] // 1000): row for row in truth(path, "fixations")}
    stream = streams["fixations_live"]
    keys = [
        (int(number), round(device_s * 1e6))
        for number, device_s in zip(stream.column("fixation id"), stream.column("device_time"), strict=True)
    ]
    true = [next(windows[n, us + off] for off in (0, -1, 1) if (n, us + off) in windows) for n, us in keys]
    assert len(true) > 100
    within_bounds(streams, "fixations_live", [row["host_ns"] for row in true])


def test_each_blink_is_one_and_about_where_the_eyes_were_shut(recorded: Any) -> None:
    """Capture's filter is 0.2 s long: it finds the edges, not the moments."""
    streams, path, _ = recorded
    true = truth(path, "blink")
    stream = streams["Blinks"]
    assert len(stream.stamps_s) >= BLINKS - 1
    for stamp_s, duration_s in zip(stream.stamps_s, stream.column("duration"), strict=True):
        row = min(true, key=lambda each: abs(each["host_ns"] * 1e-9 - stamp_s))
        assert abs(row["host_ns"] * 1e-9 - stamp_s) < 0.08
        assert duration_s == pytest.approx((row["payload"][0] - row["device_ns"]) * 1e-9, abs=0.08)
    edges = {row["host_ns"] for row in truth(path, "blinks") if row["payload"][0] == 1}
    within_bounds(streams, "Blinks", [min(edges, key=lambda ns: abs(ns * 1e-9 - s)) for s in stream.stamps_s.tolist()])


def test_gaze_on_a_surface_is_that_of_the_truth(recorded: Any) -> None:
    streams, path, _ = recorded
    stream = streams["Surface_Screen_left"]
    rows = {round(row["device_ns"] / 1e3): row for row in truth(path, "surfaces.Screen left")}
    micros = [round(device_s * 1e6) for device_s in stream.column("device_time")]
    true = [next(rows[us + off] for off in (0, -1, 1) if us + off in rows) for us in micros]
    assert len(true) > 500
    worst_ms = within_bounds(streams, "Surface_Screen_left", [row["host_ns"] for row in true])
    print(f"\n{len(true)} gazes on the surface, wrong by {worst_ms:.3f} ms at most")
    for number, label in enumerate(("norm_pos_x", "norm_pos_y", "confidence")):
        assert stream.column(label) == pytest.approx([row["payload"][number] for row in true])
    assert stream.column("on_surf") == pytest.approx([float(row["payload"][3]) for row in true])
