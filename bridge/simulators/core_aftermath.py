"""What Capture's plugins do with its data after somebody has set its clock. No sockets.

Source: Pupil Capture 3.6.14, matching.py, fixation_detector.py and blink_detection.py. The matcher knows the eyes'
rate from the steps between stamps, so after a step back it pairs nothing for seconds and sends each eye's gaze by
itself; two datums from either side of a step are never paired. The fixation detector sorts by stamp and is lost until
Pupil time is again where it was. The blink detector begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from bridge.simulators.core_clock import PupilClock, Step
from bridge.simulators.core_record import Record, stamp_offsets
from bridge.simulators.core_replay import Due

# Smaller ones are slews: the matcher still pairs, the detectors notice nothing.
_STEP_NS: Final = 10_000_000
# Two frames of the eyes at 120 Hz, which the matcher takes for one moment, times how much longer it remembers.
_LOST_NS: Final = 250_000_000


class Aftermath:
    """Decides what becomes of each record that is due. ``binocular_pause_ns``: for how long after a step back."""

    def __init__(self, clock: PupilClock, binocular_pause_ns: int, on_fixations_lost: Callable[[], object]) -> None:
        self._clock = clock
        self._pause_ns = binocular_pause_ns
        self._on_fixations_lost = on_fixations_lost
        self._seen: Step | None = None
        self._step: Step | None = None  # the last one that was more than a slew
        self._newest_ns = 0  # the latest reading before any step back
        self._sent_ns: dict[int, int] = {}  # of each eye's gaze by itself
        self._bare: dict[int, Record] = {}  # surfaces without their fixations, by the id of the record

    def outgoing(self, due: Due) -> Sequence[Due]:
        """What is sent in place of this: it, nothing, or the gaze of each eye by itself."""
        if self._clock.last_step is not self._seen:
            self._notice()
        step = self._step
        topic = due.record.topic
        if step is None or not topic:
            return (due,)
        if topic.startswith(b"gaze."):
            return (due,) if b".01." not in topic or self._paired(due, step) else self._apart(due)
        if step.change_ns > 0:
            return (due,)
        if topic == b"fixations":
            return () if self._without_fixations(due, step) else (due,)
        if topic == b"blinks":
            return () if _straddles(due, step) else (due,)
        if topic.startswith(b"surfaces.") and due.record.serials and self._without_fixations(due, step):
            bare = self._bare.get(id(due.record))
            if bare is None:
                bare = self._bare[id(due.record)] = _without_fixations(due.record)
            return (replace(due, record=bare),)
        return (due,)

    def _notice(self) -> None:
        step = self._seen = self._clock.last_step
        if step is None or abs(step.change_ns) < _STEP_NS:
            return
        self._step = step
        if step.change_ns < 0:
            self._newest_ns = max(self._newest_ns, step.before_ns)
            self._on_fixations_lost()

    def _paired(self, due: Due, step: Step) -> bool:
        if due.record.stamps[0][1] + due.shift_ns < step.host_ns:
            return not _straddles(due, step)
        lost = step.change_ns <= -_LOST_NS and due.at_ns < step.host_ns + self._pause_ns
        return not (lost or _straddles(due, step))

    def _apart(self, due: Due) -> list[Due]:
        """Each pupil datum once: the matcher pairs some of them twice."""
        found = []
        for eye, record in _monocular(due.record):
            instant_ns = record.stamps[0][1] + due.shift_ns
            if instant_ns > self._sent_ns.get(eye, instant_ns - 1):
                self._sent_ns[eye] = instant_ns
                found.append(replace(due, record=record))
        return found

    def _without_fixations(self, due: Due, step: Step) -> bool:
        newest_ns = max(instant_ns for _, instant_ns in due.record.stamps) + due.shift_ns
        return newest_ns >= step.host_ns and self._clock.device_ns(newest_ns) <= self._newest_ns


def _straddles(due: Due, step: Step) -> bool:
    instants = [instant_ns + due.shift_ns for _, instant_ns in due.record.stamps]
    return min(instants) < step.host_ns <= max(instants)


def _monocular(binocular: Record) -> list[tuple[int, Record]]:
    """What the matcher would have sent had it not paired the two eyes: (eye, gaze of that eye) for each."""
    whole: dict[Any, Any] = msgspec.msgpack.decode(binocular.payload)
    found = []
    for base, (_, instant_ns) in zip(whole["base_data"], binocular.stamps[1:], strict=True):
        eye = base["id"]
        topic = binocular.topic.replace(b".01.", b".%d." % eye)
        datum: dict[str, Any] = {}
        if "eye_centers_3d" in whole:
            for one, both in (("eye_center_3d", "eye_centers_3d"), ("gaze_normal_3d", "gaze_normals_3d")):
                datum[one] = whole[both].get(str(eye), whole[both].get(eye))
            datum["gaze_point_3d"] = whole["gaze_point_3d"]
        datum |= {"norm_pos": whole["norm_pos"], "topic": topic.decode(), "confidence": base["confidence"]}
        datum |= {"timestamp": base["timestamp"], "base_data": [base]}
        payload = msgspec.msgpack.encode(datum)
        stamps = tuple((offset, instant_ns) for offset in stamp_offsets(payload))
        position = (*datum["norm_pos"], base["confidence"])
        found.append(
            (eye, Record(binocular.arrival_ns, topic, payload, (), stamps, "gaze", instant_ns, position)),
        )
    return found


def _without_fixations(surface: Record) -> Record:
    """A surface's message with no fixation on it."""
    whole = msgspec.msgpack.decode(surface.payload)
    kept = tuple(fact for fact in surface.facts if not fact.stream.endswith(".fixations"))
    on_it = len(whole["fixations_on_surfaces"])
    whole["fixations_on_surfaces"] = []
    payload = msgspec.msgpack.encode(whole)
    # The fixations' own stamps, two each, stand before the surface's own, which is the last.
    instants = [instant_ns for _, instant_ns in surface.stamps]
    instants = instants[: len(instants) - 1 - 2 * on_it] + instants[-1:]
    stamps = tuple(zip(stamp_offsets(payload), instants, strict=True))
    return replace(surface, payload=payload, stamps=stamps, serials=(), facts=kept)
