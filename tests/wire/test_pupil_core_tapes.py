"""Every topic on the tapes of the real Pupil Capture: what goes into the decoders comes out, count by count.

The short tape is the simulators' own, cut from that of 30 s. The two long ones, of Pupil Capture 3.6.14, are in
tests/data.
"""

from __future__ import annotations

import lzma
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import pytest

from bridge.errors import MalformedMessage
from bridge.sources.pupil_core_movements import Blinks, Fixations, WholeBlink, WholeFixation
from bridge.wire.pupil_core import UnknownTopic, decode_datum
from bridge.wire.pupil_core_frames import decode_frame
from bridge.wire.pupil_core_movements import BlinkEdge, Fixation, decode_blink, decode_fixation
from bridge.wire.pupil_core_notes import LogLine, decode_annotation, decode_log, decode_notification
from bridge.wire.pupil_core_surfaces import Surface, decode_surface
from tests.wire.test_pupil_core import TAPE, end_of_value

DATA = Path(__file__).parents[1] / "data"
TAPE_30S = DATA / "pupil_core_tape_30s.msgpack.xz"
TAPE_FRAMES = DATA / "pupil_core_tape_frames_5s.msgpack.xz"

# All that the tapes hold, counted by msgpack's own reader.
TOTALS = {
    TAPE_30S: {
        "gaze.3d.01.": 3485,
        "gaze.3d.0.": 58,
        "gaze.3d.1.": 64,
        "pupil.0.2d": 1802,
        "pupil.0.3d": 1802,
        "pupil.1.2d": 1802,
        "pupil.1.3d": 1802,
        "surfaces.Surface 1": 889,
        "fixations": 553,
        "blinks": 33,
        "logging.debug": 2,
    },
    TAPE_FRAMES: {
        "gaze.3d.01.": 584,
        "gaze.3d.1.": 2,
        "pupil.0.2d": 293,
        "pupil.0.3d": 293,
        "pupil.1.2d": 294,
        "pupil.1.3d": 294,
        "frame.world": 142,
        "frame.eye.0": 293,
        "frame.eye.1": 294,
        "surfaces.Surface 1": 142,
        "fixations": 95,
        "logging.debug": 2,
    },
}

DECODERS: tuple[Callable[[Sequence[bytes]], Any], ...] = (
    decode_datum,
    decode_frame,
    decode_fixation,
    decode_blink,
    decode_surface,
    decode_annotation,
    decode_notification,
    decode_log,
)
UNKNOWN = [[topic, b"\x80"] for topic in (b"imu", b"gaze.4d.01.", b"fixations.again", b"frame.eye.2", b"", b"\xff\0")]

Messages = list[tuple[int, list[bytes]]]
Merged = tuple[list[WholeFixation], list[Fixation], Fixations]


def read(path: Path) -> Messages:
    """Every message with its arrival (ns), from an envelope read by hand."""
    data = lzma.decompress(path.read_bytes())
    end = end_of_value(data, 0)
    messages = []
    while end < len(data):
        start, end = end, end_of_value(data, end)
        at_s, frames = msgspec.msgpack.decode(data[start:end])
        messages.append((round(at_s * 1e9), frames))
    return messages


@pytest.fixture(scope="module", params=[TAPE, TAPE_30S, TAPE_FRAMES], ids=["short", "30s", "frames"])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def messages(path: Path) -> Messages:
    return read(path)


