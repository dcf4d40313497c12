"""A loop of everything that Capture sends, made without a tape: any rate, stamps in order, Capture's fields and sizes.

Layout and types are those of `core_short.msgpack.xz`, so a synthesised message has as many bytes as a recorded one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bridge.simulators.core_datums import EPOCH_S, GAZE_MAPPINGS, Datums, point_3d
from bridge.simulators.core_detectors import SURFACES, Blinks, Eye, Fixations, Look, on_surface
from bridge.simulators.core_movements import Movements
from bridge.simulators.core_record import Fact
from bridge.simulators.tape import Tape, from_messages

VERSION = "3.6.14"
LOOP_S = 10.0
PUPIL_AGE_S = 0.010
GAZE_AGE_S = 0.035
WORLD_AGE_S = 0.034
_MAX_WORLD_HZ: Final = 120.0
_DEFAULT_WORLD_HZ: Final = 30.0
# The plugins have seen as much of the turn before when the loop begins: longer than any of their windows.
_WARM_UP_S: Final = 3.0

_Messages = list[tuple[float, list[bytes]]]
_encode = msgspec.msgpack.encode


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What to make. ``gaze_mapping``: one of GAZE_MAPPINGS, see `Datums`. ``gaze_age_s``: how old gaze is when it
    leaves Capture. ``world_hz`` is the scene camera's rate."""

    gaze_hz: float
    pupil_hz: float
    gaze_mapping: str = "3d"
    integer_keys: bool = False
    gaze_age_s: float = GAZE_AGE_S
    world_hz: float = _DEFAULT_WORLD_HZ


def synthesise(wanted: Synthesis) -> Tape:
    """Gaze at one rate, 2d and 3d pupils of both eyes at another, 0 leaves a stream out; fixations, blinks, surfaces.

    The loop lasts a whole number of gaze datums; the pupil rate is rounded to a whole number of datums in a loop
    (by 0.05 datums/s at most). Raises `ValueError` when both rates are zero or the mapping is unknown.
    """
    if wanted.gaze_mapping not in GAZE_MAPPINGS:
        raise ValueError(f"gaze is mapped in one of {', '.join(GAZE_MAPPINGS)}, not {wanted.gaze_mapping!r}")
    lead_hz = wanted.gaze_hz or wanted.pupil_hz
    if lead_hz <= 0:
        raise ValueError("nothing to synthesise: both rates are zero")
    loop = _Loop(wanted, max(1, round(LOOP_S * lead_hz)) / lead_hz)
    messages = [*loop.pupil_messages(), *loop.gaze_messages()]
    created = loop.add_world(messages)
    messages.sort(key=lambda message: message[0])
    header = {"version": VERSION, "pupil_time": EPOCH_S, "monotonic": EPOCH_S, "loop_s": loop.loop_s}
    facts = [Fact("blink", round(a * 1e9), (), None, round(b * 1e9)) for a, b in loop.movements.blinks]
    return from_messages(header | {"serial_span": created}, messages, facts if loop.pupils else ())


class _Loop:
    """One turn, and as much of those before as the plugins remember; stamps are seconds of Pupil time."""

    def __init__(self, wanted: Synthesis, loop_s: float) -> None:
        self.loop_s = loop_s
        self.movements = Movements(loop_s)
        self.gazes = round(loop_s * wanted.gaze_hz)
        self.pupils = round(loop_s * wanted.pupil_hz)
        self._datums = Datums(self.movements, loop_s, self.gazes, self.pupils, wanted.gaze_mapping, wanted.integer_keys)
        self._gaze_age_s = wanted.gaze_age_s
        world_hz = min(wanted.world_hz, _MAX_WORLD_HZ) or _DEFAULT_WORLD_HZ
        self._frames = max(1, round(loop_s * world_hz))

    def pupil_messages(self) -> Iterator[tuple[float, list[bytes]]]:
        for number in range(self.pupils):
            for eye in (0, 1):
                stamp_s = self._datums.pupil_stamp_s(eye, number)
                for late_s, make in ((0, self._datums.pupil_2d), (20e-6, self._datums.pupil_3d)):
                    datum = make(eye, stamp_s)
                    yield stamp_s + PUPIL_AGE_S + late_s, [datum["topic"].encode(), _encode(datum)]

    def gaze_messages(self) -> Iterator[tuple[float, list[bytes]]]:
        for number in range(self.gazes):
            datum = self._datums.gaze(number)
            yield datum["timestamp"] + self._gaze_age_s, [datum["topic"].encode(), _encode(datum)]

    def add_world(self, messages: _Messages) -> int:
        """What the world process sends at every frame of a turn; how many ids it gave to fixations in the turn."""
        fixations, blinks = Fixations(), Blinks()
        step_s = self.loop_s / self._frames
        warm_up = math.ceil(_WARM_UP_S / step_s)
        looks = _Arriving(self._looks(), self._gaze_age_s)
        eyes = _Arriving(self._eyes(), PUPIL_AGE_S)
        created = edges = 0
        for number in range(-warm_up, self._frames):
            if number == 0:
                created = fixations.created
            frame_s = EPOCH_S + number * step_s
            at_s = frame_s + WORLD_AGE_S
            seen = looks.until(at_s)
            fixation, blink = fixations.see(seen), blinks.see(eyes.until(at_s))
            if number < 0:
                continue
            if fixation is not None:
                messages.append((at_s, [b"fixations", _encode(fixation)]))
            for surface in SURFACES:
                event = on_surface(surface, frame_s, seen, fixation)
                messages.append((at_s + 50e-6, [event["topic"].encode(), _encode(event)]))
            if blink is not None:
                payload = _encode(blink)
                edges += 1
                # Without a new pupil the detector says the same again.
                for again in range(2 if edges % 5 == 2 else 1):
                    messages.append((at_s + 100e-6 + again * 2e-3, [b"blinks", payload]))
        return fixations.created - created

    def _looks(self) -> Iterator[Look]:
        if not self.gazes:
            return
        first = -math.ceil(_WARM_UP_S * self.gazes / self.loop_s)
        for number in range(first, self.gazes):
            stamp_s = self._datums.gaze_stamp_s(number)
            x, y = self._datums.gaze_position(stamp_s)
            point = None if self._datums.flat else point_3d(x, y)
            topic, eyes = self._datums.gaze_topic(number)
            confidence = sum(self._datums.confidence(self._datums.last_pupil_s(eye, stamp_s)) for eye in eyes) / len(
                eyes
            )
            yield Look(topic, stamp_s, x, y, confidence, point)

    def _eyes(self) -> Iterator[Eye]:
        if not self.pupils:
            return
        for number in range(-math.ceil(_WARM_UP_S * self.pupils / self.loop_s), self.pupils):
            for eye in (0, 1):
                stamp_s = self._datums.pupil_stamp_s(eye, number)
                payload = msgspec.Raw(_encode(self._datums.pupil_2d(eye, stamp_s)))
                yield Eye(stamp_s, self._datums.confidence(stamp_s), payload)


class _Arriving:
    """What has come since it was asked last; each comes ``age_s`` after its stamp."""

    def __init__(self, items: Iterator[Any], age_s: float) -> None:
        self._items, self._age_s = items, age_s
        self._next = next(items, None)

    def until(self, at_s: float) -> list[Any]:
        found = []
        while self._next is not None and self._next.stamp_s + self._age_s <= at_s:
            found.append(self._next)
            self._next = next(self._items, None)
        return found
