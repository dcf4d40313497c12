"""Simulated links: what an estimator gets to see, and the truth that it is judged by.

Nothing here is shared with the bridge. True time runs from 0 to ``duration_s``. The host reads ``host(t)``, the device
``device(t)``; both are piecewise smooth and known exactly. A ping takes a forward and a backward delay, a sample takes
one delay; each delay is a floor and a waiting time. Events are in the order in which the host learns them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Waits = Callable[[np.random.Generator, Floats], Floats]
"""(generator, true times of sending) -> waiting times beyond the floor, s."""

STEP_S = 0.01
PING, SAMPLE = 0, 1


# --- waiting times -------------------------------------------------------------------------------------------------


def exponential(scale_s: float) -> Waits:
    return lambda rng, at: rng.exponential(scale_s, len(at))


def gamma(shape: float, scale_s: float) -> Waits:
    return lambda rng, at: rng.gamma(shape, scale_s, len(at))


def lognormal(median_s: float, sigma: float) -> Waits:
    return lambda rng, at: rng.lognormal(np.log(median_s), sigma, len(at))


def uniform(width_s: float) -> Waits:
    return lambda rng, at: rng.uniform(0.0, width_s, len(at))


def plus(*parts: Waits) -> Waits:
    return lambda rng, at: np.sum([part(rng, at) for part in parts], axis=0)


def sometimes(probability: float, waits: Waits) -> Waits:
    return lambda rng, at: np.where(rng.random(len(at)) < probability, waits(rng, at), 0.0)


def congested(waits: Waits, busy: Waits, *, idle_s: float, busy_s: float) -> Waits:
    """Periods of congestion of ``busy_s`` on average, ``idle_s`` apart, in which everything also waits for ``busy``.

    Both directions of one link have their periods from the same generator and so not the same ones.
    """

    def draw(rng: np.random.Generator, at: Floats) -> Floats:
        if not len(at):
            return np.zeros(0)
        count = int((at.max() + 60) / (idle_s + busy_s) * 2) + 20
        lengths = np.column_stack((rng.exponential(idle_s, count), rng.exponential(busy_s, count))).ravel()
        is_busy = np.searchsorted(np.cumsum(lengths), at) % 2 == 1
        return waits(rng, at) + np.where(is_busy, busy(rng, at), 0.0)

    return draw


def beacons(interval_s: float, probability: float) -> Waits:
    """Who sleeps (with that probability) hears of a message at the next beacon."""

    def draw(rng: np.random.Generator, at: Floats) -> Floats:
        phase = rng.uniform(0, interval_s)
        to_next = interval_s - np.mod(at - phase, interval_s)
        return np.where(rng.random(len(at)) < probability, to_next, 0.0)

    return draw


# --- a link --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Floors, s, and waits of what goes to the device, of its replies and of its samples."""

    forward_s: float
    backward_s: float
    sample_s: float
    forward: Waits
    backward: Waits
    sample: Waits


@dataclass(frozen=True)
class Link:
    """A scenario. ``change_s`` is when what is to happen happens; 0 where nothing does."""

    name: str
    path: Path
    goal_us: float
    drift_ppm: float = 20.0
    quantum_s: float = 0.0
    ping_hz: float = 1.0
    sample_hz: float = 120.0
    duration_s: float = 600.0
    change_s: float = 0.0
    device_step_s: float = 0.0
    restart_gap_s: float = 0.0
    outage_s: float = 0.0
    suspend_s: float = 0.0
    host_slew_ppm: float = 0.0
    host_slew_s: float = 0.0
    roam_s: float = 0.0
    corrupt: float = 0.0
    wander_ppm: float = 0.0  # amplitude of a slow swing of the rate, and a random walk beside it
    wander_period_s: float = 400.0


@dataclass
class Run:
    """One link, simulated. Arrays are in the order of the events. Times in s.

    ``kind`` is PING or SAMPLE; of a ping ``sent``, ``device``, ``received``; of a sample ``device``, ``received``.
    ``truth`` is the host time that the stamp ``device`` means (not given where the stamp is corrupt), ``true_time`` the
    simulation's own time of the stamp. ``excess_up`` and ``excess_down`` are a ping's delays beyond what the true
    offset says, from which the oracle takes the smallest.
    """

    link: Link
    seed: int
    kind: NDArray[np.int8]
    sent: Floats
    device: Floats
    received: Floats
    truth: Floats
    true_time: Floats
    known_at: Floats
    corrupt: NDArray[np.bool_]
    excess_up: Floats
    excess_down: Floats
    changes: list[float] = field(default_factory=list)

    @property
    def oracle_error_s(self) -> float:
        """What the middle of the smallest delays of the whole run is off by: no round trip can tell that."""
        up, down = self._smallest()
        return (up - down) / 2

    @property
    def oracle_bound_s(self) -> float:
        up, down = self._smallest()
        return (up + down) / 2

    def _smallest(self) -> tuple[float, float]:
        good = (self.kind == PING) & ~self.corrupt
        return float(self.excess_up[good].min()), float(self.excess_down[good].min())

    @property
    def meta(self) -> dict[str, Any]:
        return {"quantum": self.link.quantum_s, "ping_hz": self.link.ping_hz, "sample_hz": self.link.sample_hz}


