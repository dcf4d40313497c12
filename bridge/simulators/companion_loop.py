"""The one loop that serves all simulated phones and whoever commands them.

It sleeps in a `select` of a selector's own descriptor, because the timeout of that has microseconds where `epoll` and
ZeroMQ's poll have milliseconds, and because descriptors of thirty phones are above what `select` itself can take.
"""

from __future__ import annotations

import heapq
import select
import selectors
import socket
import time
from collections.abc import Callable, Sequence

from bridge.simulators.companion_control import ControlChannel, encode_answer, execute
from bridge.simulators.companion_phone import Phone

_IDLE_S = 0.5


class Loop:
    """Serves ``phones`` until it is told to stop. Everything that it is given stays the caller's to close."""

    def __init__(self, phones: Sequence[Phone], control: ControlChannel, wakeup: socket.socket) -> None:
        self._phones = phones
        self._control = control
        self._wakeup = wakeup
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[int, int]] = []  # a heap of instants and phones' places; some are out of date
        self._due_ns: list[int | None] = [None] * len(phones)

    def serve(self, stopped: Callable[[], bool]) -> bool:
        """Run until ``stopped()``, which is asked at least twice a second and whenever ``wakeup`` has a byte.

        False: a phone's ZRE node died, and with it the device.
        """
        with self._selector:
            checked_s = 0.0
            self._register(self._wakeup.fileno(), None)
            self._follow_control()
            for place, phone in enumerate(self._phones):
                for descriptor in phone.readers:
                    self._register(descriptor, place)
            readable = set(range(len(self._phones)))
            while not stopped():
                now_s = time.monotonic()
                if now_s - checked_s > _IDLE_S:
                    checked_s = now_s
                    if not all(phone.alive for phone in self._phones):
                        return False
                # Who may have more is asked again at once: the descriptors are edge-triggered.
                again = {place for place in readable if self._phones[place].receive()}
                again |= {place for place in readable | self._take_due() if self._turn(place)}
                readable = again | self._wait(0.0 if again else self._rest_s())
        return True

    def _turn(self, place: int) -> bool:
        phone = self._phones[place]
        woken = phone.turn()
        due_ns = phone.next_due_ns
        if due_ns != self._due_ns[place]:
            self._due_ns[place] = due_ns
            if due_ns is not None:
                heapq.heappush(self._due, (due_ns, place))
        return woken

    def _take_due(self) -> set[int]:
        """Places of the phones that have something to do now."""
        now_ns = time.monotonic_ns()
        places = set()
        while self._due and self._due[0][0] <= now_ns:
            due_ns, place = heapq.heappop(self._due)
            if self._due_ns[place] == due_ns:
                self._due_ns[place] = None
                places.add(place)
        return places

    def _rest_s(self) -> float:
        if not self._due:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, (self._due[0][0] - time.monotonic_ns()) / 1e9))

    def _wait(self, timeout_s: float) -> set[int]:
        """Places of the phones that have got something; commands are carried out here."""
        places: set[int] = set()
        if not select.select([self._selector], [], [], timeout_s)[0]:
            return places
        for key, _ in self._selector.select(0):
            if isinstance(key.data, int):
                places.add(key.data)
            elif key.fd == self._wakeup.fileno():
                self._wakeup.recv(4096)
            else:
                places |= self._command(key.fd)
        return places

    def _command(self, descriptor: int) -> set[int]:
        """Everybody may have something to do afterwards."""
        for line, answer in self._control.lines(descriptor):
            before = [phone.readers for phone in self._phones]
            for descriptors in before:
                for each in descriptors:
                    self._selector.unregister(each)
            found = execute(line, self._phones)
            for place, phone in enumerate(self._phones):
                for each in phone.readers:
                    self._register(each, place)
            answer(encode_answer(found))
        self._follow_control()
        return set(range(len(self._phones)))

    def _follow_control(self) -> None:
        known = {key.fd for key in self._selector.get_map().values() if key.data == "control"}
        for descriptor in known - set(self._control.readers):
            self._selector.unregister(descriptor)
        for descriptor in set(self._control.readers) - known:
            self._register(descriptor, "control")

    def _register(self, descriptor: int, data: object) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, data)
