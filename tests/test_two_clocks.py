"""Which of two clocks has stamped a sample, soon after one was set."""

from __future__ import annotations

import pytest

from bridge.clock import ClockState, Mapped
from bridge.two_clocks import TwoClocks

MS, S = 1_000_000, 1_000_000_000
BEGAN_NS = 1000 * S
USUAL_NS = 8 * MS
LEAST_DELAY_NS, USUAL_DELAY_NS = 20 * MS, 100 * MS


class Scene:
    """A device whose clock shows host time, and has done so since it was set by ``step_ms`` at ``BEGAN_NS``."""

    def __init__(self, step_ms: float, last_ms: float, usual_ns: int = USUAL_NS, *, first: bool = True) -> None:
        self.step_ns = round(step_ms * MS)
        known = (BEGAN_NS, BEGAN_NS) if first else None
        self.clocks = TwoClocks(BEGAN_NS, self.step_ns, known, usual_ns, LEAST_DELAY_NS, BEGAN_NS + round(last_ms * MS))

    def is_of_now(self, stamp_ms: float, received_ms: float) -> bool:
        """Of a stamp, and when it came; both since the clock was set, by itself."""
        device_ns = BEGAN_NS + round(stamp_ms * MS)
        now = Mapped(device_ns, MS, MS, ClockState.BRIDGING, 1)
        before = Mapped(device_ns + self.step_ns, MS, MS, ClockState.HOLDOVER, 0)
        return self.clocks.is_of_now(device_ns, BEGAN_NS + round(received_ms * MS), now, before, USUAL_DELAY_NS)


@pytest.mark.parametrize("step_ms", [-4_900_000, -200, 200, 10_000])
def test_with_nothing_late_the_old_stamps_end_where_the_new_ones_begin(step_ms: int) -> None:
    scene = Scene(step_ms, last_ms=-step_ms - 108)
    for number in range(-12, 50):
        true_ms = 8.0 * number
        stamp_ms = true_ms if number >= 0 else true_ms - step_ms
        assert scene.is_of_now(stamp_ms, true_ms + 100) is (number >= 0), number


def test_a_run_of_one_eye_that_was_held_back_is_of_the_clock_that_stamped_it() -> None:
    """Of a run on a busy computer, with the tape of a real Capture: its matcher lets go of one eye's pupils at last,
    while gaze of both eyes goes on."""
    scene = Scene(-204.9, last_ms=133.0)
    came = [
        (149.6, 54.8, False), (166.1, 57.3, False), (182.8, 57.5, False), (199.7, 57.5, False),
        (10.9, 64.0, True), (27.7, 64.1, True), (44.9, 68.9, True),
        (85.5, 69.0, False), (61.0, 93.9, True), (102.2, 94.3, False), (77.8, 102.1, True),
        (119.0, 102.3, False), (135.4, 129.6, False), (152.4, 129.8, False), (168.9, 129.9, False),
        (185.5, 130.0, False), (202.1, 267.7, False),
        (13.7, 267.8, True), (30.6, 267.9, True), (47.0, 268.0, True), (63.8, 268.0, True),
    ]  # fmt: skip
    assert [(stamp, at, scene.is_of_now(stamp, at)) for stamp, at, _ in came] == came


def test_what_goes_on_where_the_one_before_it_was_is_of_the_same_clock_however_late_it_is() -> None:
    scene = Scene(-200, last_ms=8)
    for stamp_ms in (16, 24, 48, 40, 56):
        assert not scene.is_of_now(stamp_ms, 230)
    assert scene.is_of_now(5, 230), "it begins where the old one would have been set back"
    for stamp_ms in (13, 21, 29, 48, 56):
        assert scene.is_of_now(stamp_ms, 230)


@pytest.mark.parametrize(("received_ms", "of_now"), [(155, True), (45, False), (90, False)])
def test_of_a_stream_whose_order_says_nothing_the_usual_delay_tells(received_ms: int, of_now: bool) -> None:
    for usual_ns, last_ms in ((0, 48), (USUAL_NS, 1000)):
        assert Scene(-200, last_ms, usual_ns).is_of_now(150 if not of_now else 50, received_ms) is of_now


def test_without_a_first_stamp_the_delay_alone_tells() -> None:
    scene = Scene(-200, last_ms=142, first=False)
    assert not scene.is_of_now(150, 60)
    assert scene.is_of_now(50, 155)


def test_nothing_arrives_much_earlier_than_anything_did() -> None:
    for stamp_ms in (62, 61):  # the bound is 1 ms
        assert Scene(-200, last_ms=253).is_of_now(stamp_ms, 70) is (stamp_ms == 61)


def test_what_neither_clock_can_have_stamped_is_left_to_the_one_of_now() -> None:
    for step_ms in (-200, 200):
        assert Scene(step_ms, last_ms=-500).is_of_now(3_600_000, 70)
