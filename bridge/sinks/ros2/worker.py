"""The thread that publishes, behind a bounded queue. Publishing can block for tens of ms; nothing else waits for it."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from bridge.clock import Mapped
from bridge.streams import Sample

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0


class Publishing(Protocol):
    """One stream's topics as the thread sees them."""

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None: ...

    def drop(self, reason: str) -> None: ...

    def next(self) -> tuple[Sample, Mapped, int] | None:
        """What a token in the queue stands for."""


Item = tuple[Publishing, Sample, Mapped, int] | Publishing | Callable[[], None] | None


class Worker:
    """Carries out what is put, in order. Samples have ``size`` places, what is rare has as many again."""

    def __init__(self, size: int, drop_newest: bool) -> None:
        self.size = size
        self.drop_newest = drop_newest
        self._queue: deque[Item] = deque()
        self._looking = threading.Lock()  # held by who looks into the queue or changes it
        # One for each item. Waiting for it is one call of C, where a Condition waits in Python.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ros2 publisher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def put(self, output: Publishing, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        """A sample; the oldest one or this one is dropped where there is no room."""
        with self._looking:
            free = len(self._queue) < self.size
            if not free and not self._make_room():
                output.drop("queue_full")
                return
            self._queue.append((output, sample, mapped, host_ns))
        if free:  # else it has the token of what was dropped for it
            self._tokens.put(None)

    def _make_room(self) -> bool:
        """Drops the oldest sample, if that is the policy; False when the newest has to go.

        What is no sample is neither dropped nor overtaken: a stream cannot be opened before its device.
        """
        if self.drop_newest:
            return False
        for place, item in enumerate(self._queue):  # one of the first, as a rule
            if isinstance(item, tuple):
                del self._queue[place]
                item[0].drop("queue_full")
                return True
        return False

    def put_token(self, output: Publishing) -> bool:
        """Asks for ``output.next()`` to be published in its turn. Whether there is room."""
        return self._put(output, 2 * self.size)

    def put_rare(self, work: Callable[[], None], *, share: int = 2) -> bool:
        """Work that is no sample, if less than ``share`` times the samples' places are taken."""
        return self._put(work, share * self.size)

    def put_always(self, work: Callable[[], None]) -> None:
        """Work without which nothing would be right any more: devices and streams that come and go."""
        self._put(work)

    def _put(self, item: Item, places: float = math.inf) -> bool:
        with self._looking:
            if len(self._queue) >= places:
                return False
            self._queue.append(item)
        self._tokens.put(None)
        return True

    def call(self, work: Callable[[], None], timeout_s: float | None = None) -> bool:
        """Has the thread do it, in turn, and waits. False where it failed, or takes too long to be begun or done."""
        done, taken, ok = threading.Event(), threading.Lock(), False

        def run() -> None:
            nonlocal ok
            if not taken.acquire(blocking=False):  # who asked has been told that it was not done
                return
            try:
                work()
                ok = True
            except Exception:
                log.exception("ROS 2: a change of the topics has failed")
            finally:
                done.set()

        self.put_always(run)
        timeout_s = CALL_TIMEOUT_S if timeout_s is None else timeout_s
        if not done.wait(timeout_s) and not taken.acquire(blocking=False):
            done.wait(timeout_s)  # it has begun
        return ok

    def close(self) -> None:
        """Publishes what is queued, for at most two seconds."""
        self._put(None)
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("ROS 2: the publishing thread did not end in time")

    def _run(self) -> None:
        while (item := self._take()) is not None:
            if isinstance(item, tuple):
                item[0].publish(*item[1:])
            elif callable(item):
                item()
            elif (waiting := item.next()) is not None:
                item.publish(*waiting)

    def _take(self) -> Item:
        self._tokens.get()
        with self._looking:
            return self._queue.popleft()
