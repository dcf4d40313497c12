"""How ``bag-preview`` draws: a row a device, its frames with gaze on them, and a time line of the bag below.

Every place is computed in inches and nothing is trimmed, so that the picture is 1600 pixels wide whatever is in it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bridge.bag import frames, time_line
from bridge.bag.frames import MARK, TRAIL

if TYPE_CHECKING:
    from bridge.bag.preview import Row

DPI = 100
WIDTH = 16.0
LEFT, RIGHT = 0.9, 0.3
BETWEEN = 0.2  # frames
HEAD, ROW_HEAD, FRAME_HEAD = 0.65, 0.75, 0.45
NOTE = 0.45
LINE, BOUND, AXIS, ROW_END = 1.9, 0.8, 0.55, 0.35  # time line, strip of bounds, numbers below them
TALLEST_FRAME, WIDEST_FRAME = 4.2, 6.0
GREY = "#555555"


def figure(title: str, rows: list[Row], trail_ns: int) -> Figure:
    """The whole picture. ``trail_ns`` of gaze each way are drawn on a frame."""
    start_ns = min(_first_ns(row) for row in rows)
    end_ns = max(_last_ns(row) for row in rows)
    height = HEAD + sum(_height(row) for row in rows)
    drawn = Figure(figsize=(WIDTH, height), dpi=DPI)
    began = datetime.fromtimestamp(start_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    head = f"{title}: {(end_ns - start_ns) / 1e9:.1f} s from {began}"
    _text(drawn, LEFT, height - 0.4, head, size=15, weight="bold")
    top = height - HEAD
    for row in rows:
        _row(drawn, row, top, start_ns, end_ns, trail_ns)
        top -= _height(row)
    return drawn


def _first_ns(row: Row) -> int:
    assert row.device.gaze is not None
    return int(min(times[0] for times in (row.device.gaze.stamps_ns, row.device.frames_ns) if len(times)))


def _last_ns(row: Row) -> int:
    assert row.device.gaze is not None
    return int(max(times[-1] for times in (row.device.gaze.stamps_ns, row.device.frames_ns) if len(times)))


def _frame_sizes(row: Row) -> list[tuple[float, float]]:
    """Width and height of each frame in inches, all of one height, and together no wider than the picture."""
    shapes = [picked.image.width / picked.image.height for picked in row.frames]
    if not shapes:
        return []
    room = WIDTH - LEFT - RIGHT - BETWEEN * (len(shapes) - 1)
    tall = min(TALLEST_FRAME, room / sum(shapes), WIDEST_FRAME / max(shapes))
    return [(tall * shape, tall) for shape in shapes]


def _height(row: Row) -> float:
    sizes = _frame_sizes(row)
    frames = FRAME_HEAD + sizes[0][1] if sizes else NOTE
    return ROW_HEAD + frames + 0.3 + LINE + 0.15 + BOUND + AXIS + ROW_END


def _text(drawn: Figure, left: float, bottom: float, said: str, **how: Any) -> None:
    """At inches from the lower left. Names in a bag can be anything, so nothing is read as a formula."""
    plain = "".join(letter if (letter.isascii() and letter.isprintable()) or letter == "±" else "?" for letter in said)
    drawn.text(left / WIDTH, bottom / drawn.get_figheight(), plain, parse_math=False, **how)


def _axes(drawn: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    tall = drawn.get_figheight()
    return drawn.add_axes((left / WIDTH, bottom / tall, width / WIDTH, height / tall))


def _row(drawn: Figure, row: Row, top: float, start_ns: int, end_ns: int, trail_ns: int) -> None:
    device, gaze = row.device, row.device.gaze
    assert gaze is not None
    _text(drawn, LEFT, top - 0.25, device.name, size=13, weight="bold")
    topics = f"gaze: {gaze.topic}    frames: {device.frames_topic or 'none in this bag'}"
    _text(drawn, LEFT, top - 0.5, "    ".join([topics, *_remarks(row)]), size=9.5, color=GREY)
    if row.frames:
        _key(drawn, top, trail_ns)
    bottom = top - ROW_HEAD
    sizes, left = _frame_sizes(row), LEFT
    for number, (picked, (width, height)) in enumerate(zip(row.frames, sizes, strict=True), 1):
        axes = _axes(drawn, left, bottom - FRAME_HEAD - height, width, height)
        frames.draw(axes, picked, gaze, trail_ns)
        said = frames.caption(picked, gaze, start_ns, trail_ns)
        _text(drawn, left, bottom - FRAME_HEAD + 0.28, f"{number}   {said[0]}", size=10, weight="bold")
        _text(drawn, left, bottom - FRAME_HEAD + 0.08, said[1], size=9.5, color=GREY)
        left += width + BETWEEN
    if sizes:
        bottom -= FRAME_HEAD + sizes[0][1] + 0.3
    else:
        _text(drawn, LEFT, bottom - 0.2, _without_frames(row), size=10.5)
        bottom -= NOTE + 0.3
    width = WIDTH - LEFT - RIGHT
    line = _axes(drawn, LEFT, bottom - LINE, width, LINE)
    strip = _axes(drawn, LEFT, bottom - LINE - 0.15 - BOUND, width, BOUND)
    for axes in (line, strip):
        axes.yaxis.set_label_coords(-0.6 / width, 0.5)
    time_line.draw(line, strip, row, gaze, start_ns, end_ns)


def _key(drawn: Figure, top: float, trail_ns: int) -> None:
    """What is drawn on the frames, at the right of the device's name."""
    reach = f"{trail_ns / 1e6:.0f} ms"
    ring: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markerfacecolor": "none",
        "markeredgecolor": MARK,
        "markersize": 10,
    }
    handles = [
        Line2D([], [], color=TRAIL(0.0), linewidth=4),
        Line2D([], [], color=TRAIL(1.0), linewidth=4),
        Line2D([], [], **ring),
        Line2D([], [], color=MARK, linewidth=6),
    ]
    names = [f"gaze up to {reach} before the frame", f"up to {reach} after it", "nearest", "within the bound"]
    corner = (1 - RIGHT / WIDTH, (top - 0.02) / drawn.get_figheight())
    how: dict[str, Any] = {"ncols": 4, "frameon": False, "fontsize": 9, "borderaxespad": 0}
    drawn.legend(handles, names, loc="upper right", bbox_to_anchor=corner, **how)


def _remarks(row: Row) -> list[str]:
    gaze, found = row.device.gaze, []
    assert gaze is not None
    if gaze.unstamped:
        found.append(f"{gaze.unstamped} gaze without a stamp")
    if row.device.unstamped_frames:
        found.append(f"{row.device.unstamped_frames} frames without a stamp")
    if row.broken:
        found.append(f"{row.broken} frames that are no images")
    return found


def _without_frames(row: Row) -> str:
    if row.broken:
        return "No frame is shown: those that were tried are no images (JPEG, PNG)."
    if row.device.unstamped_frames:
        return "No frame is shown: all have a stamp of zero, as the device's clock was not known."
    return "No frame is shown: the bag has none of this device on <device>/scene/image_raw/compressed."
