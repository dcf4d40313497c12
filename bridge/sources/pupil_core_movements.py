"""Whole fixations and whole blinks, from what Pupil Capture sends while they last. No I/O, no clock of its own.

Capture's fixation detector looks at the last 300 ms of gaze (its "minimum duration") once a frame of the scene camera,
and sends that window for as long as it is a fixation: the same id again and again. Its blink detector sends an edge for
every frame in which its filter is above a threshold, and the same one twice where no pupils came in between. Both are
handed on here once, when they are known to have ended, to ``hand_out``.

Times are integer nanoseconds: those of windows and edges in Pupil time, ``received_ns`` and ``now_ns`` of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, nan

from bridge.wire.pupil_core_movements import BlinkEdge, Fixation, WholeBlink, WholeFixation
from bridge.wire.pupil_core_surfaces import SurfaceFixation

__all__ = ["Blinks", "Fixations", "WholeBlink", "WholeFixation"]

# Some frames of the scene camera may be missing between two windows; one that begins later goes on after a hole.
LITTLE_NS = 100_000_000
SILENCE_NS = 500_000_000  # the longest pause between two windows of one fixation on the tape is 231 ms
# What comes from before the last one is late; where nothing else comes for so long, it is the clock that was set back.
LATE_FOR_NS = 1_000_000_000
# After a step a window that spans it is longer than the others, for as long as a window is: at most 4 s in Capture.
WARY_NS = 5_000_000_000
USUAL = 1.25

EDGES_APART_NS = 300_000_000  # Capture's filter is 0.1 to 0.5 s long
BLINK_MAX_NS = 5_000_000_000


class _Growing:
    """A fixation that goes on. Windows overlap, so the mean is over those that lie side by side, and of the last one
    over what the others do not cover: each instant counts once, but for less than a window's worth at the end, which
    is not known apart from what was before."""

    def __init__(self, window: Fixation | SurfaceFixation, start_ns: int) -> None:
        self.start_ns = self.end_ns = self._covered_ns = start_ns
        self.received_ns = 0
        self._last = window
        self._dispersion_deg = 0.0
        self._in_3d = True
        self._weights = [0.0, 0.0, 0.0]  # of confidence, position, point
        self._sums = [0.0] * 6  # confidence, position, point

    def take(self, window: Fixation | SurfaceFixation, start_ns: int, end_ns: int, received_ns: int) -> None:
        self.received_ns = max(self.received_ns, received_ns)
        self._dispersion_deg = max(self._dispersion_deg, window.dispersion_deg)
        self._in_3d = self._in_3d and isinstance(window, Fixation) and window.method == "3d gaze"
        if end_ns >= self.end_ns:
            self.end_ns, self._last = end_ns, window
        if start_ns >= self._covered_ns:
            self._weigh(window, end_ns)

    def _weigh(self, window: Fixation | SurfaceFixation, end_ns: int) -> None:
        # At least 1 ns: a window of no duration has a place, too.
        weight = float(max(1, end_ns - self._covered_ns))
        self._covered_ns = end_ns
        point = window.gaze_point_3d if isinstance(window, Fixation) else None
        parts = ((0, (window.confidence,)), (1, window.norm_pos), (3, point or (nan,)))
        for which, (first, values) in enumerate(parts):
            if all(map(isfinite, values)):
                self._weights[which] += weight
                for at, value in enumerate(values, first):
                    self._sums[at] += weight * value

    def whole(self) -> WholeFixation:
        if self.end_ns > self._covered_ns:
            self._weigh(self._last, self.end_ns)
        confidence, position, point = (weight or nan for weight in self._weights)
        c, x, y, *xyz = self._sums
        x, y = x / position, y / position
        on_plane = isinstance(self._last, SurfaceFixation)
        return WholeFixation(
            id=self._last.id,
            timestamp_ns=self.start_ns,
            received_ns=self.received_ns,
            duration_ms=(self.end_ns - self.start_ns) / 1e6,
            confidence=c / confidence,
            norm_pos=(x, y),
            dispersion_deg=self._dispersion_deg,
            method=None if on_plane else "3d gaze" if self._in_3d else "2d gaze",
            gaze_point_3d=None if point != point else (xyz[0] / point, xyz[1] / point, xyz[2] / point),
            on_surface=0.0 <= x <= 1.0 and 0.0 <= y <= 1.0 if on_plane else None,
        )


class Fixations:
    """Fixations of the scene image, or those on one surface.

    One has ended when another id comes, when a window of its id begins after a hole, or when nothing comes for 0.5 s.
    A whole one has the start of its first window and ends with its last one; its dispersion is the largest of any
    window, and less than that of the whole where gaze drifts. Starts are in order but for after `reset`, and of
    windows of one id without a hole one fixation is made.
    """

    def __init__(self, hand_out: Callable[[WholeFixation], None]) -> None:
        self.late = 0  # windows of what was handed out already, or from before it
        self.clock_set = 0  # fixations and windows that were left out because the clock was set meanwhile
        self._hand_out = hand_out
        self._current: _Growing | None = None
        self._id = -1
        self._shortest_ns: int | None = None
        self._wary_from_ns: int | None = None  # 0: from the next window on
        self._forget()

    def _forget(self) -> None:
        self._last_id = -1
        self._last_start_ns: int | None = None
        self._last_end_ns = 0
        self._late_since_ns: int | None = None

    def take(self, window: Fixation | SurfaceFixation, received_ns: int) -> bool:
        """Takes one window, in the order in which they came. False where it reaches from one clock into another."""
        self.tick(received_ns)
        start_ns = window.timestamp_ns
        end_ns = start_ns + max(0, round(window.duration_ms * 1e6))
        if self._spans_a_step(end_ns - start_ns, received_ns):
            self.clock_set += 1
            return False
        current = self._current
        oldest_ns = current.start_ns if current is not None else self._last_start_ns
        if oldest_ns is not None and start_ns < oldest_ns:
            self._take_late(window, start_ns, end_ns, received_ns)
            return True
        self._late_since_ns = None
        if current is not None and window.id == self._id and start_ns <= current.end_ns + LITTLE_NS:
            current.take(window, start_ns, end_ns, received_ns)
        elif window.id == self._last_id and start_ns <= self._last_end_ns + LITTLE_NS:
            self._last_end_ns = max(self._last_end_ns, end_ns)
            self.late += 1
        else:
            self._finish()
            self._begin(window, start_ns, end_ns, received_ns)
        return True

    def tick(self, now_ns: int) -> None:
        """Ends the fixation of which nothing came for a while. To be called a few times a second."""
        if self._current is not None and now_ns - self._current.received_ns > SILENCE_NS:
            self._finish()

    def reset(self) -> None:
        """Capture's clock was set: what goes on has a start on the one clock and an end on the other."""
        if self._current is not None:
            self.clock_set += 1
            self._current = None
        self._wary_from_ns = 0
        self._forget()

    def _spans_a_step(self, duration_ns: int, received_ns: int) -> bool:
        """Once its clock is set Capture goes on with what it has of gaze: windows reach from the old time into the new
        one until that is as old as they are long."""
        usual_ns = self._shortest_ns
        self._shortest_ns = duration_ns if usual_ns is None else min(usual_ns, duration_ns)
        if self._wary_from_ns is None or usual_ns is None:
            return False
        self._wary_from_ns = self._wary_from_ns or received_ns
        if duration_ns > USUAL * usual_ns and received_ns - self._wary_from_ns <= WARY_NS:
            return True
        self._wary_from_ns = None
        return False

    def _take_late(self, window: Fixation | SurfaceFixation, start_ns: int, end_ns: int, received_ns: int) -> None:
        self.late += 1
        if self._late_since_ns is None:
            self._late_since_ns = received_ns
        elif received_ns - self._late_since_ns > LATE_FOR_NS:
            self._finish()
            self._forget()
            self._begin(window, start_ns, end_ns, received_ns)

    def _begin(self, window: Fixation | SurfaceFixation, start_ns: int, end_ns: int, received_ns: int) -> None:
        self._id = window.id
        self._current = _Growing(window, start_ns)
        self._current.take(window, start_ns, end_ns, received_ns)

    def _finish(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            self._last_id, self._last_start_ns, self._last_end_ns = self._id, current.start_ns, current.end_ns
            self._hand_out(current.whole())


class Blinks:
    """Blinks. One begins at the most certain of a run of onsets and ends at that of the run of offsets that follows,
    which is where pupils vanish and come back fastest; Pupil Player takes the first and the last edge instead.

    It has ended when the run of offsets has: at another onset, or when nothing comes for 0.3 s. Where no offset comes
    within 5 s, or another run of onsets before it, for which pupils must have been seen again, its end is not known;
    the blink is handed out nevertheless, without a duration: that it began is known, and is what is counted.
    """

    def __init__(self, hand_out: Callable[[WholeBlink], None]) -> None:
        self.unpaired = 0  # offsets of no blink, or of one that has been handed out
        self.late = 0  # onsets from before the end of the last blink
        self.clock_set = 0  # blinks that were left out because the clock was set meanwhile
        self._hand_out = hand_out
        self._forget()

    def _forget(self) -> None:
        self._onset: BlinkEdge | None = None  # the most certain one
        self._offset: BlinkEdge | None = None
        self._onset_received_ns = 0
        self._edge_ns = 0  # of the last edge in the run
        self._received_ns = 0
        self._last_end_ns: int | None = None
        self._late_since_ns: int | None = None

    def take(self, edge: BlinkEdge, received_ns: int) -> None:
        """Takes one edge, in the order in which they came."""
        self.tick(received_ns)
        if edge.onset:
            self._take_onset(edge, received_ns)
        else:
            self._take_offset(edge, received_ns)

    def tick(self, now_ns: int) -> None:
        """Ends the blink of which nothing came for a while. To be called a few times a second."""
        if self._onset is None:
            return
        over = now_ns - self._received_ns > EDGES_APART_NS if self._offset is not None else False
        if over or now_ns - self._onset_received_ns > BLINK_MAX_NS:
            self._finish()

    def reset(self) -> None:
        """Capture's clock was set: what goes on has a start on the one clock and an end on the other."""
        self.clock_set += self._onset is not None
        self._forget()

    def _take_onset(self, edge: BlinkEdge, received_ns: int) -> None:
        best = self._onset
        oldest_ns = self._last_end_ns if best is None else (self._offset or best).timestamp_ns
        if oldest_ns is not None and edge.timestamp_ns < oldest_ns:
            self.late += 1
            if self._late_since_ns is None:
                self._late_since_ns = received_ns
            elif received_ns - self._late_since_ns > LATE_FOR_NS:  # the clock was set back, and nobody said so
                self._finish()
                self._forget()
                self._begin(edge, received_ns)
            return
        self._late_since_ns = None
        if best is None or self._offset is not None or edge.timestamp_ns - self._edge_ns > EDGES_APART_NS:
            self._finish()
            self._begin(edge, received_ns)
        elif edge.confidence > best.confidence:
            self._begin(edge, received_ns)
        self._edge_ns = max(self._edge_ns, edge.timestamp_ns)
        self._received_ns = received_ns

    def _take_offset(self, edge: BlinkEdge, received_ns: int) -> None:
        onset, best = self._onset, self._offset
        if onset is None or edge.timestamp_ns <= onset.timestamp_ns:
            self.unpaired += 1
            return
        apart_ns = edge.timestamp_ns - (onset.timestamp_ns if best is None else self._edge_ns)
        if apart_ns > (BLINK_MAX_NS if best is None else EDGES_APART_NS):
            self._finish()
            self.unpaired += 1
            return
        if best is None or edge.confidence > best.confidence:
            self._offset = edge
        self._edge_ns = edge.timestamp_ns if best is None else max(self._edge_ns, edge.timestamp_ns)
        self._received_ns = received_ns

    def _begin(self, onset: BlinkEdge, received_ns: int) -> None:
        self._onset, self._edge_ns = onset, onset.timestamp_ns
        self._onset_received_ns = self._received_ns = received_ns

    def _finish(self) -> None:
        onset, offset, self._onset, self._offset = self._onset, self._offset, None, None
        if onset is None:
            return
        self._last_end_ns = (offset or onset).timestamp_ns
        duration_s, sure, end_sure = nan, onset.confidence, nan
        if offset is not None:
            duration_s = (offset.timestamp_ns - onset.timestamp_ns) / 1e9
            sure, end_sure = min(sure, offset.confidence), offset.confidence
        self._hand_out(WholeBlink(onset.timestamp_ns, self._received_ns, duration_s, sure, onset.confidence, end_sure))
