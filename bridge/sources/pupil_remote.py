"""Pupil Remote, the REP socket of Pupil Capture and Pupil Service, asked from the event loop.

Source: docs.pupil-labs.com "Network API", and the behaviour of Pupil Capture 3.6. An empty request kills Pupil Remote
for good, so none is ever sent; neither is ``T``, which sets the clock for everybody.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import zmq

from bridge.clock.host import monotonic_ns
from bridge.errors import DeviceUnavailable
from bridge.sources.zmqio import ZmqReader

REPLY_TIMEOUT_S = 1.0


class NoAnswer(DeviceUnavailable):
    """Pupil Remote did not answer in time. It may answer the next request, on a new socket."""


class PupilRemote:
    """Requests to Pupil Remote, one at a time, on a new socket after each that was not answered.

    Whoever asks while another request is on its way waits for its turn, and is stamped when it is sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: zmq.Context[Any], address: str) -> None:
        self._loop = loop
        self._context = context
        self._address = address
        self._reader: ZmqReader | None = None
        self._reply: asyncio.Future[tuple[bytes, int]] | None = None
        self._requests = 0
        self._turn = asyncio.Lock()

    async def ask(self, *request: bytes) -> tuple[bytes, int, int]:
        """(reply, sent_ns, received_ns) of a request of one frame or more. Raises NoAnswer when none came in a
        second."""
        assert request, "there is nothing to ask"
        assert request[0], "an empty request kills Pupil Remote"
        assert not request[0].startswith(b"T"), "nobody's clock is set by this bridge"
        async with self._turn:
            return await self._ask(request)

    async def _ask(self, request: tuple[bytes, ...]) -> tuple[bytes, int, int]:
        self._reply = self._loop.create_future()
        try:
            if self._reader is None:
                self._reader = self._open()
            # What stands before the delimiter comes back with the reply: it tells a late or doubled one.
            self._requests += 1
            sent_ns = monotonic_ns()
            self._reader.socket.send_multipart([b"%d" % self._requests, b"", *request], zmq.NOBLOCK)
            self._reader.poke()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                reply, received_ns = await self._reply
        except (TimeoutError, zmq.Again) as error:
            self.close()
            raise NoAnswer(f"Pupil Remote at {self._address} does not answer") from error
        except zmq.ZMQError as error:  # no file descriptors left
            self.close()
            raise NoAnswer(f"Pupil Remote at {self._address} cannot be asked: {error}") from error
        finally:
            self._reply = None
        return reply, sent_ns, received_ns

    def _open(self) -> ZmqReader:
        # A DEALER with REQ's empty delimiter: REQ itself would fault on a reply that nobody asked for.
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        dealer.connect(f"tcp://{self._address}")
        return ZmqReader(self._loop, dealer, self._replied)

    def _replied(self, frames: list[bytes]) -> None:
        received_ns = monotonic_ns()
        if self._reply is None or self._reply.done() or len(frames) != 3 or frames[0] != b"%d" % self._requests:
            return
        self._reply.set_result((frames[2], received_ns))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


async def numeric(loop: asyncio.AbstractEventLoop, host: str) -> str:
    """The address of a host, looked up here: libzmq would do it in the thread that the end of its context waits for.

    Raises DeviceUnavailable when it is not known now.
    """
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        return f"[{host}]" if ":" in host else host
    try:
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceUnavailable(f"the address of {host} is not known: {error.strerror or error}") from error
    return str(found[0][4][0])
