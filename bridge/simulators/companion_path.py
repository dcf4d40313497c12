"""The simulated network between hosts and the app: delays in both directions, and losses. Discovery has neither."""

from __future__ import annotations

import time
from dataclasses import dataclass

import zmq

from bridge.simulators.network import DelayLine, Loss


@dataclass(frozen=True, slots=True)
class Path:
    """Up is host to device. What is not delayed leaves at once."""

    whispers_up: DelayLine[bytes]
    commands_up: DelayLine[list[bytes]]
    notifications_down: DelayLine[tuple[zmq.Socket[bytes], list[bytes]]]
    data_down: DelayLine[tuple[zmq.Socket[bytes], list[bytes]]]
    loss: Loss

    @property
    def next_due_ns(self) -> int | None:
        """When the next message arrives anywhere."""
        due = None
        for line in (self.whispers_up, self.commands_up, self.notifications_down, self.data_down):
            next_ns = line.next_due_ns
            if next_ns is not None and (due is None or next_ns < due):
                due = next_ns
        return due

    def send_data(self, socket: zmq.Socket[bytes], frames: list[bytes], now_ns: int) -> bool:
        """Hand a data message to the network. False: it is lost."""
        if self.loss.strikes():
            return False
        accepted = self.data_down.put((socket, frames), now_ns)
        self.deliver()
        return accepted

    def deliver(self) -> None:
        """Send to the hosts whatever is due."""
        now_ns = time.monotonic_ns()
        for line in (self.notifications_down, self.data_down):
            while (message := line.take_due(now_ns)) is not None:
                socket, (*before, last) = message[1]
                for frame in before:  # four times as fast as send_multipart, which looks at each frame first
                    socket.send(frame, zmq.SNDMORE)
                socket.send(last)
