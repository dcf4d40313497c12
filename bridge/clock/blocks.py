"""Arrivals of one stream, collected in blocks of time: the earliest of each is a point of their floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bridge.clock.ticks import Ticks
from bridge.clock.watch import Track

FIRST_BLOCKS_NS = (100_000_000, 100_000_000, 200_000_000, 400_000_000)  # after a beginning, then:
BLOCK_NS = 1_000_000_000
SILENT_NS = 5_000_000_000  # another stream makes the floor once the one that did has been silent for so long
STALE_NS = 50_000_000  # a block whose earliest arrival is this late is a backlog
ROBUST_COUNT = 20  # arrivals in a block from which on its second earliest is taken
ALONE = 8.0  # scatters between the second and the third earliest, from which on the third is taken
FEW_LATE = 2.0  # of the usual lateness: how much later the earliest of a few is than that of many
FEW = 0.5  # of the usual number of chances a second
MORE, LESS = 0.1, 0.002  # of a block in that: a computer may be busy for minutes
FEW_COUNT = 5  # so few arrivals say nothing of their block's floor
WITNESS_SHARE = 0.02  # of a whole block: what a single arrival counts
FIRST_TYPICAL_NS = 1_000_000.0
TYPICAL_SHARE = 0.1  # of a block in the usual lateness
TYPICAL_RISE = 20.0  # times the usual: more is taken for this much


class Block(NamedTuple):
    """The earliest arrival of a block of time, and what ``Model.add_arrivals`` wants to know of it."""

    device_ns: int
    received_ns: int
    share: float  # of a whole block
    late_ns: float
    coarse_ns: float


class ArrivalBlocks:
    """``take`` arrivals, ``close`` a block when told so.

    Only one stream makes the floor: the first, and another once that one has been silent; ``floor_moved`` is called
    then.
    """

    def __init__(self, floor_moved: Callable[[], None]) -> None:
        self.typical_ns = FIRST_TYPICAL_NS  # how late arrivals usually are
        self._lately_ns = FIRST_TYPICAL_NS  # the same, also of blocks with few chances
        self._usual_chances = 0.0  # a second
        self._floor_moved = floor_moved
        self._primary: Track | None = None
        self._ticks = Ticks()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Drops the block under way. The first ones from now on are short, as little is known."""
        self._closed = 0
        self._begin(None)

    def _begin(self, now_ns: int | None) -> None:
        self._length_ns = FIRST_BLOCKS_NS[self._closed] if self._closed < len(FIRST_BLOCKS_NS) else BLOCK_NS
        self._end_ns = 0 if now_ns is None else now_ns + self._length_ns  # 0: the next arrival begins the block
        self._count = 0
        self._chances = 0  # arrivals that had not waited for the one before them
        self._first_device_ns = self._primary.newest_device_ns if self._primary is not None else 0
        self._earliest: list[tuple[float, int, int]] = []  # (lateness, device time, received), the three earliest
        self._third_ns = float("inf")

    def take(self, device_ns: int, received_ns: int, late_ns: float, track: Track) -> bool:
        """An arrival that can be, ``late_ns`` after the expected floor. True when the block is over: ``close`` it."""
        # Called for every sample, so it does as little as it can.
        gap_ns = device_ns - track.newest_device_ns
        waited = 2 * (received_ns - track.newest_received_ns) < gap_ns
        if gap_ns > 0:
            track.newest_device_ns = device_ns
        track.newest_received_ns = received_ns
        if track is not self._primary:
            self._take_other(track, received_ns)
            return False
        self._count += 1
        if not waited:
            self._chances += 1
        if late_ns < self._third_ns:
            self._note(late_ns, device_ns, received_ns)
        return received_ns >= self._end_ns

    def _take_other(self, track: Track, received_ns: int) -> None:
        primary = self._primary
        if primary is None:
            self._primary = track
        elif received_ns - primary.newest_received_ns > SILENT_NS:
            self._primary = track
            self._usual_chances = 0.0
            self._floor_moved()
            self.begin_anew()

    def _note(self, late_ns: float, device_ns: int, received_ns: int) -> None:
        earliest = self._earliest
        earliest.append((late_ns, device_ns, received_ns))
        earliest.sort()
        del earliest[3:]
        if len(earliest) == 3:
            self._third_ns = earliest[2][0]

    def close(self, late_ns: float, now_ns: int, scatter_ns: float, quantum_ns: int) -> Block | None:
        """Ends the block and begins the next. None when there was none yet, or when it was a backlog.

        ``late_ns``: how late the last arrival was. ``scatter_ns``: how far the earliest of blocks lie apart.
        ``quantum_ns``: of the stamps of round trips.
        """
        block = None
        if self._end_ns and self._earliest:
            chances = self._learn_chances()
            few = chances < FEW
            gained = max(TYPICAL_SHARE, 1 / (1 + self._closed))
            self._lately_ns = _learned(self._lately_ns, late_ns, gained)
            if not few:
                self.typical_ns = _learned(self.typical_ns, late_ns, gained)
            earliest_ns, device_ns, received_ns = self._chosen(scatter_ns, few=few)
            if earliest_ns < STALE_NS:
                share = chances * self._length_ns / BLOCK_NS
                block = Block(
                    device_ns,
                    received_ns,
                    share,
                    late_ns=0.0 if share == 1.0 else FEW_LATE * self._lately_ns / max(1, self._chances),
                    coarse_ns=self._coarse_ns(device_ns, quantum_ns),
                )
            self._closed += 1
        self._begin(now_ns)
        return block

    def _learn_chances(self) -> float:
        """How many chances to come early there were in this block, of the usual ones, if far fewer; else 1. What comes
        in one go, from a device or to a computer that had no time, had one."""
        a_second = max(1, self._chances) * BLOCK_NS / self._length_ns
        more = a_second - self._usual_chances
        gained = 1.0 if not self._usual_chances else MORE if more > 0 else LESS
        self._usual_chances += gained * more
        share = a_second / self._usual_chances
        return share if share < FEW else 1.0

    def _chosen(self, scatter_ns: float, *, few: bool) -> tuple[float, int, int]:
        """The earliest of a few arrivals. Of many the second, as one may be early by a corrupt stamp; or the third,
        if those before it lie alone."""
        earliest = self._earliest
        if few or self._count < ROBUST_COUNT:
            return earliest[0]
        return earliest[2] if earliest[2][0] - earliest[1][0] > ALONE * scatter_ns else earliest[1]

    def _coarse_ns(self, device_ns: int, quantum_ns: int) -> float:
        primary = self._primary
        if primary is None:
            return 0.0
        interval_ns = (primary.newest_device_ns - self._first_device_ns) / self._count if self._count else None
        return self._ticks.coarse_ns(device_ns, interval_ns, quantum_ns)

    def witness(self, device_ns: int, received_ns: int, quantum_ns: int) -> Block:
        """A single arrival as a block: all there is at first after a step."""
        coarse_ns = self._coarse_ns(device_ns, quantum_ns)
        return Block(device_ns, received_ns, WITNESS_SHARE, FEW_LATE * self.typical_ns, coarse_ns)

    @property
    def earliest_late_ns(self) -> float | None:
        """How late the earliest arrival of the block under way is; None of too few."""
        return self._earliest[0][0] if self._count >= FEW_COUNT and self._earliest else None


def _learned(usual_ns: float, late_ns: float, gained: float) -> float:
    """The usual lateness after one more, which counts for ``gained`` and by so much only."""
    return usual_ns + gained * (min(abs(late_ns), TYPICAL_RISE * usual_ns) - usual_ns)