def _clocks(link: Link, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """(true times, host, device) on a grid fine enough to interpolate between."""
    t = np.arange(-5.0, link.duration_s + 70.0, STEP_S)
    rate = np.full(len(t), link.drift_ppm * 1e-6)
    if link.wander_ppm:
        swing = np.sin(2 * np.pi * (t / link.wander_period_s + rng.random()))
        walk = np.cumsum(rng.normal(0, link.wander_ppm * 0.005 * np.sqrt(STEP_S), len(t)))
        rate += (link.wander_ppm * swing + walk) * 1e-6
    device = rng.uniform(1e3, 1e5) + t + np.concatenate(([0.0], np.cumsum(rate[:-1]) * STEP_S))
    host = rng.uniform(1e3, 1e5) + t
    after = np.maximum(t - link.change_s, 0.0)
    if link.host_slew_ppm:
        host += link.host_slew_ppm * 1e-6 * np.minimum(after, link.host_slew_s)
    if link.suspend_s:
        host -= np.minimum(after, link.suspend_s)
    return t, host, device


def simulate(link: Link, seed: int) -> Run:
    """Plays a link. The same link and seed give the same run."""
    rng = np.random.default_rng((zlib.crc32(link.name.encode()), seed))
    t, host_grid, device_grid = _clocks(link, rng)
    step_s = link.device_step_s
    if link.restart_gap_s:
        step_s = float(rng.uniform(-5e4, 5e4))
    path, change_s = link.path, link.change_s

    def host(at: Floats) -> Floats:
        return np.asarray(np.interp(at, t, host_grid))

    def device(at: Floats) -> Floats:
        return np.asarray(np.interp(at, t, device_grid)) + np.where(at >= change_s, step_s, 0.0)

    def stamped(at: Floats) -> Floats:
        exact = device(at)
        return np.floor(exact / link.quantum_s) * link.quantum_s if link.quantum_s else exact

    def absent(at: Floats) -> NDArray[np.bool_]:
        gap_s = max(link.restart_gap_s, link.outage_s, link.suspend_s)
        return (at >= change_s) & (at < change_s + gap_s) if gap_s else np.zeros(len(at), dtype=bool)

    # Pings: a burst of ten, then regular and dithered.
    interval_s = 1 / link.ping_hz
    regular = np.arange(1.0, link.duration_s, interval_s)
    sent_at = np.concatenate((np.arange(10) * 0.1, regular + rng.uniform(-0.2, 0.2, len(regular)) * interval_s))
    sent_at = np.sort(sent_at[sent_at >= 0])
    forward = path.forward_s + path.forward(rng, sent_at)
    stamped_at = sent_at + forward
    back_s = path.backward_s + np.where(stamped_at >= change_s, link.roam_s, 0.0)
    got_at = stamped_at + back_s + path.backward(rng, stamped_at)
    kept = ~(absent(sent_at) | absent(got_at) | absent(stamped_at)) & (got_at < link.duration_s)
    sent_at, stamped_at, got_at = sent_at[kept], stamped_at[kept], got_at[kept]

    # Samples: in order, as over TCP.
    made_at = np.arange(0.0, link.duration_s, 1 / link.sample_hz) + rng.uniform(0, 1 / link.sample_hz)
    roam = np.where(made_at >= change_s, link.roam_s, 0.0)
    there_at = made_at + path.sample_s + roam + path.sample(rng, made_at)
    if link.outage_s:  # kept by the device and sent as one backlog
        late = absent(there_at) | absent(made_at)
        backlog = change_s + link.outage_s + np.arange(late.sum()) * 1e-4
        there_at[late] = np.maximum(there_at[late], backlog)
    there_at = np.maximum.accumulate(there_at)
    kept = there_at < link.duration_s
    if link.restart_gap_s or link.suspend_s:
        kept &= ~absent(made_at) & ~absent(there_at)
    made_at, there_at = made_at[kept], there_at[kept]

    pings, samples = len(sent_at), len(made_at)
    at = np.concatenate((stamped_at, made_at))
    stamps = stamped(at)
    exact = device(at)
    received_at = np.concatenate((got_at, there_at))
    truth = host(at) - (exact - stamps)
    sent = np.concatenate((host(sent_at), np.full(samples, np.nan)))
    received = host(received_at)
    corrupt = np.zeros(len(at), dtype=bool)
    if link.corrupt:
        corrupt = rng.random(len(at)) < link.corrupt
        corrupt[:12] = False
        size = 10 ** rng.uniform(-3.5, 0.5, len(at)) * rng.choice((-1, 1), len(at))
        mismatched = corrupt & (np.arange(len(at)) < pings) & (rng.random(len(at)) < 0.5)
        sent = np.where(mismatched, received - rng.uniform(0, 1, len(at)) * (received - sent), sent)
        stamps = np.where(corrupt & ~mismatched, stamps + size, stamps)
    good = stamped(at)
    up = host(received_at) - good - (host(at) - exact)
    down = host(at) - exact - (np.concatenate((host(sent_at), np.full(samples, np.nan))) - good - link.quantum_s)
    kind = np.concatenate((np.full(pings, PING), np.full(samples, SAMPLE))).astype(np.int8)
    order = np.argsort(received_at, kind="stable")
    changes = [change_s] if change_s else []
    if link.host_slew_s:
        changes.append(change_s + link.host_slew_s)
    return Run(
        link=link,
        seed=seed,
        kind=kind[order],
        sent=sent[order],
        device=stamps[order],
        received=received[order],
        truth=truth[order],
        true_time=at[order],
        known_at=received_at[order],
        corrupt=corrupt[order],
        excess_up=up[order],
        excess_down=down[order],
        changes=changes,
    )


# --- the scenarios -------------------------------------------------------------------------------------------------

US, MS = 1e-6, 1e-3
LOCALHOST = Path(
    20 * US, 20 * US, 30 * US, exponential(15 * US), exponential(15 * US),
    plus(exponential(20 * US), sometimes(0.01, exponential(1 * MS))),
)  # fmt: skip
LAN = Path(
    120 * US, 100 * US, 150 * US, gamma(1.5, 40 * US), gamma(1.5, 40 * US),
    plus(gamma(1.5, 50 * US), sometimes(0.01, exponential(2 * MS))),
)  # fmt: skip
WIFI = Path(
    0.8 * MS, 0.7 * MS, 1.2 * MS,
    plus(lognormal(0.8 * MS, 0.6), sometimes(0.05, exponential(8 * MS))),
    plus(lognormal(0.6 * MS, 0.6), sometimes(0.05, exponential(8 * MS))),
    plus(lognormal(0.6 * MS, 0.6), sometimes(0.05, exponential(8 * MS))),
)  # fmt: skip
BUSY = Path(
    0.8 * MS, 0.7 * MS, 1.2 * MS,
    congested(lognormal(1.5 * MS, 0.8), exponential(25 * MS), idle_s=6, busy_s=3),
    congested(lognormal(1.2 * MS, 0.8), exponential(25 * MS), idle_s=6, busy_s=3),
    congested(lognormal(1.2 * MS, 0.8), exponential(25 * MS), idle_s=6, busy_s=3),
)  # fmt: skip
POWER_SAVE = Path(
    1.0 * MS, 0.8 * MS, 1.2 * MS,
    plus(lognormal(0.6 * MS, 0.6), beacons(102.4 * MS, 0.7)),
    lognormal(0.5 * MS, 0.6),
    plus(lognormal(0.5 * MS, 0.6), sometimes(0.02, exponential(10 * MS))),
)  # fmt: skip
BLUETOOTH = Path(
    4 * MS, 4 * MS, 6 * MS,
    plus(uniform(30 * MS), sometimes(0.1, exponential(20 * MS))),
    plus(uniform(7.5 * MS), sometimes(0.05, exponential(15 * MS))),
    plus(uniform(11 * MS), sometimes(0.05, exponential(15 * MS))),
)  # fmt: skip

LINKS = {
    link.name: link
    for link in (
        Link("localhost", LOCALHOST, 5, drift_ppm=0.0),
        Link("lan", LAN, 10),
        Link("wifi 0 ppm", WIFI, 40, drift_ppm=0.0),
        Link("wifi 20 ppm", WIFI, 40),
        Link("wifi 100 ppm", WIFI, 40, drift_ppm=100.0),
        Link("wifi 0.2 Hz", WIFI, 115, ping_hz=0.2),
        Link("wifi 5 Hz", WIFI, 15, ping_hz=5.0),
        Link("busy wifi", BUSY, 125, drift_ppm=-30.0),
        Link("power save", POWER_SAVE, 110),
        Link("ms stamps", WIFI, 270, quantum_s=1e-3),
        Link("bluetooth", BLUETOOTH, 750),
        Link("thermal", WIFI, 200, wander_ppm=5.0),
        Link("step +50 ms", WIFI, 160, change_s=300.0, device_step_s=0.05),
        Link("step -200 ms", LAN, 25, change_s=300.0, device_step_s=-0.2),
        Link("restart", WIFI, 150, change_s=300.0, restart_gap_s=8.0),
        Link("outage", WIFI, 75, change_s=300.0, outage_s=60.0),
        Link("suspend", WIFI, 140, change_s=300.0, suspend_s=30.0),
        Link("host slew", WIFI, 400, change_s=300.0, host_slew_ppm=500.0, host_slew_s=60.0),
        Link("roam", WIFI, 60, change_s=300.0, roam_s=3e-3),
        Link("corrupt", WIFI, 40, corrupt=0.01),
    )
}


def sharper(path: Path) -> Path:
    """The same floors with waits that reach them often (exponential), as a check against tuning to one shape."""
    return replace(
        path,
        forward=plus(exponential(0.5 * MS), sometimes(0.05, exponential(8 * MS))),
        backward=plus(exponential(0.4 * MS), sometimes(0.05, exponential(8 * MS))),
        sample=plus(exponential(0.4 * MS), sometimes(0.05, exponential(8 * MS))),
    )
