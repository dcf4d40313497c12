"""Round trips over NDSI: a ``<<time>>`` event is whispered, its echo on the event sensor carries the app's clock.

Echoes carry no mark of whose ping they answer, and other hosts ping too. So there is one ping at a time, and a round
trip counts only when exactly one echo came.
"""

from __future__ import annotations

import asyncio

from bridge.clock import RoundTrip

ECHO_TIMEOUT_S = 1.0
RIVAL_PATIENCE_S = 0.03  # how long after an echo another one makes both doubtful


class EchoExchange:
    """The ping that is under way."""

    def __init__(self) -> None:
        self.sent_ns: int | None = None
        self.echoes: list[tuple[int, int]] = []  # device_ns, received_ns
        self._changed = asyncio.Event()

    def sent(self, sent_ns: int) -> None:
        self.sent_ns = sent_ns
        self._changed.set()

    def echo(self, device_ns: int, received_ns: int) -> None:
        if len(self.echoes) < 2:  # two are too many already
            self.echoes.append((device_ns, received_ns))
            self._changed.set()

    async def result(self) -> RoundTrip | None:
        """The round trip, or None when no echo came in a second or more than one."""
        try:
            async with asyncio.timeout(ECHO_TIMEOUT_S):
                while self.sent_ns is None or not self.echoes:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        await asyncio.sleep(RIVAL_PATIENCE_S)
        if len(self.echoes) != 1:
            return None
        device_ns, received_ns = self.echoes[0]
        return RoundTrip(self.sent_ns, device_ns, received_ns)
