"""Round trips over NDSI: a ``<<time>>`` event is whispered, its echo on the event sensor carries the app's clock.

Echoes carry no mark of whose ping they answer, and other hosts ping too. So there is one exchange at a time, and its
round trips count only when not more echoes came than pings were sent. An exchange is a pair as a rule: the second ping
leaves on the first echo, while the phone and the way to it are still awake.

An echo that comes after its exchange was given up must not be taken for that of the next one's ping, which was sent
later than the echo's stamp: ``Owed`` has the next exchange wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.clock import RoundTrip

ECHO_TIMEOUT_S = 1.0
READ_S = 0.05  # for a loop that was late itself to read what has come meanwhile
OWED_S = 2.0  # how long a late echo is waited for
OWED_UNLOCKED_S = 0.25  # the same where samples wait for a first round trip: at the start echoes are lost, not late
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
    def unanswered(self) -> int:
        """How many echoes have not come; below 0 when more came than were asked for."""
        return len(self._sent_ns) - len(self._echoes)

    @property
    def _complete(self) -> bool:
        return len(self._echoes) >= self._pings and None not in self._sent_ns

    async def result(self) -> list[RoundTrip]:
        """The round trips; none when no echo came in a second, or more came than were asked for."""
        for patience_s in (ECHO_TIMEOUT_S, READ_S):
            try:
                async with asyncio.timeout(patience_s):
                    while not self._complete:
                        self._changed.clear()
                        await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(RIVAL_PATIENCE_S)
            break
        if len(self._echoes) > self._pings:
            return []
        return [
            RoundTrip(sent_ns, device_ns, received_ns)
            for sent_ns, (device_ns, received_ns) in zip(self._sent_ns, self._echoes, strict=False)
            if sent_ns is not None
        ]


class Owed:
    """The echoes that may still come of exchanges that are over. Host times in ns."""

    def __init__(self) -> None:
        self._count = 0
        self._until_ns = 0

    def after(self, exchange: EchoExchange, locked: bool, now_ns: int) -> None:
        """An exchange is over; ``locked``: the clock is known without it."""
        if exchange.unanswered == 0:
            return
        # Of more echoes than pings, somebody else's or a phone's that catches up, there may be some more.
        self._count += max(1, exchange.unanswered)
        short = exchange.unanswered < 0 or not locked
        self._until_ns = now_ns + round((OWED_UNLOCKED_S if short else OWED_S) * 1e9)

    def echo(self) -> None:
        """An echo has come that no exchange waits for."""
        self._count = max(0, self._count - 1)

    def waits(self, now_ns: int) -> bool:
        """Whether the next exchange has to wait."""
        if now_ns >= self._until_ns:
            self._count = 0
        return self._count > 0
