"""``python -m benchmarks.clock.pictures``: a picture a link, of error and bound over time.

The line is the error of the bridge against the truth, the band what it promised: the truth lies within the bound where
the line lies within the band, and where it does not there is a red dot. Behind it are two other methods, and dashed the
error that not even an oracle avoids. What lies outside the picture is marked at its edge.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from benchmarks.clock.__main__ import BRIDGE, METHODS, maker, names
from benchmarks.clock.links import LINKS, PING, Link, Run, simulate
from benchmarks.clock.score import WARM_UP_S, Score, gap, score

Floats = NDArray[np.float64]

BEHIND = {"lsl-burst": ("LSL burst", "#e08a1e"), "mean-of-echoes": ("mean of 100 echoes", "#8a63b8")}
LINE, BAND, TRUTH, OUTSIDE, CHANGE = "#0b559f", "#cfe1f2", "#222222", "#d7191c", "#555555"
SIZE_INCHES, DPI = (9.0, 4.2), 100
COLUMNS = 840  # of time, about one a pixel
SHADES = 128


def file_name(link: Link) -> str:
    """Of letters, digits and hyphens: ``step -200 ms`` gives ``step-minus-200-ms.png``."""
    text = link.name.lower().replace("-", "minus ").replace("+", "plus ").replace(".", " point ")
    return "-".join(text.split()) + ".png"


def columns(trace: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(time, smallest error, largest error, smallest bound) a column of the picture. NaN where nothing came for 1.5 s,
    so that a line breaks there."""
    at = trace[:, 0]
    edges = np.linspace(at[0], at[-1], COLUMNS + 1)
    starts = np.searchsorted(at, edges[:-1])
    full = np.diff(np.append(starts, len(at))) > 0
    low = np.minimum.reduceat(trace[:, 1], np.minimum(starts, len(at) - 1))
    high = np.maximum.reduceat(trace[:, 1], np.minimum(starts, len(at) - 1))
    bound = np.minimum.reduceat(trace[:, 2], np.minimum(starts, len(at) - 1))
    middle = (edges[:-1] + edges[1:]) / 2
    x, low, high, bound = middle[full], low[full], high[full], bound[full]
    breaks = np.flatnonzero(np.diff(x) > 1.5) + 1
    return (np.insert(x, breaks, x[breaks] - 0.5), *(np.insert(y, breaks, np.nan) for y in (low, high, bound)))


def by_stamp(run: Run, of_method: Score) -> Floats:
    """The trace by the time of the stamp rather than of arrival, so that a backlog lies where it belongs.

    Where answers are missing, which is seen by their number, it stays by arrival.
    """
    judged = (run.kind != PING) & ~run.corrupt & (run.true_time > WARM_UP_S)
    trace = of_method.trace.copy()
    if len(trace) == int(judged.sum()):
        trace[:, 0] = run.true_time[judged]
    return trace


