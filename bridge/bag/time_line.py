"""How ``bag-preview`` draws a bag over time: gaze, gaps, the bound of its stamps, where the shown frames are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bridge.bag.frames import MARK
from bridge.bag.reading import Gaze, Values

if TYPE_CHECKING:
    from bridge.bag.preview import Row

X_COLOUR, Y_COLOUR, BOUND_COLOUR, GAP_COLOUR = "#0072b2", "#d55e00", "#009e73", "#d9d9d9"
GAP_S = 0.1  # no gaze for longer than this, or five samples, is a gap


def draw(line: Axes, strip: Axes, row: Row, gaze: Gaze, start_ns: int, end_ns: int) -> None:
    """Gaze on ``line``, bounds on ``strip`` below it, both over the time from ``start_ns`` to ``end_ns``."""
    times_s = (gaze.stamps_ns - start_ns) / 1e9
    end_s = max((end_ns - start_ns) / 1e9, 1e-3)
    gaps = _gaps(times_s, end_s)
    for begin, end in gaps:
        for axes in (line, strip):
            axes.axvspan(begin, end, color=GAP_COLOUR, linewidth=0, zorder=0)
    for values, colour, name in ((gaze.x_px, X_COLOUR, "gaze x"), (gaze.y_px, Y_COLOUR, "gaze y")):
        line.plot(*_broken_line(times_s, values, gaps), color=colour, linewidth=1.1, label=name)
    for number, picked in enumerate(row.frames, 1):
        at = (picked.stamp_ns - start_ns) / 1e9
        for axes in (line, strip):
            axes.axvline(at, color=MARK, linewidth=1.2, linestyle="--", zorder=1)
        line.annotate(
            str(number),
            (at, 1),
            (0, 3),
            line.get_xaxis_transform(),
            "offset points",
            ha="center",
            va="bottom",
            size=9,
            color=MARK,
            weight="bold",
        )
    bounds_ms = gaze.bound_s * 1e3
    if np.isnan(bounds_ms).all():
        strip.set(yticks=[])
        strip.text(
            0.5, 0.5, "no bounds in this bag", transform=strip.transAxes, ha="center", va="center", color="#555555"
        )
    else:
        at_s, shown = _broken_line(times_s, bounds_ms, gaps)
        strip.fill_between(at_s, 0, shown, color=BOUND_COLOUR, alpha=0.35, linewidth=0)
        strip.plot(at_s, shown, color=BOUND_COLOUR, linewidth=1.1)
        strip.set_ylim(0, max(float(np.nanmax(bounds_ms)) * 1.25, 1e-3))
        strip.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (line, strip):
        axes.set_xlim(0, end_s)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    line.set_ylabel("gaze (px)")
    line.tick_params(labelbottom=False)
    strip.set_ylabel("± (ms)")
    strip.set_xlabel("time since the start of the bag (s)")
    if gaps:
        line.axvspan(0, 0, color=GAP_COLOUR, label="no gaze")
    handles, names = line.get_legend_handles_labels()
    handles.append(Patch(facecolor=BOUND_COLOUR, alpha=0.35))
    names.append("bound of the stamps")
    # Below, beside the label: above it would be in the way of the numbers.
    place = (1, -0.34)
    strip.legend(handles, names, loc="upper right", bbox_to_anchor=place, ncols=4, frameon=False, fontsize=9)


def _gaps(times_s: Values, end_s: float) -> list[tuple[float, float]]:
    """Where no gaze came, the ends of the bag included."""
    steps = np.diff(times_s)
    longest = max(GAP_S, 5 * float(np.median(steps))) if len(steps) else GAP_S
    edges = np.concatenate([[0.0], times_s, [end_s]])
    return [(float(edges[i]), float(edges[i + 1])) for i in np.flatnonzero(np.diff(edges) > longest)]


def _broken_line(times_s: Values, values: Values, gaps: list[tuple[float, float]]) -> tuple[Values, Values]:
    """The line with nothing where there is a gap."""
    at = np.searchsorted(times_s, [begin for begin, _ in gaps], side="right")
    return np.insert(times_s, at, np.nan), np.insert(values, at, np.nan)
