"""A minute of the soak (`make soak` is half an hour of it): every kind of fault once, and nothing is left of any."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.figures import Figures, Reading, slope
from benchmarks.soak.lab import Lab
from benchmarks.soak.run import POOL_THREADS, Soak

SEED = 4
SECONDS, EVERY_S = 60.0, 3.5


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_minute_of_faults_is_survived_and_leaves_nothing_open(tmp_path: Path) -> None:
    with Lab(tmp_path, SEED) as lab:
        soak = Soak(lab, SEED, SECONDS, EVERY_S, print)
        soak.run()
        print(soak.report())
        # Survived, no traceback, every device back within five seconds, and every LSL sample at the reader.
        assert soak.judge() == [], lab.daemon.errors()[-5000:]
        assert soak.before is not None
        assert soak.after is not None
        assert soak.after.files <= soak.before.files
        assert soak.after.threads <= soak.before.threads + POOL_THREADS - 1
        kinds = {kind for kind, count in soak.begun.items() if count}
        wanted = {"killed", "departed", "stopped", "capture_clock_set", "app_clock_restarted", "client_stopped"}
        wanted |= {"mailbox_flooded", "backbone_flooded", "beacon_flooded", "control_flooded", "reader_lsl_stopped"}
        assert kinds >= wanted
        # The floods have arrived.
        malformed = {device["name"]: device["malformed"] for device in soak.last["devices"]}
        assert malformed["bad_phone"]["gaze"] > 100
        assert sum(each.get("datums_malformed", 0) for each in malformed.values()) > 100
        (ndsi,) = (source for source in soak.last["sources"] if source["name"].startswith("ndsi"))
        assert ndsi["counts"]["beacons_malformed"] > 100
        if lab.catches_hangup:  # a device more, a file that is refused, the device gone, nothing new
            assert soak.begun["reloaded"] >= 4
            assert "refused" in lab.daemon.errors()
            assert "one_more" not in {device["name"] for device in soak.last["devices"]}
        assert lab.daemon.stop() == 0


# --- the judge itself -------------------------------------------------------------------------------------------


def _noisy(per_hour: float, seconds: int) -> tuple[list[float], list[float]]:
    """A line with bursts, which are not a slope."""
    times_s = [float(second) for second in range(seconds)]
    return times_s, [100 + per_hour * t / 3600 + 5 * (t % 97 < 9) + 0.02 * (t % 13) for t in times_s]


@pytest.mark.parametrize("per_hour", [-3.0, 0.0, 0.5, 1.0, 20.0])
def test_the_slope_of_a_line_with_bursts_is_found_between_its_limits(per_hour: float) -> None:
    found = slope(*_noisy(per_hour, 1200))
    assert found.low - 0.05 <= per_hour <= found.high + 0.05
    assert abs(found.value - per_hour) < 0.2


def test_a_leak_of_two_megabytes_an_hour_is_told_from_one() -> None:
    assert slope(*_noisy(2.0, 1200)).low > 1.0
    assert slope(*_noisy(0.5, 1200)).low < 1.0


def test_one_step_in_the_middle_widens_the_limits_rather_than_hiding() -> None:
    times_s = [float(second) for second in range(1200)]
    found = slope(times_s, [100.0 + (t > 600) for t in times_s])
    assert found.high > 1.0


def test_of_too_little_nothing_is_said() -> None:
    assert str(slope([0.0, 1.0], [1.0, 2.0])).count("nan") == 3


def _reading(files: int, time_s: float) -> Reading:
    return Reading(time_s, 0, 0, 0, 0, files, 1, 0.0, 0.0, None)


def test_files_that_come_and_go_are_no_growth_and_one_in_two_minutes_that_stays_is() -> None:
    """As a reload that adds a device and one that removes it, in turn, with dips while devices are down."""
    bursts = [_reading(300 + 70 * (t % 240 < 120) - 20 * (t % 50 < 4), float(t)) for t in range(1800)]
    leaks = [_reading(300 + 20 * (t % 7 < 3) + t // 120, float(t)) for t in range(1800)]
    assert Figures(bursts, 1800.0).slope("files").low <= 0
    assert Figures(leaks, 1800.0).slope("files").low > 0