def decoded(messages: Messages) -> tuple[dict[str, list[Any]], Counter[str], Counter[str]]:
    """What every message is, by topic; unknown topics; and the malformed. As in the bridge each decoder says itself
    what is not its own; two of them may not both want a message."""
    values: dict[str, list[Any]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    malformed: Counter[str] = Counter()
    for _, frames in messages:
        topic = frames[0].decode(errors="replace")
        wanted = 0
        for decode in DECODERS:
            try:
                values[topic].append(decode(frames))
            except UnknownTopic:
                continue
            except MalformedMessage:
                malformed[topic] += 1
            wanted += 1
        assert wanted <= 1, f"{topic} is of {wanted} decoders"
        unknown[topic] += wanted == 0
    return {topic: found for topic, found in values.items() if found}, +unknown, malformed


def test_of_every_topic_as_many_come_out_as_go_in(
    path: Path, messages: Messages, record_property: Callable[[str, object], None]
) -> None:
    into = Counter(frames[0].decode() for _, frames in messages)
    values, unknown, malformed = decoded(messages)
    out = {topic: len(found) for topic, found in values.items()}
    print(f"\n{path.name}\n{'topic':24}{'in':>8}{'out':>8}")
    for topic, count in sorted(into.items()):
        print(f"{topic:24}{count:8}{out.get(topic, 0):8}")
        record_property(topic, f"{count} in, {out.get(topic, 0)} out")
    print(f"{'all':24}{into.total():8}{sum(out.values()):8}")
    assert out == into
    assert out == TOTALS.get(path, out)
    assert not unknown
    assert not malformed
    assert {"gaze.3d.01.", "pupil.0.2d", "pupil.1.3d", "fixations", "surfaces.Surface 1"} <= out.keys()


def test_unknown_topics_are_counted_and_nothing_else_is_lost(messages: Messages) -> None:
    into = Counter(frames[0].decode() for _, frames in messages)
    mixed = list(messages)
    for number, frames in enumerate(UNKNOWN):
        mixed.insert(number * len(messages) // len(UNKNOWN), (0, frames))
    values, unknown, malformed = decoded(mixed)
    assert {topic: len(found) for topic, found in values.items()} == into
    assert unknown == Counter(frames[0].decode(errors="replace") for frames in UNKNOWN)
    assert unknown.total() == 6
    assert not malformed


def test_every_value_of_fixations_blinks_and_surfaces_equals_that_of_the_plain_dict(
    path: Path, messages: Messages
) -> None:
    compared: Counter[str] = Counter()
    for _, frames in messages:
        topic = frames[0].decode().split(".")[0]
        if topic not in ("fixations", "blinks", "surfaces", "logging"):
            continue
        plain: dict[str, Any] = msgspec.msgpack.decode(frames[1])
        match next(value for decode in DECODERS if (value := attempt(decode, frames)) is not None):
            case Fixation() as window:
                assert_fixation(window, plain)
                assert window.method == plain["method"]
                assert list(window.gaze_point_3d or ()) == plain["gaze_point_3d"]
            case BlinkEdge() as edge:
                assert edge == BlinkEdge(plain["type"] == "onset", ns(plain["timestamp"]), plain["confidence"])
            case Surface() as surface:
                assert (surface.name, surface.timestamp_ns) == (plain["name"], ns(plain["timestamp"]))
                for gaze, datum in zip(surface.gaze, plain["gaze_on_surfaces"], strict=True):
                    assert (gaze.timestamp_ns, list(gaze.norm_pos)) == (ns(datum["timestamp"]), datum["norm_pos"])
                    assert (gaze.confidence, gaze.on_surface) == (datum["confidence"], datum["on_surf"])
                    compared["gaze on surfaces"] += 1
                for on_it, datum in zip(surface.fixations, plain["fixations_on_surfaces"], strict=True):
                    assert_fixation(on_it, datum)
                    assert on_it.on_surface == datum["on_surf"]
                    compared["fixations on surfaces"] += 1
            case LogLine() as line:
                assert (line.level, line.name, line.text) == ("debug", plain["name"], plain["msg"])
        compared[topic] += 1
    print(dict(compared))
    # Capture sends the window of a frame also with the surface that it sees in it; the short tape was cut in between.
    assert abs(compared["fixations on surfaces"] - compared["fixations"]) <= (2 if path == TAPE else 0)
    assert min(compared[what] for what in ("fixations", "gaze on surfaces", "logging")) > 0


def attempt(decode: Callable[[Sequence[bytes]], Any], frames: Sequence[bytes]) -> Any:
    try:
        return decode(frames)
    except UnknownTopic:
        return None


def assert_fixation(window: Any, plain: dict[str, Any]) -> None:
    assert (window.id, window.timestamp_ns) == (plain["id"], ns(plain["timestamp"]))
    assert (window.duration_ms, window.dispersion_deg) == (plain["duration"], plain["dispersion"])
    assert (list(window.norm_pos), window.confidence) == (plain["norm_pos"], plain["confidence"])


def ns(seconds: float) -> int:
    return round(Fraction(seconds) * 10**9)


@pytest.fixture(scope="module")
def of_30s() -> Messages:
    return read(TAPE_30S)


@pytest.fixture(scope="module")
def fixations(of_30s: Messages) -> Merged:
    whole: list[WholeFixation] = []
    merged = Fixations(whole.append)
    windows = []
    for received_ns, frames in of_30s:
        merged.tick(received_ns)
        if frames[0] == b"fixations":
            windows.append(decode_fixation(frames))
            merged.take(windows[-1], received_ns)
    merged.tick(received_ns + 10**9)
    return whole, windows, merged


class TestMeaning:
    """What the windows and edges of the long tape come to."""

    def test_every_id_is_one_fixation_from_its_first_window_to_its_last(self, fixations: Merged) -> None:
        whole, windows, merged = fixations
        assert [fixation.id for fixation in whole] == list(range(280, 311))
        assert (merged.late, merged.clock_set) == (0, 0)
        for fixation in whole:
            of_it = [window for window in windows if window.id == fixation.id]
            end_ns = max(window.timestamp_ns + round(window.duration_ms * 1e6) for window in of_it)
            assert fixation.timestamp_ns == min(window.timestamp_ns for window in of_it)
            assert fixation.duration_ms == (end_ns - fixation.timestamp_ns) / 1e6
            assert fixation.dispersion_deg == max(window.dispersion_deg for window in of_it)
        # A target was shown every second; a window alone has 300 to 309 ms.
        assert 900 < sorted(fixation.duration_ms for fixation in whole)[15] < 1000

    def test_a_whole_fixation_is_where_the_gaze_was_that_it_spans(self, fixations: Merged, of_30s: Messages) -> None:
        gaze = [decode_datum(frames) for _, frames in of_30s if frames[0].startswith(b"gaze.")]
        for fixation in fixations[0]:
            end_ns = fixation.timestamp_ns + fixation.duration_ms * 1e6
            # Capture leaves out what is less certain than 0.6.
            of_it = [g for g in gaze if fixation.timestamp_ns <= g.timestamp_ns <= end_ns and g.confidence >= 0.6]
            if fixation.id == 280 or len(of_it) < 30:  # of the first, gaze is from before the tape
                continue
            for axis in (0, 1):
                assert fixation.norm_pos[axis] == pytest.approx(fmean(g.norm_pos[axis] for g in of_it), abs=2e-3)
            assert fixation.confidence == pytest.approx(fmean(g.confidence for g in of_it), abs=0.02)

    def test_fixations_on_the_surface_are_the_same_ones(self, fixations: Merged, of_30s: Messages) -> None:
        whole: list[WholeFixation] = []
        merged = Fixations(whole.append)
        for received_ns, frames in of_30s:
            if frames[0].startswith(b"surfaces."):
                for window in decode_surface(frames).fixations:
                    merged.take(window, received_ns)
        merged.tick(received_ns + 10**9)
        assert [(f.id, f.timestamp_ns, f.duration_ms) for f in whole] == [
            (f.id, f.timestamp_ns, f.duration_ms) for f in fixations[0]
        ]
        assert {fixation.on_surface for fixation in whole} == {True, False}
        assert all(fixation.method is None and fixation.gaze_point_3d is None for fixation in whole)

    def test_thirty_three_edges_are_five_blinks(self, of_30s: Messages) -> None:
        whole: list[WholeBlink] = []
        paired = Blinks(whole.append)
        for received_ns, frames in of_30s:
            paired.tick(received_ns)
            if frames[0] == b"blinks":
                paired.take(decode_blink(frames), received_ns)
        paired.tick(received_ns + 10**9)
        # Seven seconds apart and 0.2 s long, as the eyes' pictures had them.
        assert [round(blink.timestamp_ns / 1e9, 1) for blink in whole] == [5144.4, 5151.4, 5158.4, 5165.4, 5172.4]
        assert [round(blink.duration_s, 1) for blink in whole] == [0.2] * 5
        assert [blink.onset_confidence for blink in whole] == [1.0] * 5
        assert (paired.unpaired, paired.late) == (0, 0)
