"""Surfaces against bytes of the real Pupil Capture, byte for byte, and against damaged ones."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import MalformedMessage
from bridge.wire.pupil_core import UnknownTopic
from bridge.wire.pupil_core_surfaces import (
    FIXATIONS_MAX,
    GAZE_MAX,
    SURFACE_MAX_BYTES,
    Surface,
    SurfaceFixation,
    SurfaceGaze,
    decode_surface,
)
from tests.wire.test_hostile_input import QUIET, damaged, damaged_messages

# From the tape of 30 s, but for three of the homographies and all gaze but the first.
SURFACE = [
    b"surfaces.Surface 1",
    bytes.fromhex(
        "86a5746f706963b273757266616365732e537572666163652031a46e616d65a9537572666163652031b1737572665f746f5f696d675f"
        "7472616e739393cb40b2b6401feb9af3cbc02bd5a7657b8c58cb4071f8701dd3bdc793cb408142312092b4eccbc08099f949b106e6cb"
        "40856882e082c8bd93cb400db6f829f986dfcbbfb1fa5f1ce08146cb3ff0000000000000b067617a655f6f6e5f737572666163657391"
        "86a5746f706963b667617a652e33642e30312e5f6f6e5f73757266616365a86e6f726d5f706f7392cb3feaba0180000000cb3fe18ed7"
        "60000000aa636f6e666964656e6365cb3ff0000000000000a76f6e5f73757266c3a9626173655f6461746192ab67617a652e33642e30"
        "312ecb40b418de2738c646a974696d657374616d70cb40b418de2738c646b56669786174696f6e735f6f6e5f73757266616365739189"
        "a5746f706963b46669786174696f6e735f6f6e5f73757266616365a86e6f726d5f706f7392cb3fea0222e0000000cb3fe19d9a400000"
        "00aa636f6e666964656e6365cb3feffcc42d458633a76f6e5f73757266c3a9626173655f6461746192a96669786174696f6e73cb40b4"
        "18959c7a989aa974696d657374616d70cb40b418959c7a989aa26964cd011aa86475726174696f6ecb4073447fbfb47300aa64697370"
        "657273696f6ecb3ff1a2d44c64aab1a974696d657374616d70cb40b418f6fb363a46"
    ),
]
FIELDS: dict[str, Any] = msgspec.msgpack.decode(SURFACE[1])
GAZE: dict[str, Any] = FIELDS["gaze_on_surfaces"][0]
FIXATION: dict[str, Any] = FIELDS["fixations_on_surfaces"][0]


def surface(raw: bytes = b"Surface 1", /, **changes: Any) -> list[bytes]:
    return [b"surfaces." + raw, msgspec.msgpack.encode(FIELDS | changes)]


def is_sound(value: Surface) -> bool:
    """What the decoder promises of what it gives."""
    places = [item.norm_pos for item in (*value.gaze, *value.fixations)]
    numbers = [item.confidence for item in (*value.gaze, *value.fixations)]
    numbers += [number for item in value.fixations for number in (item.dispersion_deg, item.duration_ms)]
    return (
        value.name.isprintable()
        and 1 <= len(value.name) <= 100
        and all(math.isfinite(number) for number in numbers)
        and all(math.isfinite(x) == math.isfinite(y) and not math.isinf(x) for x, y in places)
        and all(0 <= item.id < 2**53 and 0 <= item.duration_ms <= 86_400_000 for item in value.fixations)
        and all(abs(item.timestamp_ns) < 2**62 for item in (value, *value.gaze, *value.fixations))
    )


def test_captures_bytes_are_a_surface_with_gaze_and_a_window_of_a_fixation() -> None:
    assert decode_surface(SURFACE) == Surface(
        name="Surface 1",
        timestamp_ns=5_144_964_770_688,
        gaze=(SurfaceGaze(5_144_867_785_977, (0.8352057933807373, 0.548686683177948), 1.0, True),),
        fixations=(
            SurfaceFixation(
                id=282,
                timestamp_ns=5_144_584_418_928,
                duration_ms=308.28118868339516,
                norm_pos=(0.8127607703208923, 0.5504885911941528),
                confidence=0.9996052631578948,
                dispersion_deg=1.102253244792035,
                on_surface=True,
            ),
        ),
    )


def test_a_surface_at_which_nobody_looks_has_neither() -> None:
    seen = decode_surface(surface(gaze_on_surfaces=[], fixations_on_surfaces=[]))
    assert (seen.gaze, seen.fixations) == ((), ())


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"a", "a"),
        (b"left screen.v2", "left screen.v2"),
        (b".", "."),
        ("Tür 2 目 🖥".encode(), "Tür 2 目 🖥"),
        (b"a\tb\nc\0", "a b c "),
        (b"x" * 100, "x" * 100),
    ],
)
def test_the_name_is_that_of_the_topic_whatever_the_payload_says(raw: bytes, name: str) -> None:
    assert decode_surface(surface(raw, name="another")).name == name


@pytest.mark.parametrize("raw", [b"", b" ", b"\n\t", b"x" * 101, b"\xff", "\u4e00".encode()[:2], b"x" * 100_000])
def test_a_name_that_is_empty_too_long_or_no_text_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode_surface(surface(raw))
    assert not isinstance(caught.value, UnknownTopic)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gaze_that_has_no_place_on_it_keeps_its_moment(bad: float) -> None:
    gaze = [GAZE, GAZE | {"norm_pos": [0.5, bad], "on_surf": False}]
    seen = decode_surface(surface(gaze_on_surfaces=gaze))
    assert [g.on_surface for g in seen.gaze] == [True, False]
    assert all(map(math.isnan, seen.gaze[1].norm_pos))
    assert seen.gaze[1].timestamp_ns == seen.gaze[0].timestamp_ns


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1"])
def test_times_confidences_and_dispersions_must_be_finite_numbers(bad: Any) -> None:
    for change in (
        {"timestamp": bad},
        *({"gaze_on_surfaces": [GAZE | {key: bad}]} for key in ("timestamp", "confidence", "on_surf", "norm_pos")),
        *({"fixations_on_surfaces": [FIXATION | {key: bad}]} for key in ("duration", "dispersion", "id", "confidence")),
    ):
        with pytest.raises(MalformedMessage):
            decode_surface(surface(**change))


@pytest.mark.parametrize("key", ["timestamp", "gaze_on_surfaces", "fixations_on_surfaces"])
def test_what_capture_always_sends_must_be_there(key: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != key}
    with pytest.raises(MalformedMessage, match=key):
        decode_surface([SURFACE[0], msgspec.msgpack.encode(fields)])


def test_counts_and_sizes_are_bounded() -> None:
    short = {key: GAZE[key] for key in ("timestamp", "norm_pos", "confidence", "on_surf")}
    assert len(decode_surface(surface(gaze_on_surfaces=[short] * GAZE_MAX)).gaze) == GAZE_MAX
    assert len(decode_surface(surface(fixations_on_surfaces=[FIXATION] * FIXATIONS_MAX)).fixations) == FIXATIONS_MAX
    for change in (
        {"gaze_on_surfaces": [short] * (GAZE_MAX + 1)},
        {"fixations_on_surfaces": [FIXATION] * (FIXATIONS_MAX + 1)},
        {"more": bytes(SURFACE_MAX_BYTES)},
    ):
        with pytest.raises(MalformedMessage):
            decode_surface(surface(**change))


@pytest.mark.parametrize("frames", [[], [b""], [b"surfaces", b"\x80"], [b"surface.a", b"\x80"], [b"gaze.3d.01."]])
def test_other_topics_are_unknown(frames: list[bytes]) -> None:
    with pytest.raises(UnknownTopic):
        decode_surface(frames)


def test_without_a_payload_or_all_of_it_it_is_malformed() -> None:
    for frames in (SURFACE[:1], *([SURFACE[0], SURFACE[1][:end]] for end in range(len(SURFACE[1])))):
        with pytest.raises(MalformedMessage):
            decode_surface(frames)


@given(data=st.data())
@settings(QUIET, max_examples=800)
def test_damaged_it_is_sound_or_malformed(data: Any) -> None:
    frames = data.draw(damaged_messages([SURFACE]) | damaged(SURFACE[1]).map(lambda payload: [SURFACE[0], payload]))
    value, complaint = None, ""
    try:
        value = decode_surface(frames)
    except MalformedMessage as error:
        complaint = str(error)
    assert len(complaint) < 1000
    assert complaint or (value is not None and is_sound(value))


@given(raw=st.binary(max_size=450))
@settings(QUIET, max_examples=300)
def test_any_name_is_printable_and_bounded_or_malformed(raw: bytes) -> None:
    try:
        name = decode_surface(surface(raw)).name
    except MalformedMessage:
        return
    assert name.isprintable()
    assert 1 <= len(name) <= 100
