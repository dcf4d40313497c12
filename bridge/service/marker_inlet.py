"""One LSL stream of markers as it is heard, in a thread of its own: found, opened, mapped to this computer's clock.

LSL's clock is CLOCK_MONOTONIC on Linux. A stamp of another computer's is mapped by what liblsl measures beside the
stream: eight round trips every two seconds, of which the shortest counts. The error is at most half of that round trip,
and what the two clocks drift in two seconds.

liblsl's calls block, so each is given a fraction of a second: the thread ends within STOP_S.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bridge.service.marker_words import text_of
from bridge.service.quiet import LineBudget

log = logging.getLogger(__name__)

STOP_S: Final = 2.0
RESOLVE_S: Final = 1.0
PAUSE_S: Final = 1.0  # between two looks for a stream
CALL_S: Final = 0.5
PULL_S: Final = 0.2
CHUNK: Final = 100
FLOOD_PAUSE_S: Final = 0.01  # after a full chunk: ten thousand markers a second are enough
BUFFERED: Final = 10  # x 100 samples, in liblsl, while the clocks are compared
SILENT_S: Final = 7.0  # without a new comparison of the clocks, which are there every 2 s: is the stream still there?
UNCOMPARED_S: Final = 10.0  # what no firewall lets through is said
MAX_CHANNELS: Final = 64
MAX_SHOWN: Final = 60
MAX_TOLD: Final = 100


class Heard(NamedTuple):
    """One marker: its text ("" is none), its time in seconds of CLOCK_MONOTONIC, and whether it had to be cut."""

    text: str
    host_s: float
    cut: bool


class Hearing(NamedTuple):
    """How it stands with the stream. ``problem`` is why it is not heard though it may be there."""

    connected: bool = False
    source_id: str = ""
    hostname: str = ""
    channels: int = 0
    correction_s: float | None = None  # to be added to the stream's stamps
    uncertainty_s: float | None = None  # the round trip by which that was found
    problem: str | None = None


class _Correction(NamedTuple):
    offset_s: float
    uncertainty_s: float
    age_s: float


class _Found(NamedTuple):
    info: Any  # pylsl.StreamInfo
    uid: str
    source_id: str
    hostname: str

    def __str__(self) -> str:
        return f"source_id {self.source_id[:MAX_SHOWN]!r} on {self.hostname[:MAX_SHOWN]!r}"


class MarkerInlet:
    """Listens from ``start`` to ``stop``. ``heard`` gets markers, in their order, ``bug`` what should not have
    happened, and ``ended`` is the last that is called; all in the thread. ``now`` can be read at every time."""

    def __init__(
        self,
        listens_to: tuple[str, str, str],
        heard: Callable[[list[Heard]], None],
        bug: Callable[[Exception], None],
        ended: Callable[[], None],
    ) -> None:
        """``listens_to``: name, source_id and hostname; "" is any, but for the name."""
        self.now = Hearing()
        self._name = listens_to[0]
        self._query = " and ".join(
            f"{key}={_quoted(value)}"
            for key, value in zip(("name", "source_id", "hostname"), listens_to, strict=True)
            if value
        )
        self._heard, self._bug, self._at_end = heard, bug, ended
        self._ended = threading.Event()
        self._lines = LineBudget()
        self._told: set[str] = set()  # what was said already, until a stream is heard again
        self._last_source_id: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"lsl markers {self._name[:40]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end, which takes up to STOP_S."""
        self._ended.set()

    def join(self) -> None:
        """Waits for its end, which has been told."""
        self._thread.join()

    def _run(self) -> None:
        try:
            from bridge.sinks.lsl import quiet

            quiet()  # as the sink does, which may not be there
            while not self._ended.is_set():
                heard = False
                for found in self._find():
                    heard = self._listen(found)
                    if heard or self._ended.is_set():
                        break
                if not heard:  # one that has been lost is looked for at once
                    self._ended.wait(PAUSE_S)
        except Exception as error:  # noqa: BLE001 - handed on, to end the daemon loudly
            self._bug(error)
        finally:
            self._at_end()

    # --- finding ------------------------------------------------------------------------------------------------

    def _find(self) -> list[_Found]:
        """The streams that can be taken, the best one first."""
        import pylsl

        # Never satisfied before its time: another one of that name may answer later than the first.
        infos = pylsl.resolve_bypred(self._query, 1024, RESOLVE_S)
        if self._ended.is_set():
            return []
        found = [_Found(info, info.uid(), info.source_id(), info.hostname()) for info in infos]
        found.sort(key=lambda each: (each.source_id != self._last_source_id, each.source_id, each.hostname, each.uid))
        usable = []
        for each in found:
            fault = _fault(each.info)
            if fault is None:
                usable.append(each)
            else:
                self._refuse(each, fault)
        if not found:
            self.now = Hearing()
            self._tell("absent", "is not there; waiting for it")
        if len(usable) > 1:
            others = "; ".join(map(str, usable[1:4]))
            words = f"is there {len(usable)} times: {usable[0]} is taken, not {others}. Set source_id or hostname"
            self._tell(words, words)
        return usable

    def _refuse(self, found: _Found, fault: str) -> None:
        self.now = Hearing(False, found.source_id, found.hostname, problem=f"is not listened to: {fault}")
        self._tell(fault + found.uid, f"{found} is not listened to: {fault}")

    # --- listening ----------------------------------------------------------------------------------------------

    def _listen(self, found: _Found) -> bool:
        """Hears this stream until it has gone, or until the end. False when it could not be taken."""
        import pylsl
        from pylsl.util import LostError

        try:
            # liblsl itself finds it again after a moment's loss. Without that, a stream that is closed takes the
            # markers with it that are here already and not read yet.
            inlet = pylsl.StreamInlet(found.info, max_buflen=BUFFERED, recover=True, as_numpy=True)
            inlet.open_stream(CALL_S)  # from now on markers are kept for us
            bridge = inlet.info(CALL_S).desc().child("acquisition").child_value("bridge")
        except RuntimeError as error:  # every error of pylsl's is one
            self.now = Hearing(False, found.source_id, found.hostname, problem=f"cannot be opened: {error}")
            self._tell("open", f"{found} cannot be opened: {error}")
            return False
        if bridge:
            self._refuse(found, "it comes from a pupil-bridge, to which its events would come back without an end")
            return False
        self._last_source_id = found.source_id
        try:
            self._hear(_Inlet(inlet), found)
        except LostError:
            pass
        except RuntimeError as error:
            self._tell("broken", f"is lost: {error}")
        if not self._ended.is_set():
            log.log(self._lines.level(logging.INFO), "marker stream %s: has gone; waiting for it", self._name)
        self.now = Hearing()
        self._told = {"absent"}
        return True

    def _hear(self, inlet: _Inlet, found: _Found) -> None:
        """Returns when the stream is no longer there."""
        channels = found.info.channel_count()
        words = f"{found} is listened to" + (f", the first of its {channels} channels" if channels > 1 else "")
        log.log(self._lines.level(logging.INFO), "marker stream %s: %s", self._name, words)
        state = self.now = Hearing(True, found.source_id, found.hostname, channels)
        compared_s = looked_s = time.monotonic()
        while not self._ended.is_set():
            correction = inlet.correction(CALL_S)  # before the markers: a stream that was found again has a new one
            now_s = time.monotonic()
            if correction is not None:
                compared_s = now_s - correction.age_s
                self.now = state._replace(correction_s=correction.offset_s, uncertainty_s=correction.uncertainty_s)
                self._take(inlet, correction.offset_s)
            elif now_s - compared_s > UNCOMPARED_S:
                problem = "its clock cannot be compared, so its markers wait: does a firewall keep UDP away?"
                self.now = state._replace(problem=problem)
                self._tell("clock", problem)
            if now_s - max(compared_s, looked_s) > SILENT_S:
                looked_s = now_s
                if self._is_gone(found):
                    self._take(inlet, None if correction is None else correction.offset_s)
                    return

    def _take(self, inlet: _Inlet, correction_s: float | None) -> None:
        """Hands on what has come. Without a correction the time of markers is not known."""
        values, stamps_s = inlet.pull()
        if not values:
            return
        to_host_s = math.nan if correction_s is None else correction_s - _lsl_ahead_s()
        heard = []
        for value, stamp_s in zip(values, stamps_s, strict=True):
            text, cut = text_of(value)
            heard.append(Heard(text, stamp_s + to_host_s, cut))
        self._heard(heard)
        if len(values) == CHUNK:
            self._ended.wait(FLOOD_PAUSE_S)

    def _is_gone(self, found: _Found) -> bool:
        """Whether this outlet no longer answers; another one of the same source_id is another one."""
        import pylsl

        return found.uid not in {info.uid() for info in pylsl.resolve_bypred(self._query, 1024, RESOLVE_S)}

    def _tell(self, what: str, words: str) -> None:
        """A warning, once until a stream has been heard; strangers cause no more than a few."""
        known = what in self._told
        if len(self._told) < MAX_TOLD:
            self._told.add(what)
        level = logging.DEBUG if known else self._lines.level(logging.WARNING)
        log.log(level, "marker stream %s: %s", self._name, words)


