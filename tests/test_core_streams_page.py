"""docs/pupil-core-streams.md: Pupil Labs' LSL plugin for Capture and the bridge, stream by stream, channel by channel.

The plugin's side is written down here, from its source (App-PupilLabs, pupil_capture_lsl_relay 2.x); ours is made from
the code.
"""

# ruff: noqa: E501

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.config import PupilCoreSource
from bridge.sources import pupil_core_streams as streams
from bridge.streams import Channel, DeviceDescriptor, StreamDescriptor

PAGE = Path(__file__).parents[1] / "docs/pupil-core-streams.md"
ANEW = "WRITE_DOCS=1 .venv/bin/python -m pytest tests/test_core_streams_page.py"


def _xyz(label: str, kind: str, eye: str = "both") -> list[tuple[str, str, str, str]]:
    return [(f"{label}_{axis}", f"{kind}{axis.upper()}", "mm", eye) for axis in "xyz"]


_SCREEN = [(f"norm_pos_{axis}", f"Screen{axis.upper()}", "normalized", "both") for axis in "xy"]
_CONFIDENCE = ("confidence", "Confidence", "normalized", "both")
_DIAMETERS = [
    (f"diameter{eye}_{method}", "Diameter", unit, side)
    for method, unit in (("2d", "pixels"), ("3d", "mm"))
    for eye, side in ((0, "right"), (1, "left"))
]
# (label, type, unit, eye), as the plugin describes them.
PLUGIN = {
    "pupil_capture": [
        _CONFIDENCE,
        *_SCREEN,
        *_xyz("gaze_point_3d", "Direction"),
        *_xyz("eye_center0_3d", "Position", "right"),
        *_xyz("eye_center1_3d", "Position", "left"),
        *_xyz("gaze_normal0", "Position", "right"),
        *_xyz("gaze_normal1", "Position", "left"),
        *_DIAMETERS,
    ],
    "pupil_capture_fixations": [
        ("fixation id", "com.pupil-labs.fixation.id", "", "both"),
        _CONFIDENCE,
        *_SCREEN,
        ("dispersion", "com.pupil-labs.fixation.dispersion", "degree", "both"),
        ("duration", "com.pupil-labs.fixation.duration", "milliseconds", "both"),
        ("method", "com.pupil-labs.fixation.method", "", "both"),
    ],
    "pupil_capture_pupillometry_only": [_CONFIDENCE, *_SCREEN, *_DIAMETERS],
}

INTRODUCTION = f"""# Pupil Core in LSL, beside Pupil Labs' plugin for Capture

Made from the code by `{ANEW}`. The plugin is the LSL relay that Pupil Labs publish for Capture (App-PupilLabs): it runs
inside Capture and sets Capture's clock to LSL's; the bridge runs anywhere, sets no clock, and says how far each stamp can be wrong.
Names are those with the shipped `lsl_prefix = "pupil_capture"`.

Every stream of the bridge has the plugin's channels first, with its labels, in its order. After them come those of its own,
`device_time` (Pupil time, as Capture stamped it) the last. With `compat = "capture"` the three streams have the plugin's channels and no others, and
no other stream of samples is there; `pupil_capture_fixations` then has each window as Capture sends it, as the plugin does.

| | plugin | bridge |
|---|---|---|
| stamp | Pupil time, which it has set to LSL's clock once, at its start | Pupil time on LSL's clock, measured all the time, with a bound in `pupil_capture_Sync` |
| order | as Capture sends it: gaze goes back in time by up to 164 ms | in order (`reorder_window_ms`); later samples are counted, and dropped or kept (`late`) |
| a fixation | many samples with one id, each a window of 300 ms | one, from the first window's start to the last one's end; the windows in `pupil_capture_fixations_live` (`live = true`) |
| source_id | a random one, kept in Capture's settings | `<device>_Gaze` and so on |
| Capture is closed | its streams vanish | its streams stay, so that a recorder goes on when it is back |

"""


