"""What the backbone of one Pupil Capture carries, on its way to the streams of the device: all but images.

While Capture's clock is being set, what arrives waits until the clock has been measured anew: a moment later nobody
could tell which of the two clocks stamped it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable

from bridge.clock.host import monotonic_ns
from bridge.config import PupilCoreSource
from bridge.errors import MalformedMessage
from bridge.pipeline import Device
from bridge.service.quiet import LineBudget
from bridge.sources import pupil_core_streams as streams
from bridge.sources.pupil_core_movements import Blinks, Fixations, WholeBlink, WholeFixation
from bridge.stream_input import StreamInput
from bridge.wire import pupil_core as wire
from bridge.wire import pupil_core_channels as channels
from bridge.wire import pupil_core_movements as movements
from bridge.wire import pupil_core_notes as notes
from bridge.wire import pupil_core_surfaces as surfaces

log = logging.getLogger(__name__)

MAX_SURFACES = 32
ANNOTATIONS_KNOWN = 100
HELD_MAX_DATUMS = 5_000
HELD_MAX_NS = 1_000_000_000  # a clock is measured in milliseconds; anybody can write the log's lines
DATUM_TOPICS = {
    "gaze": b"gaze.",
    "pupil": b"pupil.",
    "fixations": b"fixations",
    "blinks": b"blinks",
    "surfaces": b"surfaces.",
}
LOG_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


class PupilCoreData:
    """The streams of one Pupil Capture but for its cameras', and what they are made of. They stay while it goes."""

    def __init__(
        self, device: Device, config: PupilCoreSource, counts: Counter[str], ask_clock: Callable[[], None]
    ) -> None:
        """Opens the streams of all topics that are chosen. ``counts`` goes to the status; ``ask_clock`` is called when
        datums look as if the clock had been set, and wait until `release`."""
        self.last_datum_ns = 0
        self._device = device
        self._config = config
        self._counts = counts
        self._lines = LineBudget()
        self._held: list[tuple[list[bytes], int]] | None = None
        self._held_ns = 0
        self._ask_clock = ask_clock
        self._doubted = False  # pupils look as if the clock had been set
        self._annotated: deque[tuple[str, int]] = deque(maxlen=ANNOTATIONS_KNOWN)
        self._merging: list[Fixations | Blinks] = []  # what makes whole ones of the device's datums
        self._surfaces: dict[str, _Surface] = {}
        self._slugs: set[str] = set()
        descriptor, chosen, live = device.descriptor, config.topics, config.live
        self._gaze = device.stream(streams.gaze_stream(descriptor, config)) if "gaze" in chosen else None
        self._pupil: dict[tuple[int, str], StreamInput] = {}
        self._pupillometry: StreamInput | None = None
        if "pupil" in chosen:
            for eye in (0, 1):
                for method in ("2d", "3d"):
                    opened = device.stream(streams.pupil_stream(descriptor, config, eye, method))
                    self._pupil[eye, method] = opened
            if config.pupillometry_only or config.compat == "capture":
                self._pupillometry = device.stream(streams.pupillometry_stream(descriptor, config))
        self._fixation_windows: StreamInput | None = None
        self._blink_edges: StreamInput | None = None
        if "fixations" in chosen:
            self._whole_fixations = device.stream(streams.fixation_stream(descriptor, config, live=False))
            if live or config.compat == "capture":
                self._fixation_windows = device.stream(streams.fixation_stream(descriptor, config, live=True))
            self._fixations = Fixations(self._on_fixation)
            self._merging.append(self._fixations)
        if "blinks" in chosen:
            self._whole_blinks = device.stream(streams.blink_stream(descriptor, config))
            if live:
                self._blink_edges = device.stream(streams.blink_edge_stream(descriptor, config))
            self._blinks = Blinks(self._on_blink)
            self._merging.append(self._blinks)
        if "surfaces" in chosen:
            for name in config.surfaces:
                self._open_surface(name)
        self._annotations = self._notifications = None
        if "annotation" in chosen:
            self._annotations = device.stream(streams.annotation_stream(descriptor, config))
        if "notify" in chosen:
            self._notifications = device.stream(streams.notification_stream(descriptor, config))
        self._notified = tuple(f"notify.{prefix}".encode() for prefix in config.notifications)
        if "logging" in chosen:
            device.log = {"errors": 0, "warnings": 0, "last": ""}

    @property
    def datum_topics(self) -> list[bytes]:
        """What is subscribed to for `on_datum`."""
        return [DATUM_TOPICS[topic] for topic in self._config.topics if topic in DATUM_TOPICS]

    @property
    def note_topics(self) -> list[bytes]:
        """What is subscribed to for `on_note`: beside what is chosen, the log, which tells when the clock is set."""
        chosen = [notes.LOG_START]
        if self._annotations is not None:
            chosen.append(notes.ANNOTATION.encode())
        if self._notifications is not None:
            chosen += self._notified
        return chosen

    # --- a clock that is being set --------------------------------------------------------------------------------

    def hold(self) -> None:
        """From now on datums wait."""
        if self._held is None:
            self._held, self._held_ns = [], monotonic_ns()

    def release(self) -> None:
        """Deals with what has waited, and waits no more."""
        held, self._held = self._held, None
        for frames, received_ns in held or ():
            self._take(frames, received_ns)

    def forget_clock(self) -> None:
        """Capture's clock is another one: nothing that began before can be told to have ended."""
        for each in self._merging:
            each.reset()

    # --- datums -----------------------------------------------------------------------------------------------------

    def on_datum(self, frames: list[bytes]) -> None:
        """Takes a message of `datum_topics`."""
        received_ns = monotonic_ns()
        if self._held is not None and received_ns - self._held_ns > HELD_MAX_NS:
            self.release()
        if self._held is None:
            self._take(frames, received_ns)
            doubted, self._doubted = self._doubted, self._device.clock.doubting
            if self._doubted and not doubted:  # gaze is too old on arrival to show that by itself
                self.hold()
                self._ask_clock()
        elif len(self._held) < HELD_MAX_DATUMS:
            self._held.append((frames, received_ns))
        else:
            self._counts["datums_dropped_while_clock_set"] += 1

    def _take(self, frames: list[bytes], received_ns: int) -> None:
        try:
            if frames[0][:1] in b"gp":
                self._on_gaze_or_pupil(wire.decode_datum(frames), received_ns)
            else:
                self._on_movement(frames, received_ns)
        except MalformedMessage as error:
            unknown = isinstance(error, wire.UnknownTopic)
            self._device.malformed["topics_unknown" if unknown else "datums_malformed"] += 1
            return
        self.last_datum_ns = received_ns

    def _on_gaze_or_pupil(self, datum: wire.Gaze | wire.Pupil, received_ns: int) -> None:
        if isinstance(datum, wire.Gaze):
            if self._gaze is not None:
                self._gaze.sample(datum.timestamp_ns, received_ns, channels.gaze_channels(datum))
            return
        if (stream := self._pupil.get((datum.eye_id, datum.method))) is not None:
            stream.sample(datum.timestamp_ns, received_ns, channels.pupil_channels(datum))
            if self._pupillometry is not None:
                self._pupillometry.sample(datum.timestamp_ns, received_ns, channels.pupillometry_channels(datum))

    def _on_movement(self, frames: list[bytes], received_ns: int) -> None:
        topic = frames[0]
        if topic == b"fixations":
            window = movements.decode_fixation(frames)
            of_one_clock = self._fixations.take(window, received_ns)
            if self._fixation_windows is not None and of_one_clock:
                known = len(self._fixation_windows.descriptor.channels)
                values = channels.fixation_window_channels(window)[:known]
                self._fixation_windows.sample(window.timestamp_ns, received_ns, values)
        elif topic == b"blinks":
            edge = movements.decode_blink(frames)
            if self._blink_edges is not None:
                self._blink_edges.sample(edge.timestamp_ns, received_ns, channels.blink_edge_channels(edge))
            self._blinks.take(edge, received_ns)
        else:
            self._on_surface(surfaces.decode_surface(frames), received_ns)

    def _on_fixation(self, whole: WholeFixation) -> None:
        self._whole_fixations.sample(whole.timestamp_ns, whole.received_ns, channels.fixation_channels(whole))

    def _on_blink(self, whole: WholeBlink) -> None:
        self._whole_blinks.sample(whole.timestamp_ns, whole.received_ns, channels.blink_channels(whole))

    # --- surfaces ---------------------------------------------------------------------------------------------------

    def _open_surface(self, name: str) -> _Surface:
        slug = base = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_") or "surface"
        number = 1
        while slug in self._slugs:
            number += 1
            slug = f"{base}_{number}"
        self._slugs.add(slug)
        made = self._surfaces[name] = _Surface(self._device, self._config, name, slug)
        self._merging.append(made.merged)
        return made

    def _on_surface(self, seen: surfaces.Surface, received_ns: int) -> None:
        surface = self._surfaces.get(seen.name)
        if surface is None:
            if len(self._surfaces) >= MAX_SURFACES:
                self._counts["surfaces_too_many"] += 1
                return
            surface = self._open_surface(seen.name)
            name = self._device.descriptor.name
            log.info("%s: a new surface, %s", name, notes.printable(seen.name), extra={"DEVICE": name})
        for gaze in seen.gaze:
            surface.gaze.sample(gaze.timestamp_ns, received_ns, channels.surface_channels(gaze))
        for fixation in seen.fixations:
            surface.merged.take(fixation, received_ns)

    # --- annotations, notifications, the log ------------------------------------------------------------------------

    def takes_notification(self, topic: bytes) -> bool:
        """Whether that one is chosen: there are others that the bridge itself listens to."""
        return self._notifications is not None and topic.startswith(self._notified)

    def on_annotation(self, frames: list[bytes]) -> None:
        """Raises MalformedMessage."""
        annotation = notes.decode_annotation(frames)
        # One that Capture has not taken is sent again, by the bridge and by others.
        known = annotation.label, annotation.timestamp_ns
        if known in self._annotated:
            self._counts["annotations_repeated"] += 1
        elif self._annotations is not None:
            self._annotated.append(known)
            text = annotation.label if self._config.annotations == "label" else annotation.json
            self._annotations.sample(annotation.timestamp_ns, monotonic_ns(), text)

    def on_notification(self, frames: list[bytes]) -> None:
        """Raises MalformedMessage."""
        if self._notifications is None:
            return
        notification = notes.decode_notification(frames)
        received_ns = monotonic_ns()
        at_ns = notification.timestamp_ns
        if at_ns is None:
            at_ns = self._device.clock.to_device(received_ns)
        if at_ns is None:
            self._notifications.dropped["clock_unlocked"] += 1
        else:
            self._notifications.sample(at_ns, received_ns, notification.json)

    def on_log(self, line: notes.LogLine) -> None:
        """Tells what Capture itself complains of."""
        said, level = self._device.log, LOG_LEVELS.get(line.level)
        if said is None or level is None:
            return
        said["warnings" if level == logging.WARNING else "errors"] += 1
        said["last"] = text = notes.printable(f"{line.level}: {line.text}")
        name = self._device.descriptor.name
        log.log(self._lines.level(level), "%s: Capture reports %s", name, text, extra={"DEVICE": name})

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """To be called a few times a second: ends what is known to have ended by nothing more coming of it."""
        for each in self._merging:
            each.tick(now_ns)


class _Surface:
    """The streams of one surface."""

    def __init__(self, device: Device, config: PupilCoreSource, name: str, slug: str) -> None:
        self.gaze = device.stream(streams.surface_stream(device.descriptor, config, name, slug))
        self._whole = device.stream(streams.surface_fixation_stream(device.descriptor, config, name, slug))
        self.merged = Fixations(self._on_fixation)

    def _on_fixation(self, found: WholeFixation) -> None:
        self._whole.sample(found.timestamp_ns, found.received_ns, channels.surface_fixation_channels(found))
