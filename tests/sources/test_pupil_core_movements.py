"""Windows become whole fixations and edges whole blinks, whatever order, clock and pauses they come with."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.sources.pupil_core_movements import Blinks, Fixations, WholeBlink, WholeFixation
from bridge.wire.pupil_core_movements import BlinkEdge, Fixation
from bridge.wire.pupil_core_surfaces import SurfaceFixation
from tests.wire.test_hostile_input import QUIET

MS = 1_000_000
S = 1_000_000_000
HOST_NS = 1_000_000 * MS  # by which the host's clock is ahead


def window(number: int, start_ms: float, x: float = 0.5, duration_ms: float = 300.0, **changes: object) -> Fixation:
    made = Fixation(number, round(start_ms * MS), duration_ms, 0.9, (x, 0.25), 1.0, "3d gaze", (x * 100, 20.0, 300.0))
    return msgspec.structs.replace(made, **changes)


def on_surface(number: int, start_ms: float, x: float, duration_ms: float = 300.0) -> SurfaceFixation:
    return SurfaceFixation(number, round(start_ms * MS), duration_ms, (x, 0.5), 0.9, 1.0, 0 <= x <= 1)


class TheFixations:
    """What comes of windows that arrive 100 ms after their end."""

    def __init__(self) -> None:
        self.whole: list[WholeFixation] = []
        self.merged = Fixations(self.whole.append)
        self.now_ns = HOST_NS

    def give(self, *windows: Fixation | SurfaceFixation) -> None:
        for given_one in windows:
            end_ns = given_one.timestamp_ns + round(given_one.duration_ms * MS)
            self.now_ns = HOST_NS + end_ns + 100 * MS
            self.merged.take(given_one, self.now_ns)

    def end(self) -> list[WholeFixation]:
        self.merged.tick(self.now_ns + S)
        return self.whole


def series(number: int, first_ms: int, last_ms: int, step_ms: int = 33, x: float = 0.5) -> list[Fixation]:
    return [window(number, start_ms, x) for start_ms in range(first_ms, last_ms + 1, step_ms)]


class TestFixations:
    def test_a_fixation_reaches_from_its_first_window_to_the_end_of_its_last(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1660))
        assert fixations.whole == []
        (whole,) = fixations.end()
        assert (whole.id, whole.timestamp_ns, whole.duration_ms) == (7, 1000 * MS, 960.0)
        assert whole.received_ns == fixations.now_ns
        assert (whole.method, whole.on_surface) == ("3d gaze", None)
        assert whole.norm_pos == pytest.approx((0.5, 0.25))
        assert whole.gaze_point_3d == pytest.approx((50.0, 20.0, 300.0))
        assert whole.confidence == pytest.approx(0.9)

    def test_another_id_ends_it_at_once(self) -> None:
        fixations = TheFixations()
        # Windows of two fixations overlap where the gaze was lost for one frame alone.
        fixations.give(*series(7, 1000, 1330), window(8, 1396))
        assert [(f.id, f.duration_ms) for f in fixations.whole] == [(7, 630.0)]
        assert [(f.id, f.timestamp_ns, f.duration_ms) for f in fixations.end()[1:]] == [(8, 1396 * MS, 300.0)]

    @pytest.mark.parametrize(("pause_ms", "pieces"), [(100, 1), (101, 2)])
    def test_a_hole_between_its_windows_ends_it_and_a_little_one_does_not(self, pause_ms: int, pieces: int) -> None:
        fixations = TheFixations()
        fixations.give(window(7, 1000), window(7, 1300 + pause_ms))
        ended = fixations.end()
        assert [f.id for f in ended] == [7] * pieces
        assert sum(f.duration_ms for f in ended) == 600.0 + (pause_ms if pieces == 1 else 0)

    def test_silence_of_half_a_second_ends_it_once(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1330))
        fixations.merged.tick(fixations.now_ns + 500 * MS)
        assert fixations.whole == []
        for later_ms in (501, 600, 9000):
            fixations.merged.tick(fixations.now_ns + later_ms * MS)
        assert [f.id for f in fixations.whole] == [7]

    def test_what_comes_of_it_after_it_was_handed_out_is_late_and_begins_nothing(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1330))
        fixations.end()
        fixations.give(*series(7, 1363, 1990))
        assert [f.id for f in fixations.end()] == [7]
        assert fixations.merged.late == 20

    def test_a_window_of_the_id_before_is_late_and_ends_nothing(self) -> None:
        fixations = TheFixations()
        fixations.give(
            *series(7, 1000, 1330), window(8, 1396), window(7, 1363), window(7, 1400), *series(8, 1429, 1700)
        )
        assert [f.id for f in fixations.end()] == [7, 8]
        assert fixations.merged.late == 2

    def test_duplicates_change_nothing(self) -> None:
        once, twice = TheFixations(), TheFixations()
        once.give(*series(7, 1000, 1660))
        twice.give(*(w for given_one in series(7, 1000, 1660) for w in (given_one, given_one)))
        assert once.end() == twice.end()

    def test_ids_that_begin_again_are_other_fixations(self) -> None:
        fixations = TheFixations()
        fixations.give(
            *series(0, 1000, 1330), *series(1, 2000, 2330), *series(0, 9000, 9330), *series(1, 10_000, 10_330)
        )
        assert [(f.id, f.timestamp_ns // MS) for f in fixations.end()] == [
            *((0, 1000), (1, 2000), (0, 9000), (1, 10_000))
        ]
        assert fixations.merged.late == 0

    def test_the_dispersion_is_the_largest_and_the_method_2d_as_soon_as_one_window_was(self) -> None:
        fixations = TheFixations()
        fixations.give(
            window(7, 1000, dispersion_deg=1.0),
            window(7, 1033, dispersion_deg=2.5),
            window(7, 1066, dispersion_deg=0.5, method="2d gaze", gaze_point_3d=None),
        )
        (whole,) = fixations.end()
        assert (whole.dispersion_deg, whole.method) == (2.5, "2d gaze")
        assert whole.gaze_point_3d == pytest.approx((50.0, 20.0, 300.0))

    def test_in_2d_it_has_no_point(self) -> None:
        fixations = TheFixations()
        fixations.give(window(7, 1000, method="2d gaze", gaze_point_3d=None))
        assert fixations.end()[0].gaze_point_3d is None

    @pytest.mark.parametrize("last_ms", [1000, 1033, 1330, 1660, 2320, 5950])
    def test_its_position_is_the_mean_over_its_time_as_windows_tell(self, last_ms: int) -> None:
        fixations = TheFixations()

        def x_at(at_ms: float) -> float:
            return at_ms / 10_000

        # The gaze drifts evenly, so that a window's mean is where it is in the middle of it.
        fixations.give(*(window(7, start, x_at(start + 150)) for start in range(1000, last_ms + 1, 33)))
        (whole,) = fixations.end()
        middle_ms = 1000 + whole.duration_ms / 2
        # Where windows lie side by side but for 33 ms, and the last one stands for less than itself.
        assert whole.norm_pos[0] == pytest.approx(x_at(middle_ms), abs=x_at(40))

    def test_a_position_that_a_window_has_not_does_not_spoil_the_others(self) -> None:
        fixations = TheFixations()
        lost = msgspec.structs.replace(on_surface(7, 1300, 0.5), norm_pos=(math.nan, math.nan), on_surface=False)
        fixations.give(on_surface(7, 1000, 0.25), lost, on_surface(7, 1600, 0.75))
        (whole,) = fixations.end()
        assert whole.norm_pos == pytest.approx((0.5, 0.5))
        assert whole.on_surface is True
        nowhere = TheFixations()
        nowhere.give(lost)
        (whole,) = nowhere.end()
        assert math.isnan(whole.norm_pos[0])
        assert whole.on_surface is False

    def test_on_a_surface_it_is_where_its_mean_is(self) -> None:
        fixations = TheFixations()
        fixations.give(on_surface(7, 1000, 0.75), on_surface(7, 1300, 1.05), on_surface(8, 1700, 1.1))
        first, second = fixations.end()
        assert (first.on_surface, second.on_surface) == (True, False)
        assert (first.method, first.gaze_point_3d) == (None, None)

    def test_two_surfaces_do_not_know_of_each_other(self) -> None:
        left, right = TheFixations(), TheFixations()
        for start_ms in range(1000, 1331, 33):
            left.give(on_surface(7, start_ms, 0.25))
            right.give(on_surface(7, start_ms, 1.25))
        assert (left.end()[0].norm_pos[0], right.end()[0].norm_pos[0]) == pytest.approx((0.25, 1.25))

    def test_a_window_of_no_duration_is_a_place_too(self) -> None:
        fixations = TheFixations()
        fixations.give(window(7, 1000, 0.25, duration_ms=0.0))
        (whole,) = fixations.end()
        assert (whole.duration_ms, whole.norm_pos) == (0.0, (0.25, 0.25))

    def test_it_takes_no_more_room_however_long_it_goes_on(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 0, 3_600_000))
        (whole,) = fixations.end()
        assert whole.duration_ms == pytest.approx(3_600_300, abs=33)
        assert whole.norm_pos == pytest.approx((0.5, 0.25))


class TestFixationsOfAClockThatIsSet:
    def test_what_goes_on_is_left_out(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1330))
        fixations.merged.reset()
        fixations.give(*series(8, 11_000, 11_330))
        assert [f.id for f in fixations.end()] == [8]
        assert fixations.merged.clock_set == 1

    def test_windows_from_the_old_time_into_the_new_are_left_out(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1660))
        fixations.merged.reset()
        # Forward by 10 s: what Capture has of the old time stays in its window until the rest of that is 300 ms long.
        astride = [window(7, 1960, duration_ms=10_000.0 + 33 * n) for n in range(9)]
        fixations.give(*astride, *series(7, 11_990, 12_320))
        (whole,) = fixations.end()
        assert (whole.timestamp_ns, whole.duration_ms) == (11_990 * MS, 630.0)
        assert fixations.merged.clock_set == 1 + len(astride)

    def test_windows_that_have_become_longer_for_good_are_taken_after_a_while(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 1000, 1330))
        fixations.merged.reset()
        fixations.give(*(window(8, start_ms, duration_ms=1000.0) for start_ms in range(20_000, 27_000, 33)))
        (whole,) = fixations.end()
        assert whole.timestamp_ns == pytest.approx(25_000 * MS, abs=50 * MS)

    def test_a_clock_set_back_is_begun_anew_on(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 5000, 5330))
        fixations.merged.reset()
        fixations.give(*series(8, 1000, 1330))
        assert [(f.id, f.timestamp_ns // MS) for f in fixations.end()] == [(8, 1000)]
        assert fixations.merged.late == 0

    def test_one_set_back_without_a_word_is_noticed_in_a_second(self) -> None:
        fixations = TheFixations()
        fixations.give(*series(7, 500_000, 500_330))
        began_ns = fixations.now_ns
        for number, start_ms in enumerate(range(1000, 10_000, 33)):
            fixations.merged.take(window(8 + number // 30, start_ms), began_ns + number * 33 * MS)
        fixations.merged.tick(began_ns + 99 * S)
        assert [f.id for f in fixations.whole] == [7, *range(9, 18)]
        assert fixations.whole[1].timestamp_ns == pytest.approx(2000 * MS, abs=100 * MS)
        assert fixations.merged.late == pytest.approx(31, abs=2)


_WINDOWS = st.lists(
    st.tuples(
        st.integers(0, 3),  # id
        st.integers(-400, 400),  # ms after the start of the one before
        st.sampled_from([0.0, 10.0, 299.9, 300.0, 310.0, 5000.0]),  # ms long
        st.sampled_from([0, 1, 33, 600, 1100]),  # ms after the arrival of the one before
        st.sampled_from(["take", "take", "take", "take", "tick", "reset"]),
    ),
    max_size=60,
)


@given(steps=_WINDOWS)
@settings(QUIET, max_examples=400)
def test_of_any_windows_fixations_are_in_order_last_and_are_handed_out_once(
    steps: list[tuple[int, int, float, int, str]],
) -> None:
    whole: list[WholeFixation] = []
    runs: list[list[WholeFixation]] = [whole]

    def hand_out(found: WholeFixation) -> None:
        runs[-1].append(found)

    merged = Fixations(hand_out)
    start_ms, now_ns, given_windows = 100_000, HOST_NS, 0
    late_since_ns: int | None = None
    for number, step_ms, duration_ms, later_ms, what in steps:
        start_ms += step_ms
        now_ns += later_ms * MS
        if what == "tick":
            merged.tick(now_ns)
        elif what == "reset":
            merged.reset()
            runs.append([])
            late_since_ns = None
        else:
            late = merged.late
            given_windows += 1
            merged.take(window(number, start_ms, duration_ms=duration_ms), now_ns)
            # What is late for a second is a clock that was set back: order begins anew, as after a reset.
            if merged.late == late:
                late_since_ns = None
            elif late_since_ns is None:
                late_since_ns = now_ns
            elif now_ns - late_since_ns > S:
                runs.append([])
                late_since_ns = None
    merged.tick(now_ns + S)
    for run in runs:
        assert all(a.timestamp_ns <= b.timestamp_ns for a, b in pairwise(run))
        for a, b in pairwise(run):
            # The same id again is another fixation: of a Capture that began anew, or after a hole.
            assert a.id != b.id or b.timestamp_ns > a.timestamp_ns + a.duration_ms * MS
    found = [fixation for run in runs for fixation in run]
    assert len(found) + merged.clock_set <= given_windows + sum(what == "reset" for *_, what in steps)
    for fixation in found:
        assert fixation.duration_ms >= 0
        assert fixation.norm_pos == pytest.approx((0.5, 0.25))
        assert fixation.received_ns <= now_ns
        assert fixation.gaze_point_3d == pytest.approx((50.0, 20.0, 300.0))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(2, 40)), min_size=1, max_size=8),
    doubled=st.sets(st.integers(0, 300)),
)
@settings(QUIET, max_examples=200)
def test_of_what_capture_sends_every_id_is_handed_out_once_and_whole(
    lengths: list[tuple[int, int]], doubled: set[int]
) -> None:
    fixations = TheFixations()
    frame, sent = 0, 0
    expected = []
    for number, (frames, pause) in enumerate(lengths):
        for _ in range(frames):
            fixations.give(*[window(number, 33 * frame)] * (2 if sent in doubled else 1))
            frame, sent = frame + 1, sent + 1
        expected.append((number, 33 * (frame - frames) * MS, 33.0 * (frames - 1) + 300.0))
        frame += pause
    assert [(f.id, f.timestamp_ns, f.duration_ms) for f in fixations.end()] == expected
    assert fixations.merged.late == 0


def onset(at_ms: int, confidence: float = 1.0) -> BlinkEdge:
    return BlinkEdge(True, at_ms * MS, confidence)


def offset(at_ms: int, confidence: float = 1.0) -> BlinkEdge:
    return BlinkEdge(False, at_ms * MS, confidence)


class TheBlinks:
    """What comes of edges that arrive 200 ms after their stamp."""

    def __init__(self) -> None:
        self.whole: list[WholeBlink] = []
        self.paired = Blinks(self.whole.append)
        self.now_ns = HOST_NS

    def give(self, *edges: BlinkEdge) -> None:
        for edge in edges:
            self.now_ns = HOST_NS + edge.timestamp_ns + 200 * MS
            self.paired.take(edge, self.now_ns)

    def end(self) -> list[WholeBlink]:
        self.paired.tick(self.now_ns + 6 * S)
        return self.whole

    def spans_ms(self) -> list[tuple[float, float]]:
        return [(blink.timestamp_ns / MS, blink.duration_s * 1e3) for blink in self.end()]


class TestBlinks:
    def test_it_reaches_from_the_most_certain_onset_to_the_most_certain_offset(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000, 0.7), onset(1033, 1.0), onset(1066, 0.9))
        blinks.give(offset(1200, 0.6), offset(1233, 0.8), offset(1266, 0.7))
        assert blinks.whole == []
        (blink,) = blinks.end()
        assert blink == WholeBlink(1033 * MS, blinks.now_ns, 0.2, 0.8, 1.0, 0.8)

    def test_of_equally_certain_edges_the_first_counts_and_duplicates_change_nothing(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000), onset(1000), onset(1033), offset(1200), offset(1200), offset(1233), offset(1233))
        assert blinks.spans_ms() == [(1000, 200)]
        assert (blinks.paired.unpaired, blinks.paired.late) == (0, 0)

    def test_it_ends_with_the_run_of_offsets_in_silence_or_at_another_onset(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000), offset(1200))
        blinks.paired.tick(blinks.now_ns + 300 * MS)
        assert blinks.whole == []
        blinks.paired.tick(blinks.now_ns + 301 * MS)
        assert len(blinks.whole) == 1
        blinks.give(onset(2000), offset(2200), onset(2300))
        assert len(blinks.whole) == 2
        blinks.give(offset(2500))
        assert blinks.spans_ms() == [(1000, 200), (2000, 200), (2300, 200)]

    def test_one_whose_end_is_not_seen_is_handed_out_without_a_duration(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000, 0.7))
        blinks.paired.tick(blinks.now_ns + 5 * S)
        assert blinks.whole == []
        (blink,) = blinks.end()
        assert (blink.timestamp_ns, blink.confidence, blink.onset_confidence) == (1000 * MS, 0.7, 0.7)
        assert math.isnan(blink.duration_s)
        assert math.isnan(blink.offset_confidence)

    def test_an_onset_after_a_pause_means_that_eyes_were_open_again(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000, 1.0), onset(1300, 0.6), onset(1700, 0.6), offset(1900))
        (first, second) = blinks.spans_ms()
        assert first[0] == 1000
        assert math.isnan(first[1])
        assert second == (1700, 200)

    def test_an_offset_after_more_than_five_seconds_is_no_longer_its_end(self) -> None:
        for late_ms in (6001, 90_000):
            blinks = TheBlinks()
            blinks.give(onset(1000), offset(late_ms))
            assert math.isnan(blinks.end()[0].duration_s)
            assert blinks.paired.unpaired == 1
        # The same where messages were held up, and arrive together.
        together = TheBlinks()
        together.paired.take(onset(1000), HOST_NS)
        together.paired.take(offset(6001), HOST_NS)
        assert math.isnan(together.end()[0].duration_s)
        assert together.paired.unpaired == 1

    def test_offsets_without_an_onset_are_counted(self) -> None:
        blinks = TheBlinks()
        blinks.give(offset(500), offset(533), onset(1000), offset(900), offset(1000), offset(1200), offset(1600))
        assert blinks.spans_ms() == [(1000, 200)]
        assert blinks.paired.unpaired == 5

    def test_blinks_that_were_held_up_and_arrive_together_are_still_several(self) -> None:
        blinks = TheBlinks()
        for edge in (onset(1000), onset(1033, 0.7), offset(1200), onset(3000), offset(3200), offset(3600), onset(7000)):
            blinks.paired.take(edge, HOST_NS)
        spans = blinks.spans_ms()
        assert spans[:2] == [(1000, 200), (3000, 200)]
        assert spans[2][0] == 7000
        assert blinks.paired.unpaired == 1

    def test_an_onset_from_before_is_late_and_ends_nothing(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(1000), offset(1200), onset(1100), offset(1233))
        assert blinks.spans_ms() == [(1000, 200)]
        assert (blinks.paired.late, blinks.paired.unpaired) == (1, 0)

    def test_a_clock_that_is_set_ends_none(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(50_000))
        blinks.paired.reset()
        blinks.paired.reset()
        blinks.give(offset(1200), onset(2000), offset(2200))
        assert blinks.spans_ms() == [(2000, 200)]
        assert (blinks.paired.clock_set, blinks.paired.unpaired, blinks.paired.late) == (1, 1, 0)

    def test_a_clock_that_is_set_back_without_a_word_is_noticed_at_the_second_blink(self) -> None:
        blinks = TheBlinks()
        blinks.give(onset(500_000), offset(500_200))
        blinks.end()
        blinks.give(onset(1000), offset(1200), onset(4000), offset(4200), onset(7000), offset(7200))
        assert blinks.spans_ms() == [(500_000, 200), (4000, 200), (7000, 200)]


_EDGES = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(-400, 6000) | st.integers(0, 100),
        st.sampled_from([0.0, 0.5, 0.7, 1.0, -1.0, 1e300]),
        st.sampled_from([0, 1, 33, 400, 6000]),
        st.sampled_from(["take", "take", "take", "take", "take", "tick", "reset"]),
    ),
    max_size=60,
)


@given(steps=_EDGES)
@settings(QUIET, max_examples=500)
def test_of_any_edges_blinks_are_in_order_and_do_not_overlap(steps: list[tuple[bool, int, float, int, str]]) -> None:
    runs: list[list[WholeBlink]] = [[]]

    def hand_out(found: WholeBlink) -> None:
        runs[-1].append(found)

    paired = Blinks(hand_out)
    at_ms, now_ns, onsets = 100_000, HOST_NS, 0
    late_since_ns: int | None = None
    for is_onset, step_ms, confidence, later_ms, what in steps:
        at_ms += step_ms
        now_ns += later_ms * MS
        if what == "tick":
            paired.tick(now_ns)
        elif what == "reset":
            paired.reset()
            runs.append([])
            late_since_ns = None
        else:
            late = paired.late
            onsets += is_onset
            paired.take(BlinkEdge(is_onset, at_ms * MS, confidence), now_ns)
            if not is_onset:
                continue
            if paired.late == late:
                late_since_ns = None
            elif late_since_ns is None:
                late_since_ns = now_ns
            elif now_ns - late_since_ns > S:
                runs.append([])
                late_since_ns = None
    paired.tick(now_ns + 6 * S)
    for run in runs:
        for a, b in pairwise(run):
            assert b.timestamp_ns >= a.timestamp_ns + (0 if math.isnan(a.duration_s) else round(a.duration_s * S))
    found = [blink for run in runs for blink in run]
    assert len(found) + paired.clock_set + paired.late <= onsets + len(runs)
    for blink in found:
        assert math.isnan(blink.duration_s) or 0 < blink.duration_s <= 7
        assert math.isnan(blink.duration_s) == math.isnan(blink.offset_confidence)
        assert blink.received_ns <= now_ns


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 60), st.integers(1, 6), st.integers(10, 90)), max_size=8
    )
)
@settings(QUIET, max_examples=200)
def test_of_what_capture_sends_every_blink_is_one(lengths: list[tuple[int, int, int, int]]) -> None:
    blinks = TheBlinks()
    frame = 0
    for onsets, closed, offsets, opened in lengths:
        blinks.give(*(onset(33 * (frame + n)) for n in range(onsets)))
        frame += onsets + closed
        blinks.give(*(offset(33 * (frame + n)) for n in range(offsets)))
        frame += offsets + opened
    expected: list[float] = []
    frame = 0
    for onsets, closed, offsets, opened in lengths:
        expected += [33.0 * frame, 33.0 * (onsets + closed)]
        frame += onsets + closed + offsets + opened
    assert [number for span in blinks.spans_ms() for number in span] == pytest.approx(expected)
    assert (blinks.paired.unpaired, blinks.paired.late) == (0, 0)