def described(config: str = "none") -> list[StreamDescriptor]:
    """All streams of samples of a Core, with everything chosen."""
    wanted = {
        "type": "pupil_core",
        "name": "core",
        "lsl_prefix": "pupil_capture",
        "compat": config,
        "pupillometry_only": True,
        "live": True,
    }
    core = PupilCoreSource.model_validate(wanted)
    device = DeviceDescriptor("core", "pupil_core", core.lsl_prefix)
    return [
        streams.gaze_stream(device, core),
        *(streams.pupil_stream(device, core, eye, method) for eye in (0, 1) for method in ("2d", "3d")),
        streams.pupillometry_stream(device, core),
        *(streams.fixation_stream(device, core, live=live) for live in (False, True)),
        streams.blink_stream(device, core),
        streams.blink_edge_stream(device, core),
        streams.surface_stream(device, core, "Screen 1", "Screen_1"),
        streams.surface_fixation_stream(device, core, "Screen 1", "Screen_1"),
        streams.annotation_stream(device, core),
        streams.notification_stream(device, core),
        *(streams.video_stream(device, core, camera) for camera in ("scene", "eye0", "eye1")),
    ]


def _cells(label: str, kind: str, unit: str, eye: str) -> str:
    return f"`{label}` | {kind} | {unit or '-'} | {eye}"


def _ours(channel: Channel) -> tuple[str, str, str, str]:
    return channel.label, channel.type, channel.unit, channel.eye


def _table(stream: StreamDescriptor) -> str:
    kind = f"type {stream.lsl_type}, stamp: {stream.instant}"
    lines = [f"## {stream.lsl_name}\n", f"{kind}.\n"]
    if not stream.channels:
        return "\n".join([*lines, "One channel of text.\n"])
    theirs = PLUGIN.get(stream.lsl_name, [])
    ours = [_ours(channel) for channel in stream.channels]
    if stream.device_time:
        ours.append(("device_time", "DeviceTime", "seconds", "both"))
    if theirs:
        lines += [
            "| | plugin | type | unit | eye | bridge | type | unit | eye |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for number, channel in enumerate(ours):
            left = _cells(*theirs[number]) if number < len(theirs) else "- | - | - | -"
            lines.append(f"| {number} | {left} | {_cells(*channel)} |")
    else:
        lines += ["| | bridge | type | unit | eye |", "|---|---|---|---|---|"]
        lines += [f"| {number} | {_cells(*channel)} |" for number, channel in enumerate(ours)]
    return "\n".join([*lines, ""])


def page() -> str:
    return INTRODUCTION + "\n".join(_table(stream) for stream in described())


def test_the_page_is_what_the_code_does() -> None:
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), f"make it anew: {ANEW}"


@pytest.mark.parametrize("name", PLUGIN)
def test_the_plugin_s_channels_come_first_in_its_order(name: str) -> None:
    (ours,) = (stream for stream in described() if stream.lsl_name == name)
    labels = [channel.label for channel in ours.channels]
    assert labels[: len(PLUGIN[name])] == [label for label, *_ in PLUGIN[name]]
    # Two slips of the plugin are not repeated: a point is no direction, and a unit vector is neither a position nor mm.
    differing = {
        label
        for (label, *theirs), channel in zip(PLUGIN[name], ours.channels, strict=False)
        if tuple(theirs) != _ours(channel)[1:] and not (theirs[1] == "" and channel.unit == "none")
    }
    slips = {f"{label}_{axis}" for label in ("gaze_point_3d", "gaze_normal0", "gaze_normal1") for axis in "xyz"}
    assert differing <= slips


def test_with_compat_lsl_has_the_plugin_s_streams_and_no_others() -> None:
    offered = {stream.lsl_name: stream for stream in described("capture") if stream.lsl}
    assert offered.keys() == PLUGIN.keys()
    for name, stream in offered.items():
        assert [channel.label for channel in stream.channels] == [label for label, *_ in PLUGIN[name]]
        assert not stream.device_time
