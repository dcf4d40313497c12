"""Which phone is it that calls itself as one that is there: another one, or the same, killed and back as a new peer?

ZRE misses a killed peer only after half a minute. What tells is whether the phone of before goes on to send.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bridge.clock.host import monotonic_ns
from bridge.names import KEPT_IDS
from bridge.wire import ndsi

IN_FLIGHT_NS: Final = 300_000_000  # what comes of a killed phone after it is back was on its way
POLL_S: Final = 0.05
MAX_DOUBTS: Final = 12  # peers at a time


class Rival(Protocol):
    """A phone that is there."""

    last_data_ns: int


class Doubts:
    """Announcements of peers that wait until it is known what their phones are."""

    def __init__(
        self,
        rivals: Callable[[str], Sequence[Rival]],
        announce: Callable[[uuid.UUID, str, ndsi.Attach], None],
        silent_after_ns: int,
        busy: Callable[[], bool],
    ) -> None:
        """``rivals``: the phones of such a name that are there and have sent something; one that sends nothing for
        ``silent_after_ns`` has gone. ``announce`` gets what has waited, when the source is not ``busy``."""
        self._rivals = rivals
        self._announce = announce
        self._silent_after_ns = silent_after_ns
        self._busy = busy
        self._waiting: dict[uuid.UUID, deque[ndsi.Attach]] = {}

    def keeps(self, peer: uuid.UUID, own_name: str, attach: ndsi.Attach, tasks: asyncio.TaskGroup) -> bool:
        """Whether this announcement of a peer that is new waits now."""
        if peer not in self._waiting:
            if not self._rivals(own_name) or len(self._waiting) >= MAX_DOUBTS:
                return False
            self._waiting[peer] = deque(maxlen=KEPT_IDS)
            tasks.create_task(self._settle(peer, own_name), name=f"whether {own_name} is another one")
        self._waiting[peer].append(attach)
        return True

    def detach(self, peer: uuid.UUID, sensor_uuid: str) -> None:
        """The peer has taken the announcements of a sensor back."""
        waiting = self._waiting.get(peer, deque[ndsi.Attach]())
        for attach in [each for each in waiting if each.sensor_uuid == sensor_uuid]:
            waiting.remove(attach)

    def forget(self, peer: uuid.UUID) -> None:
        """The peer has gone."""
        self._waiting.pop(peer, None)

    def clear(self) -> None:
        self._waiting.clear()

    async def _settle(self, peer: uuid.UUID, own_name: str) -> None:
        since_ns = monotonic_ns()
        while True:
            if peer not in self._waiting or not (self._busy() or self._unsettled(own_name, since_ns)):
                break
            await asyncio.sleep(POLL_S)
        for attach in self._waiting.pop(peer, ()):
            self._announce(peer, own_name, attach)

    def _unsettled(self, own_name: str, since_ns: int) -> bool:
        now_ns = monotonic_ns()
        return any(
            rival.last_data_ns < since_ns + IN_FLIGHT_NS and now_ns - rival.last_data_ns < self._silent_after_ns
            for rival in self._rivals(own_name)
        )
