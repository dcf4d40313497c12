"""One camera of a Companion device: frames on their way into its stream, the latest ones when there are too many."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from bridge.clock.host import monotonic_ns
from bridge.errors import MalformedMessage
from bridge.stream_input import StreamInput
from bridge.streams import Frame
from bridge.wire import ndsi_media

MAX_WAITING = 8  # frames that have come while the loop was busy: a quarter of a second


class Camera:
    """Takes what the data socket of a video sensor gives.

    The first of several JPEGs that are there at once are old, and what comes after the bridge takes longer than the
    bridge: beyond a few the latest win, the others are counted. H.264 is left whole, a gap spoils all up to the next
    key frame.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: StreamInput, malformed: Counter[str]) -> None:
        self._loop = loop
        self._stream = stream
        self._malformed = malformed
        self._waiting: deque[tuple[ndsi_media.VideoFrame, int]] = deque()
        self._turn: asyncio.Handle | None = None

    def on_data(self, frames: list[bytes]) -> bool:
        """Whether it was a frame that can be used."""
        received_ns = monotonic_ns()
        try:
            frame = ndsi_media.decode_video(frames)
        except ndsi_media.UnknownFormat:
            self._malformed["video_format"] += 1
            return False
        except MalformedMessage:
            self._malformed["video"] += 1
            return False
        if len(self._waiting) >= MAX_WAITING and frame.format == "jpeg":
            self._waiting.popleft()
            self._stream.samples_in += 1
            self._stream.dropped["latest_wins"] += 1
        self._waiting.append((frame, received_ns))
        if frame.format != "jpeg":
            self._pass_on()
        elif self._turn is None:
            # When the socket has been read until it was empty.
            self._turn = self._loop.call_soon(self._pass_on)
        return True

    def _pass_on(self) -> None:
        self._rest()
        while self._waiting:
            frame, received_ns = self._waiting.popleft()
            image = Frame(frame.format, frame.width_px, frame.height_px, frame.index, frame.data)
            self._stream.sample(frame.device_ns, received_ns, image)

    def _rest(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def close(self) -> None:
        """What has come goes on its way."""
        self._pass_on()
