"""A LabRecorder recording beside what the simulators know: which sample is which, and how wrong its stamp is."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyxdf

SAME_INSTANT_NS = 2_000  # a device time of 1.8e9 s as float64 seconds is exact to 240 ns
MS = 1e3


@dataclass
class Recorded:
    """One stream of a recording, as pyxdf loads it by default; ``device_time`` is its last channel."""

    info: dict[str, Any]
    stamps_s: Any
    values: Any

    @property
    def labels(self) -> list[str]:
        return [channel["label"][0] for channel in self.channels()]

    def channels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.info["desc"][0]["channels"][0]["channel"]
        return found

    def column(self, label: str) -> Any:
        return self.values[:, self.labels.index(label)]

    def describe(self, part: str) -> dict[str, str]:
        """A part of the metadata, such as ``acquisition``."""
        return {key: value[0] for key, value in self.info["desc"][0][part][0].items()}


def load(xdf: Path, **options: Any) -> dict[str, Recorded]:
    """All streams of a recording by name; the test fails when a name is there twice."""
    streams, _ = pyxdf.load_xdf(str(xdf), **options)
    recorded: dict[str, Recorded] = {}
    for stream in streams:
        name = stream["info"]["name"][0]
        assert name not in recorded, f"{name} is in the recording twice"
        recorded[name] = Recorded(stream["info"], np.asarray(stream["time_stamps"]), stream["time_series"])
    return recorded


@dataclass
class Comparison:
    """Recorded samples with their truths, in the order of the recording. Errors are recorded minus true time."""

    rows: list[dict[str, Any]]
    errors_s: Any

    def figures(self) -> dict[str, float]:
        """The size of the errors, ms."""
        size_ms = np.abs(self.errors_s) * MS
        p50, p99 = np.percentile(size_ms, (50, 99))
        return {
            "n": len(size_ms),
            "p50_ms": round(float(p50), 4),
            "p99_ms": round(float(p99), 4),
            "max_ms": round(float(size_ms.max()), 4),
        }


def compare_numbers(recorded: Recorded, truth: list[dict[str, Any]], labels: tuple[str, ...]) -> Comparison:
    """Finds every recorded sample's truth by its device time and checks the values (``labels`` in the truth's order).

    Fails when a sample has no truth of its own, which is also how a sample that is there twice is found.
    """
    ordered = sorted(truth, key=lambda row: row["device_ns"])
    instants = [row["device_ns"] for row in ordered]
    columns = np.column_stack([recorded.column(label) for label in labels])
    taken: set[int] = set()
    rows = []
    for device_s, values in zip(recorded.values[:, -1], columns, strict=True):
        device_ns = round(device_s * 1e9)
        index = bisect_left(instants, device_ns - SAME_INSTANT_NS)
        while index < len(instants) and instants[index] <= device_ns + SAME_INSTANT_NS:
            if index not in taken and np.allclose(values, ordered[index]["payload"], rtol=1e-6, atol=1e-6):
                break
            index += 1
        else:
            raise AssertionError(f"no truth is left for the sample {values} of device time {device_s:.6f} s")
        taken.add(index)
        rows.append(ordered[index])
    return _comparison(recorded, rows)


def compare_texts(recorded: Recorded, truth: list[dict[str, Any]]) -> Comparison:
    """The same for texts, which carry no device time: of the truths with this text, the nearest one in time."""
    by_text = defaultdict(list)
    for row in truth:
        by_text[row["payload"]].append(row)
    rows = []
    for stamp_s, (text,) in zip(recorded.stamps_s, recorded.values, strict=True):
        assert by_text[text], f"no truth is left for the text {text!r}"
        nearest = min(by_text[text], key=lambda row: abs(row["host_ns"] * 1e-9 - stamp_s))
        by_text[text].remove(nearest)
        rows.append(nearest)
    return _comparison(recorded, rows)


def _comparison(recorded: Recorded, rows: list[dict[str, Any]]) -> Comparison:
    return Comparison(rows, recorded.stamps_s - np.array([row["host_ns"] for row in rows]) * 1e-9)


def missing(rows: list[dict[str, Any]], truth: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The true samples between the first and the last of ``rows`` that are not in it.

    Between them in both orders: Capture's gaze is not sent in the order of its stamps, a recorder begins by the stamps,
    and a subscriber by what is sent.
    """
    found = {row["sequence"] for row in rows}
    lowest, highest = min(found), max(found)
    first, last = min(row["host_ns"] for row in rows), max(row["host_ns"] for row in rows)
    return [
        row
        for row in truth
        if row["sent"]
        and first <= row["host_ns"] <= last
        and lowest < row["sequence"] < highest
        and row["sequence"] not in found
    ]


def goes_backwards(recorded: Recorded) -> list[tuple[float, float]]:
    """The pairs of neighbouring stamps of which the second is the earlier one."""
    return [(one, two) for one, two in pairwise(recorded.stamps_s.tolist()) if two < one]