class _Inlet:
    """An inlet of pylsl's whose first channel counts. All of it raises RuntimeError, as pylsl does."""

    def __init__(self, inlet: Any) -> None:
        from pylsl.lib import lib

        self._inlet = inlet
        self._correction = lib["lsl_time_correction_ex"]  # pylsl has only the one that does not say how good it is
        self._correction.restype = ctypes.c_double

    def correction(self, timeout_s: float) -> _Correction | None:
        """What is to be added to stamps, None when it is not known in this time."""
        from pylsl.util import TimeoutError as LslTimeout
        from pylsl.util import handle_error, local_clock

        measured_s, uncertainty_s, fault = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
        offset_s = self._correction(
            self._inlet.obj,
            ctypes.byref(measured_s),
            ctypes.byref(uncertainty_s),
            ctypes.c_double(timeout_s),
            ctypes.byref(fault),
        )
        try:
            handle_error(fault)
        except LslTimeout:
            return None
        return _Correction(offset_s, uncertainty_s.value, local_clock() - (measured_s.value + offset_s))

    def pull(self) -> tuple[list[Any], list[float]]:
        """Values and stamps of what has come within PULL_S."""
        rows, stamps_s = self._inlet.pull_chunk(PULL_S, CHUNK, min_samples=1)
        first = rows[:, 0]
        # Text is bytes. Floats stay numpy's, which know how many digits they have.
        return list(first) if first.dtype.kind == "f" else first.tolist(), stamps_s.tolist()


def _fault(info: Any) -> str | None:
    """Why this stream is no stream of markers, if so."""
    import pylsl

    channels, rate_hz, text = info.channel_count(), info.nominal_srate(), info.channel_format() == pylsl.cf_string
    if not 1 <= channels <= MAX_CHANNELS:
        return f"it has {channels} channels"
    if rate_hz > 0 and not text:
        return f"it has numbers at {rate_hz:g} Hz, and markers have no rate"
    if info.channel_format() == pylsl.cf_undefined:
        return "it does not say what its channels hold"
    return None


def _quoted(value: str) -> str:
    """A text in a query; the configuration lets none pass that has both quotes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _lsl_ahead_s() -> float:
    """LSL's clock less host time."""
    from bridge.sinks.lsl import host_to_lsl_ns

    return host_to_lsl_ns() * 1e-9
