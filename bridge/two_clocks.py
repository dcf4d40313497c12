"""Soon after a device's clock was set: which of the two has stamped a sample of a stream that is late (Core's gaze)."""

from __future__ import annotations

from bridge.clock import Mapped
from bridge.clock.watch import follows

FIRST_LATE_NS = 100_000_000  # how late it may be told that the clock was set
GOES_BACK_NS = 20_000_000  # as a rule at most, in streams that are put in order


class TwoClocks:
    """Of one stream, from the beginning of an epoch at host time ``began_ns`` on.

    ``step_ns``: by how much the clock was set. ``first``: host and device time of the new clock's first stamp, as far
    as they are known. ``usual_ns``: how far the stream's stamps are apart; 0 if that is not known, or if it tells
    nothing as they come in any order. ``least_delay_ns``: how late it is at least. ``last_ns``: its last stamp so far,
    None if there was none.
    """

    def __init__(
        self,
        began_ns: int,
        step_ns: int | None,
        first: tuple[int, int] | None,
        usual_ns: int,
        least_delay_ns: float,
        last_ns: int | None,
    ) -> None:
        self.began_ns = began_ns
        self._step_ns = step_ns
        self._first = first
        self._usual_ns = usual_ns
        self._least_delay_ns = least_delay_ns
        self._last_before_ns = last_ns
        self._last_now_ns: int | None = None

    def is_of_now(self, device_ns: int, received_ns: int, now: Mapped, before: Mapped, usual_delay_ns: float) -> bool:
        """Whether the clock of now has stamped a sample, which means the instant ``now``, or else ``before``."""
        of_now = self._judge(device_ns, received_ns, now, before, usual_delay_ns)
        if of_now:
            self._last_now_ns = device_ns
        else:
            self._last_before_ns = device_ns
        return of_now

    def _judge(self, device_ns: int, received_ns: int, now: Mapped, before: Mapped, usual_delay_ns: float) -> bool:
        """The old one's stamps end where the new one's begin. Where that leaves both, what goes on where the one
        before it was is of the same clock; where it does not, how late the stream usually is tells."""
        if now.host_ns - now.bound_ns + self._least_delay_ns / 2 > received_ns:
            return before.host_ns > received_ns  # too early for that, unless it is corrupt
        if self._first is not None and self._step_ns is not None:
            first_host_ns, first_device_ns = self._first
            if self._step_ns > 0:  # no clock showed what lies in between
                may_be_before = device_ns < first_device_ns
                may_be_now = device_ns >= first_device_ns - self._step_ns
            else:
                may_be_before = before.host_ns < first_host_ns
                may_be_now = now.host_ns >= first_host_ns - min(-self._step_ns // 2, FIRST_LATE_NS)
            if may_be_before != may_be_now:
                return may_be_now
            of_before, of_now = self._goes_on(device_ns, self._step_ns)
            if of_before != of_now:
                return of_now
            if self._step_ns > 0:
                return device_ns >= first_device_ns - self._step_ns // 2
        expected_ns = received_ns - usual_delay_ns
        return abs(expected_ns - now.host_ns) <= abs(expected_ns - before.host_ns)

    def _goes_on(self, device_ns: int, step_ns: int) -> tuple[bool, bool]:
        """Whether a stamp goes on where the old clock's last one was, and where the new one's was or would have
        been."""
        before_ns, now_ns = self._last_before_ns, self._last_now_ns
        if before_ns is None:
            return False, False
        if now_ns is None:
            now_ns = before_ns + step_ns
        of_before = follows(device_ns - before_ns, self._usual_ns, GOES_BACK_NS, step_ns)
        return of_before, follows(device_ns - now_ns, self._usual_ns, GOES_BACK_NS, step_ns)
