"""Writes the truth about what the simulated Pupil Capture sends.

Streams and their payloads, beside those of `World`:
``gaze``, ``pupil.<eye>.<method>``: [norm_x, norm_y, confidence];
``fixations``, each window as it is sent, stamped with its start: [id, end_device_ns, end_host_ns, norm_x, norm_y,
dispersion_deg, confidence]; ``fixation``, a whole one once its last window has gone, from the start of its earliest
window to the end of its latest, the rest as in the last one: the same numbers, and how many windows it had;
``blinks``, each onset (1) and offset (0): [1 or 0, confidence]; ``blink``, when the eyes were shut, only synthesised:
[end_device_ns, end_host_ns]; ``surfaces.<name>``, each gaze on it, when somebody listens: [norm_x, norm_y, confidence,
1 when it is on the surface]; ``surfaces.<name>.fixations``, each window on it: [id, end_device_ns, end_host_ns, norm_x,
norm_y, confidence, 1 when it is on the surface].
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.simulators.core_clock import PupilClock
from bridge.simulators.core_record import Fact
from bridge.simulators.truth import TruthWriter


@dataclass(slots=True)
class _Open:
    """A fixation that may go on; in ns of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int
    payload: tuple[float, ...]
    windows: int = 1


class Facts:
    """Counts every stream's lines. Written after what they are about was sent."""

    def __init__(self, clock: PupilClock, truth: TruthWriter) -> None:
        self.counts: dict[str, int] = {}
        self._clock = clock
        self._truth = truth
        self._open: dict[int, _Open] = {}

    def write(self, stream: str, host_ns: int, sent: bool, payload: tuple[float, ...]) -> None:
        sequence = self.counts.get(stream, 0)
        self.counts[stream] = sequence + 1
        device_ns = self._device_ns(host_ns)
        self._truth.record(stream, sequence, device_ns=device_ns, host_ns=host_ns, sent=sent, payload=payload)

    def tell(self, fact: Fact, shift_ns: int, serial_shift: int) -> None:
        """Write a fact of the tape, in the turn that those shifts make of it."""
        start_ns = fact.instant_ns + shift_ns
        payload = fact.payload
        if fact.end_ns is not None:
            payload = (self._device_ns(fact.end_ns + shift_ns), fact.end_ns + shift_ns, *payload)
        if fact.serial is not None:
            payload = (fact.serial + serial_shift, *payload)
        self.write(fact.stream, start_ns, True, payload)
        if fact.stream == "fixations" and fact.serial is not None and fact.end_ns is not None:
            self._grow(fact.serial + serial_shift, _Open(start_ns, fact.end_ns + shift_ns, fact.payload), fact.last)

    def end_fixations(self) -> None:
        """No window will follow."""
        for serial in list(self._open):
            self._end(serial)

    def _grow(self, serial: int, window: _Open, last: bool) -> None:
        known = self._open.get(serial)
        if known is not None:
            window.start_ns, window.end_ns = min(known.start_ns, window.start_ns), max(known.end_ns, window.end_ns)
            window.windows += known.windows
        self._open[serial] = window
        if last:
            self._end(serial)

    def _end(self, serial: int) -> None:
        whole = self._open.pop(serial)
        end = (self._device_ns(whole.end_ns), whole.end_ns)
        self.write("fixation", whole.start_ns, True, (serial, *end, *whole.payload, whole.windows))

    def _device_ns(self, host_ns: int) -> int:
        """As a float64 in seconds tells it."""
        return round(self._clock.seconds(host_ns) * 1e9)
