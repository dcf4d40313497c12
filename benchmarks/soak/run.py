"""One soak: draws faults from a seed, reads the daemon once a second, and judges what it sees."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.soak import faults
from benchmarks.soak.faults import Fault
from benchmarks.soak.figures import Figures, Reading, read, warm_up_s
from benchmarks.soak.lab import Lab, Tracker
from bridge.errors import BridgeError

STEP_S = 0.05
READ_S = 1.0
WATCH_S = 0.2  # how often the status is asked for while a device is expected back
BACK_S = 5.0
START_S = 30.0
TAIL_S = 10.0  # without new faults, at the end
SETTLE_S = 60.0  # a peer of ZRE that is killed is given up after half a minute
QUIET_S = 1.5  # after which nothing waits to be put in order
RELOAD_S = 60.0
WARM_UP_SHARE = 0.25  # of the interval, while it warms up: see `figures.warm_up_s`
PROGRESS_S = 30.0
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)  # at most; the first one is there before the faults
SLOPE_AFTER_S = 900.0  # of settled time; a slope of less says nothing of an hour
MAX_SLOPE_MB = 1.0


@dataclass
class _Watched:
    """One device, as it should be: ``up_at`` None while a fault keeps it down."""

    up_at: float | None = None
    samples_out: int = 0
    progress_at: float = 0.0
    awaited: bool = False
    reported: bool = False


@dataclass(order=True)
class _Going:
    """A fault that goes on at a time."""

    at: float
    number: int
    name: str = field(compare=False)
    target: str = field(compare=False)
    fault: Fault = field(compare=False)


class Soak:
    """A run in a lab that has started. What is wrong is in ``wrongs``, a sentence each; empty is good."""

    def __init__(
        self, lab: Lab, seed: int, duration_s: float, interval_s: float, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """A fault begins every ``interval_s``, by half more or less, and four times as often while it warms up. ``say``
        gets what is wrong and the progress."""
        self.lab = lab
        self.dice = random.Random(seed)
        self.duration_s = duration_s
        self.wrongs: list[str] = []
        self.begun: Counter[str] = Counter()
        self.backs_s: list[tuple[float, str]] = []
        self.readings: list[Reading] = []
        self.before: Reading | None = None
        self.after: Reading | None = None
        self.last: dict[str, Any] = {}
        self.heard: dict[str, dict[str, Any]] = {}
        self._interval_s = interval_s
        self._say = say
        self._watched = {tracker.name: _Watched() for tracker in lab.trackers}
        self._kinds = self._fault_kinds()
        self._round = self.dice.sample(list(self._kinds), len(self._kinds))  # each once, before any comes twice
        self._going: list[_Going] = []
        self._numbers = 0
        self._reloads = 0
        self._latest = {tracker.name: "the start" for tracker in lab.trackers}
        self._started = time.monotonic()

    # --- what faults are given (`faults.Stage`) -------------------------------------------------------------------

    def down(self, tracker: Tracker) -> None:
        watched = self._watched[tracker.name]
        watched.up_at, watched.awaited, watched.reported = None, False, False

    def up(self, tracker: Tracker) -> None:
        watched = self._watched[tracker.name]
        status = self._status()
        if status is not None:
            watched.samples_out = _gaze_out(status, tracker.name)
        watched.up_at = watched.progress_at = time.monotonic()
        watched.awaited, watched.reported = True, False

    def wrong(self, text: str) -> None:
        text = f"at {self._now_s:.0f} s: {text}"
        self._say(f"WRONG {text}")
        self.wrongs.append(text)

    # --- the run --------------------------------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._started

    def run(self) -> None:
        """Returns when it is over. Raises RuntimeError when a process ends that should not."""
        try:
            self._run()
        finally:  # sockets of faults that were cut off would keep this process from ending
            for going in self._going:
                going.fault.close()

    def _run(self) -> None:
        for tracker in self.lab.trackers:
            self.up(tracker)
        self._until(lambda: not any(w.awaited for w in self._watched.values()), START_S, "every device streams")
        self._reload()  # the first one makes a thread that stays
        self._started = time.monotonic()
        self.readings.clear()
        self._step(now=True)
        self.before = self.readings[-1]
        reload_s = min(RELOAD_S, self.duration_s / 6)
        next_fault_s, next_reload_s, next_progress_s = 0.0, reload_s / 2, 0.0
        while self._now_s < self.duration_s or self._going:
            if self._now_s < self.duration_s - TAIL_S:
                if self._now_s >= next_fault_s:
                    self._begin_some()
                    warm = self._now_s >= warm_up_s(self.duration_s)
                    interval_s = self._interval_s * (1.0 if warm else WARM_UP_SHARE)
                    next_fault_s = self._now_s + interval_s * self.dice.uniform(0.5, 1.5)
                if self._now_s >= next_reload_s and self.lab.catches_hangup:
                    self._begin("reloaded", "configuration", faults.reloaded(self, self._reloads))
                    self._reloads += 1
                    next_reload_s += reload_s
            if self._now_s >= next_progress_s:
                self._say(self.progress())
                next_progress_s += PROGRESS_S
            self._step()
        self._settle()
        self._compare_readers()
        if "Traceback" in self.lab.daemon.errors():
            self.wrong("a traceback in the daemon's log")

    def _reload(self) -> None:
        if self.lab.catches_hangup:
            wanted = self.last["config"]["reloads"] + 1
            self.lab.daemon.signal(signal.SIGHUP)
            self._until(lambda: self.last["config"]["reloads"] >= wanted, START_S, "a reload")

    def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self.wrong(f"not within {timeout_s:.0f} s: {what}")
                return False
            self._step()
        return True

    def _step(self, now: bool = False) -> None:
        """Lets the faults go on that are due, and reads the daemon when it is time."""
        self.lab.daemon.check()
        for reader in self.lab.readers.values():
            reader.check()
        due = [going for going in self._going if going.at <= time.monotonic()]
        for going in sorted(due):
            self._going.remove(going)
            wait_s = next(going.fault, None)
            if wait_s is not None:
                going.at = time.monotonic() + wait_s
                self._going.append(going)
        awaited = any(watched.awaited for watched in self._watched.values())
        last_s = self.readings[-1].time_s if self.readings else -READ_S
        if now or self._now_s - last_s >= (WATCH_S if awaited else READ_S):
            self._read(keep=now or self._now_s - last_s >= READ_S or not self.readings)
        time.sleep(STEP_S)

    def _status(self) -> dict[str, Any] | None:
        try:
            return self.lab.status()
        except BridgeError as error:
            self.lab.daemon.check()
            self.wrong(f"no status: {error}")
            return None

    def _read(self, keep: bool) -> None:
        asked = time.monotonic()
        status = self._status()
        if status is None:
            return
        self.last = status
        if keep:
            self.readings.append(read(self.lab.daemon.pid, self._now_s, time.monotonic() - asked, status))
        now = time.monotonic()
        for tracker in self.lab.trackers:
            self._watch(tracker.name, _gaze_out(status, tracker.name), now)

    def _watch(self, name: str, samples_out: int, now: float) -> None:
        watched = self._watched[name]
        if samples_out > watched.samples_out:
            watched.samples_out, watched.progress_at = samples_out, now
            if watched.awaited and watched.up_at is not None:
                watched.awaited = False
                self.backs_s.append((now - watched.up_at, f"{name} after {self._latest[name]}"))
        elif watched.up_at is not None and not watched.reported and now - watched.progress_at > BACK_S:
            watched.reported = True
            self.wrong(f"{name} is up and has not streamed for {BACK_S:.0f} s, after {self._latest[name]}")

    # --- faults ---------------------------------------------------------------------------------------------------

    def _fault_kinds(self) -> dict[str, Callable[[], tuple[str, Fault] | None]]:
        def on_tracker(fault: Callable[..., Fault], kind: str = "") -> Callable[[], tuple[str, Fault] | None]:
            def make() -> tuple[str, Fault] | None:
                busy = {going.target for going in self._going}
                free = [t for t in self.lab.trackers if t.name not in busy and t.kind.startswith(kind)]
                # A device comes back before the next fault takes it, so that each is judged by itself.
                free = [t for t in free if not self._watched[t.name].awaited]
                tracker = self.dice.choice(free) if free else None
                return None if tracker is None else (tracker.name, fault(self, tracker))

            return make

        def at(target: str, fault: Callable[[], Fault]) -> Callable[[], tuple[str, Fault] | None]:
            return lambda: None if target in {going.target for going in self._going} else (target, fault())

        kinds = {
            "killed": on_tracker(faults.killed),
            "departed": on_tracker(faults.departed),
            "stopped": on_tracker(faults.stopped),
            "capture_clock_set": on_tracker(faults.clock_set, "core"),
            "app_clock_restarted": on_tracker(faults.clock_set, "companion"),
            "backbone_flooded": on_tracker(faults.backbone_flooded, "core"),
            "beacon_flooded": at("beacon", lambda: faults.beacon_flooded(self)),
            "mailbox_flooded": at("mailbox", lambda: faults.mailbox_flooded(self)),
            "control_flooded": at("control", lambda: faults.control_flooded(self)),
            "client_stopped": at("client", lambda: faults.client_stopped(self)),
        }
        for name, reader in self.lab.readers.items():
            kinds[f"reader_{name}_stopped"] = at(name, lambda r=reader: faults.reader_stopped(self, r))
        return kinds

    def _begin_some(self) -> None:
        name = self._round.pop() if self._round else self.dice.choice(list(self._kinds))
        made = self._kinds[name]()
        if made is not None:
            self._begin(name, *made)

    def _begin(self, name: str, target: str, fault: Fault) -> None:
        self._numbers += 1
        self.begun[name] += 1
        if target in self._latest:
            self._latest[target] = name
        self._going.append(_Going(time.monotonic(), self._numbers, name, target, fault))

    # --- the end --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """When nothing is wrong any more, as many files and threads are there as before the first fault.

        But for threads of asyncio's pool, which loads configurations: it makes another one when two are wanted at once.
        Forty reloads that added a device and forty that removed it made one.
        """
        self.lab.write_config()
        self._reload()
        everybody = "every device streams at the end"
        self._until(lambda: not any(w.awaited for w in self._watched.values()), BACK_S + 1, everybody)

        before = self.before
        assert before is not None

        def as_before() -> bool:
            now = self.readings[-1]
            return now.files <= before.files and now.threads <= before.threads + POOL_THREADS - 1

        self._until(as_before, SETTLE_S, "as few files and threads as before the faults")
        self.after = self.readings[-1]

    def _compare_readers(self) -> None:
        """LSL keeps everything for a reader that is slow or stopped: it has to have every sample that left."""
        for tracker in self.lab.trackers:
            self.down(tracker)
            tracker.process.signal(signal.SIGTERM)
        devices = [tracker.name for tracker in self.lab.trackers]

        def heard_all() -> bool:
            self.heard = {name: reader.lines()[-1] for name, reader in self.lab.readers.items()}
            counts = self.heard["lsl"]["counts"]
            quiet = all(_gaze(self.last, name)["age_s"] > QUIET_S for name in devices)
            return quiet and all(counts[name] == _gaze_out(self.last, name) for name in devices)

        self._until(heard_all, 20.0, "the LSL reader has every sample that left")
        for name, said in self.heard.items():
            if any(said["backwards"].values()):
                self.wrong(f"stamps that go backwards, at the reader of {name}: {said['backwards']}")

    # --- what is told ---------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        return Figures([r for r in self.readings if r.time_s <= self.duration_s], self.duration_s)

    def judge(self) -> list[str]:
        """Everything that is wrong, the slopes with it where the run was long enough for them."""
        wrongs, figures = list(self.wrongs), self.figures()
        if not figures.settled:
            return wrongs or ["it ended before there was anything to judge"]
        settled_s = figures.settled[-1].time_s - figures.settled[0].time_s
        if settled_s < SLOPE_AFTER_S:
            return wrongs
        rss = figures.slope("rss")
        if rss.low > MAX_SLOPE_MB:
            wrongs.append(f"RSS grows by {rss.value:.2f} MB an hour ({rss.low:.2f} to {rss.high:.2f})")
        growths = {name: figures.slope(name) for name in ("files", "threads")}
        return wrongs + [f"{name} grow by {by.value:.1f} an hour" for name, by in growths.items() if by.low > 0]

    def report(self) -> str:
        lines = [self.figures().table(), ""]
        for when, reading in (("before", self.before), ("after", self.after)):
            if reading is not None:
                lines.append(f"{when} the faults: {reading.files} files, {reading.threads} threads")
        lines.append(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(self.begun.items()))}")
        lines.append(f"lives: {', '.join(f'{tracker.name} {tracker.lives}' for tracker in self.lab.trackers)}")
        if self.backs_s:
            worst = sorted(self.backs_s, reverse=True)[:5]
            lines.append(
                f"back after a fault: {len(self.backs_s)} times, {median(s for s, _ in self.backs_s):.1f} s (median); "
                f"slowest: {', '.join(f'{s:.1f} s {what}' for s, what in worst)}"
            )
        for name, said in self.heard.items():
            lines.append(f"reader of {name}: {', '.join(f'{d} {c}' for d, c in said['counts'].items())}")
        lines += ["", f"{'device':<18}{'stream':<12}{'in':>9}{'LSL':>9}{'ROS 2':>9}   dropped"]
        for device in self.last.get("devices", []):
            for stream in device["streams"]:
                out = stream["samples_out"]
                drops = ", ".join(f"{reason} {count}" for reason, count in sorted(stream["dropped"].items()) if count)
                lines.append(
                    f"{device['name']:<18}{stream['name']:<12}{stream['samples_in']:>9}{out.get('lsl', 0):>9}"
                    f"{out.get('ros2', 0):>9}   {drops or '-'}"
                )
            if device["malformed"]:
                lines.append(f"{'':<18}malformed: {', '.join(f'{k} {v}' for k, v in device['malformed'].items())}")
        for source in self.last.get("sources", []):
            if source.get("counts"):
                lines.append(f"{source['name']}: {', '.join(f'{k} {v}' for k, v in source['counts'].items())}")
        return "\n".join(lines)

    def progress(self) -> str:
        now = self.readings[-1]
        return (
            f"{self._now_s / 60:5.1f} of {self.duration_s / 60:g} min: RSS {now.rss / 1e6:.1f} MB, {now.files} files, "
            f"{now.threads} threads, {sum(self.begun.values())} faults, {len(self.wrongs)} wrong"
        )


def _gaze_out(status: dict[str, Any], device: str) -> int:
    """How many gaze samples of a device have left for LSL."""
    return int(_gaze(status, device)["samples_out"]["lsl"])


def _gaze(status: dict[str, Any], device: str) -> dict[str, Any]:
    streams = next(each["streams"] for each in status["devices"] if each["name"] == device)
    found: dict[str, Any] = next(stream for stream in streams if stream["name"] == "gaze")
    return found