def draw_line(axes: Axes, trace: Floats, scale: float, limit: float, **style: Any) -> None:
    """A line through the smallest and largest error of every column, and marks where it leaves the picture."""
    x, low, high, _ = columns(trace)
    axes.plot(np.repeat(x, 2), np.column_stack((low, high)).ravel() * scale, **style)
    marks = {"color": style["color"], "linestyle": "none", "markersize": 4, "clip_on": False, "zorder": style["zorder"]}
    for outside, y, marker in ((high * scale > limit, limit, "^"), (low * scale < -limit, -limit, "v")):
        some = np.flatnonzero(outside)
        if len(some):  # one a stretch of 40 columns, or they merge into a bar
            some = some[np.concatenate(([True], np.diff(some // 40) > 0))]
            axes.plot(x[some], np.full(len(some), y), marker=marker, **marks)


def time_us(x_us: float) -> str:
    """In the unit that suits."""
    if x_us < 100:
        return f"{x_us:.1f} µs"
    if x_us < 10_000:
        return f"{x_us:.0f} µs"
    return f"{x_us / 1e3:.0f} ms" if x_us < 10e6 else f"{x_us / 1e6:,.0f} s"


def draw_changes(axes: Axes, run: Run) -> None:
    link = run.link
    what = "clock steps" if link.device_step_s else "roams" if link.roam_s else link.name
    labels = [what] if len(run.changes) == 1 else [f"{what} begins", f"{what} ends"]
    for i, at_s in enumerate(run.changes):
        axes.axvline(at_s, color=CHANGE, linewidth=0.9, linestyle=":", zorder=2.5)
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "bottom"}
        side = {"xytext": (4, 0), "ha": "left"} if i else {"xytext": (-4, 0), "ha": "right"}
        axes.annotate(labels[i], (at_s, 0.02), fontsize=8, color=CHANGE, zorder=7, **where, **side)
    if gap(run):
        axes.axvspan(run.changes[0], run.changes[0] + gap(run), color="#ececec", zorder=0.2)


def draw(run: Run, method: str, of_method: Score, behind: dict[str, Score]) -> bytes:
    """The picture, as PNG."""
    trace = by_stamp(run, of_method)
    bound_s = float(np.percentile(trace[:, 2], 99))
    usual_s = float(np.percentile(np.abs(trace[:, 1]), 99))
    limit_s = max(1.3 * min(bound_s, 4 * run.oracle_bound_s), 1.1 * min(usual_s, 8 * run.oracle_bound_s))
    scale, unit = (1e3, "ms") if limit_s > 2e-3 else (1e6, "µs")
    limit = limit_s * scale
    figure, axes = plt.subplots(figsize=SIZE_INCHES, dpi=DPI)
    x, _, _, bound = columns(trace)
    axes.fill_between(x, -bound * scale, bound * scale, color=BAND, linewidth=0, zorder=1, label=f"bound of {method}")
    axes.axhline(0, color="#9a9a9a", linewidth=0.6, zorder=1.5)
    for name, (label, colour) in BEHIND.items():
        if name in behind:
            draw_line(
                axes,
                by_stamp(run, behind[name]),
                scale,
                limit,
                color=colour,
                linewidth=0.8,
                alpha=0.9,
                zorder=2,
                label=label,
            )
    draw_line(axes, trace, scale, limit, color=LINE, linewidth=1.7, zorder=4, label=f"error of {method}")
    axes.axhline(
        run.oracle_error_s * scale,
        color=TRUTH,
        linewidth=1,
        linestyle=(0, (5, 4)),
        zorder=5,
        label="error of an oracle",
    )
    broken = trace[np.abs(trace[:, 1]) > trace[:, 2]]
    if len(broken):
        y = np.clip(broken[:, 1] * scale, -limit, limit)
        axes.plot(broken[:, 0], y, ".", color=OUTSIDE, markersize=5, clip_on=False, zorder=6, label="bound broken")
    draw_changes(axes, run)
    axes.set(
        xlim=(WARM_UP_S, run.link.duration_s),
        ylim=(-limit, limit),
        xlabel="time, s",
        ylabel=f"error against the truth, {unit}",
    )
    axes.set_title(title(run, method, of_method, behind), fontsize=9.5, loc="left")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.01, -0.14),
        ncols=6,
        columnspacing=1.5,
        fontsize=8,
        frameon=False,
        borderaxespad=0,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.subplots_adjust(left=0.09, right=0.985, top=0.86, bottom=0.185)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    plt.close(figure)
    return small_png(raw)


def small_png(raw: io.BytesIO) -> bytes:
    """The same with a palette: the colours of the drawing and the most frequent shades; others go to the nearest."""
    pixels = np.asarray(Image.open(raw).convert("RGB")).astype(np.int64)
    shades, index, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    drawn = np.array([to_rgb(c) for c in (LINE, BAND, OUTSIDE, *(colour for _, colour in BEHIND.values()))]) * 255
    palette = np.vstack((drawn.round(), shades[np.argsort(-counts)[: SHADES - len(drawn)]])).astype(np.int64)
    nearest = ((shades[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    image = Image.fromarray(nearest[index].reshape(pixels.shape[:2]), mode="P")
    image.putpalette(palette.ravel().tolist())
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def title(run: Run, method: str, of_method: Score, behind: dict[str, Score]) -> str:
    held = of_method.coverage
    percent = "100" if held == 1 else f"{min(100 * held, 99.99):.2f}"
    others = ", ".join(f"{label} {time_us(behind[m].avoidable(95))}" for m, (label, _) in BEHIND.items() if m in behind)
    return (
        f"{run.link.name}: bound of {method} held for {percent} % of the samples, "
        f"median ±{time_us(float(np.median(of_method.trace[:, 2])) * 1e6)}\n"
        f"95 % of avoidable errors below: {method} {time_us(of_method.avoidable(95))}, {others}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clock.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/clock"))
    parser.add_argument("--links", type=names(list(LINKS)), default=list(LINKS), metavar="NAME,...")
    parser.add_argument("--method", choices=METHODS, default=BRIDGE, help="whose error and bound is shown")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.links:
        run = simulate(LINKS[name], options.seed)
        behind = {other: score(run, maker(other)) for other in BEHIND if other != options.method}
        path = options.out / file_name(run.link)
        path.write_bytes(draw(run, options.method, score(run, maker(options.method)), behind))
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
