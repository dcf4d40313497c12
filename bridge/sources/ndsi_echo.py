"""Round trips over NDSI: a ``<<time>>`` event is whispered, its echo on the event sensor carries the app's clock.

Echoes carry no mark of whose ping they answer, and other hosts ping too. So there is one exchange at a time, and its
round trips count only when not more echoes came than pings were sent. An exchange is a pair as a rule: the second ping
leaves on the first echo, while the phone and the way to it are still awake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.clock import RoundTrip

ECHO_TIMEOUT_S = 1.0
RIVAL_PATIENCE_S = 0.03  # how long after an echo another one makes all doubtful


class EchoExchange:
    """The pings that are under way. ``send(n)`` sends the n-th, from 0, and tells ``sent`` when it has left."""

    def __init__(self, send: Callable[[int], None], pings: int) -> None:
        self._send = send
        self._pings = pings
        self._sent_ns: list[int | None] = []
        self._echoes: list[tuple[int, int]] = []  # device_ns, received_ns
        self._changed = asyncio.Event()

    def begin(self) -> None:
        self._next()

    def _next(self) -> None:
        self._sent_ns.append(None)
        self._send(len(self._sent_ns) - 1)

    def sent(self, number: int, sent_ns: int) -> None:
        if number < len(self._sent_ns):
            self._sent_ns[number] = sent_ns
            self._changed.set()

    def echo(self, device_ns: int, received_ns: int) -> None:
        if len(self._echoes) <= self._pings:  # one more is too many already
            self._echoes.append((device_ns, received_ns))
            self._changed.set()
        if len(self._echoes) == len(self._sent_ns) < self._pings:
            self._next()

    @property
    def _complete(self) -> bool:
        return len(self._echoes) >= self._pings and None not in self._sent_ns

    async def result(self) -> list[RoundTrip]:
        """The round trips; none when no echo came in a second, or more came than were asked for."""
        try:
            async with asyncio.timeout(ECHO_TIMEOUT_S):
                while not self._complete:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        else:
            await asyncio.sleep(RIVAL_PATIENCE_S)
        if len(self._echoes) > self._pings:
            return []
        return [
            RoundTrip(sent_ns, device_ns, received_ns)
            for sent_ns, (device_ns, received_ns) in zip(self._sent_ns, self._echoes, strict=False)
            if sent_ns is not None
        ]
