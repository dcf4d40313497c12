"""A device's clock in host time, while something slews the host's clock: the estimator sees none of it."""

from __future__ import annotations

import random

import pytest

from bridge.clock import Arrival, Clock, ClockState, Mapped, RoundTrip, Track
from bridge.clock.device_clock import DeviceClock, Identity, Scale

US, MS, S = 1_000, 1_000_000, 1_000_000_000
SHOWS_NS = 77 * S  # by the device, when the steady clock shows 0
DRIFT_PPB = 20_000


class Bent:
    """Host time that is slewed by ``ppb`` from ``from_ns`` on, in host time; before that it is 5 s behind steady."""

    def __init__(self, from_ns: int, ppb: int, bound_ns: int = 0) -> None:
        self.from_ns, self.ppb, self.bound_ns = from_ns, ppb, bound_ns

    def to_steady(self, host_ns: int) -> int:
        elapsed_ns = host_ns - self.from_ns
        return host_ns + 5 * S - (elapsed_ns * self.ppb // (S + self.ppb) if elapsed_ns > 0 else 0)

    def to_host(self, steady_ns: int) -> int:
        elapsed_ns = steady_ns - 5 * S - self.from_ns
        return steady_ns - 5 * S + (elapsed_ns * self.ppb // S if elapsed_ns > 0 else 0)


class Play:
    """A device that is asked and whose samples arrive, in steady time; what the clock is given is in host time."""

    def __init__(self, scale: Scale | None, seed: int = 1) -> None:
        self.clock = DeviceClock(Clock(), scale)
        self.scale = scale or Identity()
        self.noise = random.Random(seed)
        self.track = Track()
        self.steady_ns = 1000 * S
        self.shows_ns = SHOWS_NS
        self.answers: list[Arrival] = []
        self.errors_ns: list[int] = []
        self.outside = 0
        self.refused = 0

    def device_ns(self, steady_ns: int) -> int:
        return self.shows_ns + steady_ns + steady_ns * DRIFT_PPB // S

    def trip(self) -> RoundTrip:
        out_ns, back_ns = (MS + self.noise.randint(0, MS) for _ in range(2))
        stamped_ns, received_ns = self.steady_ns + out_ns, self.steady_ns + out_ns + back_ns
        return RoundTrip(
            self.scale.to_host(self.steady_ns), self.device_ns(stamped_ns), self.scale.to_host(received_ns)
        )

    def run(self, seconds: int, rate_hz: int = 50) -> None:
        for number in range(seconds * rate_hz):
            self.steady_ns += S // rate_hz
            host_ns = self.scale.to_host(self.steady_ns)
            if number % (rate_hz // 2) == 0:
                self.clock.plan.sent(host_ns)
                self.refused += not self.clock.ping(self.trip())
            made_ns = self.steady_ns - MS - self.noise.randint(0, MS)
            self.answers.append(self.clock.arrival(self.device_ns(made_ns), host_ns, self.track))
            mapped = self.clock.map(self.device_ns(made_ns))
            if mapped is not None:
                self.errors_ns.append(mapped.host_ns - self.scale.to_host(made_ns))
                self.outside += abs(self.errors_ns[-1]) > mapped.bound_ns + 3

    def mapped(self) -> Mapped:
        mapped = self.clock.map(self.device_ns(self.steady_ns))
        assert mapped is not None
        return mapped


@pytest.mark.parametrize("slew_ppb", [-500_000, -10_000, 500_000])
def test_a_host_that_is_slewed_is_followed_at_once_and_the_estimator_sees_none_of_it(slew_ppb: int) -> None:
    bent = Play(Bent(1060 * S - 5 * S, slew_ppb))
    straight = Play(Bent(10**6 * S, 0))
    for play in (bent, straight):
        play.run(180)
        assert play.outside == play.refused == 0
        assert play.clock.epoch == 0
        assert set(play.answers) == {Arrival.FITS}
        assert max(abs(error_ns) for error_ns in play.errors_ns[-6000:]) < 150 * US
        assert play.clock.drift_ppm == pytest.approx(DRIFT_PPB / 1000, abs=0.5), "the device's, not the host's"
    assert bent.errors_ns == pytest.approx(straight.errors_ns, abs=50)
    assert bent.scale.to_host(bent.steady_ns) != straight.scale.to_host(straight.steady_ns)
    assert bent.clock.estimator.offset_ns == pytest.approx(straight.clock.estimator.offset_ns, abs=50)


def test_without_a_scale_it_is_the_estimator_itself() -> None:
    play = Play(None)
    play.run(20)
    assert play.mapped() == play.clock.estimator.map(play.device_ns(play.steady_ns))
    assert play.clock.offset_ns == play.clock.estimator.offset_ns
    assert play.clock.last_ping_received_ns == play.clock.estimator.last_ping_received_ns


def test_what_the_scale_may_be_off_is_in_every_bound() -> None:
    exact, loose = Play(Bent(0, 100_000)), Play(Bent(0, 100_000, bound_ns=300 * US))
    for play in (exact, loose):
        play.run(30)
    # Once in what a round trip leaves open, which is wider on either side, and once on the way back.
    assert loose.mapped().bound_ns - exact.mapped().bound_ns == pytest.approx(600 * US, abs=20 * US)
    assert loose.mapped().precision_ns >= 300 * US
    assert loose.mapped().host_ns == pytest.approx(exact.mapped().host_ns, abs=20 * US)
    for play in (exact, loose):
        play.shows_ns += 50 * MS
        play.run(1)
    stale = [play.clock.map_previous(SHOWS_NS + 1000 * S) for play in (exact, loose)]
    assert stale[0] is not None
    assert stale[1] is not None
    assert stale[1].bound_ns - stale[0].bound_ns == pytest.approx(600 * US, abs=20 * US)


def test_every_time_that_it_tells_is_host_time() -> None:
    play = Play(Bent(1000 * S, 500_000))
    assert play.clock.to_device(5) is None
    assert play.clock.offset_ns is play.clock.last_ping_received_ns is play.clock.map_previous(5) is None
    play.run(30)
    host_ns = play.scale.to_host(play.steady_ns)
    device_ns = play.device_ns(play.steady_ns)
    assert play.clock.locked
    assert play.clock.state(host_ns) is ClockState.LOCKED
    assert play.clock.state(host_ns + 60 * S) is ClockState.HOLDOVER
    assert play.clock.offset_ns == pytest.approx(host_ns - device_ns, abs=2 * MS)
    asked_ns = play.clock.last_ping_received_ns
    assert asked_ns is not None
    assert host_ns - 2 * S < asked_ns <= host_ns + 5 * MS
    back_ns = play.clock.to_device(play.mapped().host_ns)
    assert back_ns is not None
    assert abs(back_ns - device_ns) <= 5
    ahead_ns = play.clock.ahead_ns(device_ns, host_ns - 10 * MS)
    assert ahead_ns == pytest.approx(10 * MS - play.mapped().bound_ns, abs=500 * US)
    assert play.clock.rtts_ns is not None
    assert 2 * MS <= play.clock.rtts_ns[0] <= play.clock.rtts_ns[1] <= 4 * MS
    assert play.clock.pings_accepted > 30
    assert play.clock.pings_rejected == 0
    assert play.clock.bound_ns == play.clock.estimator.bound_ns
    assert play.clock.precision_ns == play.clock.estimator.precision_ns
    assert abs(play.clock.slew_ns) < MS


def test_steps_suspends_and_resets_are_passed_on() -> None:
    play = Play(Bent(0, 200_000))
    play.run(20)
    play.shows_ns -= 200 * MS
    play.run(3)
    assert play.clock.epoch == 1
    assert play.clock.step_ns == pytest.approx(-200 * MS, abs=5 * MS)
    assert not play.clock.doubting
    stale = play.clock.map_previous(SHOWS_NS + 1005 * S)
    assert stale is not None
    assert stale.epoch == 0
    play.shows_ns += 30 * S
    play.clock.host_suspended(30 * S, play.scale.to_host(play.steady_ns))
    assert play.clock.epoch == 2
    assert play.clock.step_ns == 30 * S
    assert abs(play.mapped().host_ns - play.scale.to_host(play.steady_ns)) <= play.mapped().bound_ns
    play.run(3)
    assert play.clock.epoch == 2
    play.clock.reset()
    assert play.clock.epoch == 3
    assert not play.clock.locked
    assert play.clock.plan.next_ns() == 0
    play.run(30)
    assert abs(play.mapped().host_ns - play.scale.to_host(play.steady_ns)) <= play.mapped().bound_ns
    play.clock.request_burst()
    assert play.clock.plan.next_ns() == 0


def test_a_suspect_is_doubted_until_it_is_clear_that_it_was_alone() -> None:
    play = Play(None)
    play.run(20)
    assert play.clock.arrival(play.device_ns(play.steady_ns) + 50 * MS, play.steady_ns, play.track) is Arrival.SUSPECT
    assert play.clock.doubting
    play.run(2)
    assert not play.clock.doubting
    assert play.clock.epoch == 0
