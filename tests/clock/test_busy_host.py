"""A computer that has no time, at the benchmark's scenes and as it was."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from benchmarks.clock.busy import BUSY, JITTERS_US, MS, SAMPLE_HZ, SLOW_JITTERS_US, Scene, SlowScene
from benchmarks.clock.live.__main__ import bridge
from benchmarks.clock.live.figures import figures
from benchmarks.clock.live.host import Log

RUNS = sorted((Path(__file__).parents[1] / "data").glob("busy_loopback_*.npz"))


@pytest.mark.parametrize("jitter_us", JITTERS_US)
@pytest.mark.parametrize("name", ["stopped", "throttled", "short"])
def test_samples_that_waited_for_a_busy_host_do_not_bend_its_clocks(name: str, jitter_us: int) -> None:
    for seed in range(8):
        scene = Scene(seed, BUSY[name], jitter_us)
        scene.play()
        assert scene.clock.epoch == 0
        assert len(scene.errors) > (BUSY[name].busy_s + 8) * SAMPLE_HZ
        assert [each for each in scene.errors if abs(each[1]) > each[2]] == []
        assert median(bound for _, _, bound in scene.errors) < 2.0, "and it is worth something"


def test_a_step_after_a_busy_moment_shows_as_fast_as_ever() -> None:
    scene = Scene(0, BUSY["stopped"], 300)
    scene.play()
    for number in range(1, 5):
        true_ns = scene.now_ns + number * 8 * MS
        scene.clock.arrival(scene.device_ns(true_ns) - 200 * MS, true_ns + MS, scene.track)
    assert scene.clock.epoch == 1
    assert scene.clock.step_ns == pytest.approx(-200 * MS, abs=2 * MS)


@pytest.mark.parametrize("jitter_us", SLOW_JITTERS_US)
def test_ways_that_become_longer_and_shorter_do_not_bend_a_young_clock(jitter_us: int) -> None:
    for seed in range(8):
        scene = SlowScene(seed, 10, jitter_us)
        scene.play()
        errors = [each for each in scene.errors if each[0] > scene.judged_from_s]
        assert len(errors) > 500
        assert [each for each in errors if abs(each[1]) > each[2]] == []
        assert median(bound for _, _, bound in errors) < 0.2, "and it is worth something"


class Told(Scene):
    """Tells the widest bound now and then, as rows of `Sync` do. ``missed_ns``: by how much the wider of the rows
    before and after a sample said too little."""

    def play(self) -> None:
        self.missed_ns = [0]
        self._bounds_ns: list[int] = []
        self._told_ns, self._row_ns = 0, 0
        super().play()

    def _sample(self, true_ns: int) -> None:
        super()._sample(true_ns)
        mapped = self.clock.map(self.device_ns(true_ns))
        if mapped is not None:
            self._bounds_ns.append(mapped.bound_ns)
        if self.now_ns - self._told_ns > 250 * MS and self._bounds_ns:
            told_ns = self.clock.widest_bound_ns(self.now_ns)
            assert told_ns is not None
            self.missed_ns += [bound_ns - max(told_ns, self._row_ns) for bound_ns in self._bounds_ns]
            self.clock.told()
            self._bounds_ns, self._told_ns, self._row_ns = [], self.now_ns, told_ns


@pytest.mark.parametrize("jitter_us", JITTERS_US)
def test_the_widest_bound_that_is_told_is_that_of_any_sample(jitter_us: int) -> None:
    for seed in range(8):
        scene = Told(seed, BUSY["quiet"], jitter_us)
        scene.play()
        assert max(scene.missed_ns) < 2_000, "for the age of a stamp when it comes"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_ways_that_change_before_they_are_known_do_not_bend_a_clock(path: Path) -> None:
    """Ten seconds of `benchmarks.clock.live --keep` among processes that computed all the time or in turns: in the
    first seconds the fastest samples took 60 us, then 20, or rose by 10."""
    found = figures(Log.replayed(path, bridge()))
    assert found.judged > 500
    assert found.coverage == 1
    assert found.median_bound < 60, "and it is worth something, us"
