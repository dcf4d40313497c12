"""How ``bag-preview`` draws one scene frame: the gaze around it, the nearest, and what the bound leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap

from bridge.bag.reading import Gaze

if TYPE_CHECKING:
    from bridge.bag.preview import Picked

MARK = "#ff00cc"  # the gaze that is nearest to the frame
TRAIL = LinearSegmentedColormap.from_list("trail", ["#00e5ff", "#ffffff", "#ffe600"])  # before, at, after the frame


def _nearest(gaze: Gaze, stamp_ns: int, trail_ns: int) -> int | None:
    """Index of the gaze with a place that is nearest to the stamp, within the trail."""
    usable = np.flatnonzero(~np.isnan(gaze.x_px) & (np.abs(gaze.stamps_ns - stamp_ns) <= trail_ns))
    return int(usable[np.argmin(np.abs(gaze.stamps_ns[usable] - stamp_ns))]) if len(usable) else None


def caption(picked: Picked, gaze: Gaze, start_ns: int, trail_ns: int) -> tuple[str, str]:
    """When the frame was and how well that is known; how far the nearest gaze is."""
    at = f"{(picked.stamp_ns - start_ns) / 1e9:.3f} s"
    nearest = _nearest(gaze, picked.stamp_ns, trail_ns)
    if nearest is None:
        return at, f"no gaze within {trail_ns / 1e6:.0f} ms"
    away_ms = (int(gaze.stamps_ns[nearest]) - picked.stamp_ns) / 1e6
    bound_s = gaze.bound_s[nearest]
    bound = "bound unknown" if np.isnan(bound_s) else f"±{bound_s * 1e3:.2f} ms"
    width, height = picked.image.size
    inside = 0 <= gaze.x_px[nearest] <= width and 0 <= gaze.y_px[nearest] <= height
    said = f"nearest gaze {abs(away_ms):.1f} ms {'later' if away_ms > 0 else 'earlier'}"
    return f"{at}   {bound}", said if inside else f"{said}, outside of the image"


def draw(axes: Axes, picked: Picked, gaze: Gaze, trail_ns: int) -> None:
    """The image with ``trail_ns`` of gaze each way. ``axes`` has the image's shape."""
    width, height = picked.image.size
    axes.imshow(np.asarray(picked.image), extent=(0, width, height, 0), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    around = np.flatnonzero(~np.isnan(gaze.x_px) & (np.abs(gaze.stamps_ns - picked.stamp_ns) <= trail_ns))
    nearest = _nearest(gaze, picked.stamp_ns, trail_ns)
    if nearest is None:
        return
    times_s = (gaze.stamps_ns[around] - picked.stamp_ns) / 1e9
    x, y = gaze.x_px[around], gaze.y_px[around]
    reach = trail_ns / 1e9
    # Dark below bright, to be seen on any image.
    axes.plot(x, y, color="black", linewidth=4.5, alpha=0.5, solid_capstyle="round", zorder=2)
    points = np.stack([x, y], axis=1)
    pieces = LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)), linewidths=2.2, cmap=TRAIL, zorder=3)
    pieces.set_array((times_s[:-1] + times_s[1:]) / 2)
    pieces.set_clim(-reach, reach)
    axes.add_collection(pieces, autolim=False)
    axes.scatter(
        x, y, c=times_s, cmap=TRAIL, vmin=-reach, vmax=reach, s=13, linewidths=0.4, edgecolors="black", zorder=4
    )
    bound_s = gaze.bound_s[nearest]
    if not np.isnan(bound_s):
        # Where the gaze was while the stamp is true within its bound: seldom longer than the mark.
        within = np.unique(
            np.clip([-bound_s, 0.0, bound_s, *times_s[np.abs(times_s) <= bound_s]], times_s[0], times_s[-1])
        )
        path = np.interp(within, times_s, x), np.interp(within, times_s, y)
        axes.plot(*path, color=MARK, linewidth=6, solid_capstyle="round", zorder=5)
    at = gaze.x_px[[nearest]], gaze.y_px[[nearest]]
    # A ring below the trail, which it must not hide, and a dot above it.
    for colour, thick, below in (("white", 4.0, 1.1), (MARK, 2.0, 1.2)):
        axes.plot(*at, "o", ms=20, markerfacecolor="none", markeredgewidth=thick, markeredgecolor=colour, zorder=below)
    axes.plot(*at, "o", ms=6, markerfacecolor=MARK, markeredgecolor="white", markeredgewidth=0.8, zorder=8)
