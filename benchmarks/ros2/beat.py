"""What stands for a device: a descriptor that is readable so many times a second, as a socket is when a datum comes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
TFD_NONBLOCK = os.O_NONBLOCK


class _Timer(ctypes.Structure):
    """struct itimerspec of timerfd_create(2)."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("period_s", "period_ns", "first_s", "first_ns"))


class Beat:
    """Linux' timerfd, from ``lead_s`` on. ``read`` tells how many beats there were since the last time."""

    def __init__(self, rate_hz: float, lead_s: float) -> None:
        period_s, period_ns = divmod(round(1e9 / rate_hz), 1_000_000_000)
        timer = _Timer(period_s, period_ns, int(lead_s), round(lead_s % 1 * 1e9))
        self.fd = _checked(_LIBC.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK))
        _checked(_LIBC.timerfd_settime(self.fd, 0, ctypes.byref(timer), None))

    def read(self) -> int:
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


async def on_loop(send: Callable[[], None], count: int, rate_hz: float, lead_s: float) -> None:
    """Calls ``send`` so many times from the running loop, once a beat; what was missed is made up for at once."""
    loop, beat, sent = asyncio.get_running_loop(), Beat(rate_hz, lead_s), 0
    ended = loop.create_future()

    def receive() -> None:
        nonlocal sent
        for _ in range(min(beat.read(), count - sent)):
            send()
            sent += 1
        if sent == count:
            loop.remove_reader(beat.fd)
            ended.set_result(None)

    loop.add_reader(beat.fd, receive)
    try:
        await ended
    finally:
        loop.remove_reader(beat.fd)
        beat.close()


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
