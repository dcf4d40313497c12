"""The status as a table that a person reads."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

STATE_STYLE = {"locked": "green", "holdover": "yellow", "bridging": "yellow", "unlocked": "red"}


def status_table(status: dict[str, Any]) -> Table:
    """A row a device with its clock, and under it a row a stream. Fits 80 columns."""
    table = Table(
        title=f"pupil-bridge, {status['duration_s']:.0f} s, out: {', '.join(status['sinks'])}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("device, stream", no_wrap=True)
    for name in ("in Hz", "out Hz", "age ms", "drops", "clock", "offset s", "± ms", "ppm"):
        table.add_column(name, justify="right", no_wrap=True)
    for device in status["devices"]:
        clock = device["clock"]
        table.add_row(
            f"[bold]{device['name']}[/]",
            *[""] * 4,
            f"[{STATE_STYLE[clock['state']]}]{clock['state']}[/]",
            _number(clock["offset_s"], ".3f"),
            _number(clock["bound_s"], ".3f", 1e3),
            f"{clock['drift_ppm']:+.1f}",
        )
        for stream in device["streams"]:
            drops = sum(stream["dropped"].values())
            table.add_row(
                f"  {stream['name']}",
                f"{stream['recent_rate_in_hz']:.1f}",
                f"{stream['recent_rate_out_hz']:.1f}",
                _number(stream["age_s"], ".0f", 1e3),
                f"[red]{drops}[/]" if drops else "0",
            )
    return table


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)
