"""The status as a table that a person reads: once, or drawn again and again.

Names and sentences in a status can come from strangers on the network. Here they are text and never markup, and what
is not printable is replaced, so that none of them moves the cursor or changes a colour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.errors import BridgeError

STATE_STYLE = {"locked": "green", "holdover": "yellow", "bridging": "yellow", "unlocked": "red"}
WATCH_INTERVAL_S = 0.5
PLAIN_WATCH_INTERVAL_S = 5.0
LATE_LOOP_S = 0.1
LOW_RATE_SHARE = 0.8
OFFSET_WIDTH = 11  # a Companion's offset is minus some 1.7e9 s: the fraction gives way, so that 80 columns do
NAME_WIDTH = 14
MAX_NOTES = 8  # problems, and lines of drops
MAX_NOTE_CHARACTERS = 300
COLUMNS = ("in Hz", "out Hz", "age ms", "drops", "clock", "offset s", "± ms", "ppm")
NEEDS_WIDTH = (0, 57, 50, 42, 0, 76, 0, 64)  # the width of the terminal from which on each of them is shown
HEAD_LINES = 2  # of the table itself


def status_table(status: dict[str, Any], *, fit: bool = False) -> RenderableType:
    """What ``Control.status()`` knows: problems and marker streams first, a row a device with its clock, under it a row
    a stream, then drops by reason. Fits 80 columns; with ``fit`` also the height of the terminal: then what does not
    fit is said."""
    return _StatusView(status, fit)


def watch(ask: Callable[[], dict[str, Any]], console: Console) -> None:
    """Draws what ``ask()`` answers, twice a second, until it is interrupted. A BridgeError is shown and waited out.

    Where the output is no terminal a table is printed every five seconds.
    """
    answered_s: float | None = None

    def shown() -> RenderableType:
        nonlocal answered_s
        try:
            status = ask()
        except BridgeError as error:
            since = "" if answered_s is None else f" It answered {_duration(time.monotonic() - answered_s)} ago."
            return Text(f"{printable(str(error))}. Waiting for it.{since}", style="red")
        answered_s = time.monotonic()
        return status_table(status, fit=console.is_terminal)

    if not console.is_terminal:
        while True:
            console.print(shown())
            time.sleep(PLAIN_WATCH_INTERVAL_S)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            live.update(shown(), refresh=True)
            time.sleep(WATCH_INTERVAL_S)


def printable(text: str) -> str:
    """The text with every control, formatting or unassigned character replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:MAX_NOTE_CHARACTERS])


class _StatusView:
    def __init__(self, status: dict[str, Any], fit: bool) -> None:
        self._status = status
        self._fit = fit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        notes = [*_problems(self._status), *_markers(self._status)]
        above = [*_lines(_header(self._status), console, width), *_notes(notes, console, width)]
        below = _notes(_drops(self._status), console, width)
        yield from above
        rows = None
        if self._fit:  # one line less: the cursor's, which would scroll the rest away
            rows = console.size.height - 1 - len(above) - len(below) - HEAD_LINES
            if rows < len(self._status["devices"]) and below:
                rows, below = rows + len(below), []  # the column of drops stays
        yield _table(self._status, width, rows)
        yield from below


def _lines(text: Text, console: Console, width: int) -> list[Text]:
    """The text on lines of this width, the second and later ones indented."""
    first, *more = text.wrap(console, width) or [text]
    rest = Text(" ").join(more)
    return [first, *(Text("  ") + line for line in rest.wrap(console, max(1, width - 2)) if line)]


def _notes(notes: list[Text], console: Console, width: int) -> list[Text]:
    shown = [line for note in notes[:MAX_NOTES] for line in _lines(note, console, width)]
    if len(notes) > MAX_NOTES:
        shown.append(Text(f"  and {len(notes) - MAX_NOTES} more", style="dim"))
    return shown


def _header(status: dict[str, Any]) -> Text:
    sinks = ", ".join(_sink(sink) for sink in status.get("sink_status") or [{"name": s} for s in status["sinks"]])
    version, ran = printable(status["version"]), _duration(status["duration_s"])
    text = Text(f"pupil-bridge {version}, running for {ran}, out: {sinks}")
    text.stylize("bold", 0, len("pupil-bridge"))
    loop = status.get("loop", {})
    if loop.get("lag_s", 0.0) >= LATE_LOOP_S:
        text.append(f", loop {loop['lag_s']:.2f} s late ({loop['worst_lag_s']:.2f} s at worst)", style="bold red")
    return text


def _sink(sink: dict[str, Any]) -> str:
    name, queued, size = printable(sink["name"]), sink.get("queued"), sink.get("queue_size")
    if queued is None or (size is None and not queued):
        return name
    return f"{name} ({queued} queued)" if size is None else f"{name} ({queued}/{size} queued)"


def _problems(status: dict[str, Any]) -> list[Text]:
    return [Text(f"! {printable(problem)}", style="bold red") for problem in status.get("problems", [])]


def _markers(status: dict[str, Any]) -> list[Text]:
    return [_marker(stream) for stream in status.get("markers", [])]


def _marker(stream: dict[str, Any]) -> Text:
    """A stream of LSL markers in a line."""
    refused = sum(stream["refused"].values())
    counts = f"{stream['taken']} taken, {stream['done']} done"
    lost = f", {refused} refused" * bool(refused) + f", {stream['dropped']} dropped" * bool(stream["dropped"])
    text = Text(f"LSL markers {printable(stream['stream'])} ({stream['does']}): ")
    text.append("" if stream["connected"] else "not there, ", style="yellow")
    return text.append(counts).append(lost, style="yellow")


def _drops(status: dict[str, Any]) -> list[Text]:
    notes = []
    for device in status["devices"]:
        where = [(f"{device['name']} {stream['name']} dropped", stream["dropped"]) for stream in device["streams"]]
        where.append((f"{device['name']} malformed", device["malformed"]))
        for place, counts in where:
            reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)
            if reasons:
                notes.append(Text(printable(f"{place}: {reasons}"), style="yellow"))
    return notes


def _table(status: dict[str, Any], width: int, rows: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    # The one column that may be cut: rich narrows first what may be wrapped, and the cells themselves refuse to.
    table.add_column("device, stream", min_width=NAME_WIDTH, overflow="ellipsis")
    hidden = [index for index, needs_width in enumerate(NEEDS_WIDTH) if width < needs_width]
    for index, name in enumerate(COLUMNS):
        if index not in hidden:
            table.add_column(name, justify="right", no_wrap=True)
    for cells in _rows(status["devices"], rows):
        table.add_row(*(cell for index, cell in enumerate(cells, -1) if index not in hidden))
    return table


def _rows(devices: list[dict[str, Any]], rows: int | None) -> Iterator[list[Text]]:
    """A device and its streams; where there are too few rows, devices in one row, those that are not well
    last."""
    spare = None if rows is None else rows - len(devices)
    unwell_first = sorted(devices, key=_is_well)
    if spare is not None and spare < 0:
        assert rows is not None
        room = max(0, rows - 1)
        for device in unwell_first[:room]:
            yield _device_row(device, _sums(device["streams"]))
        left = unwell_first[room:]
        yield [_name(f"and {len(left)} more, {sum(map(_is_well, left))} well", "dim")]
        return
    in_one_row = []
    for device in unwell_first if spare is not None else []:
        assert spare is not None
        if len(device["streams"]) <= spare:
            spare -= len(device["streams"])
        else:
            in_one_row.append(device["name"])
    for device in devices:
        if device["name"] in in_one_row:
            yield _device_row(device, _sums(device["streams"]))
            continue
        yield _device_row(device, [Text()] * 4)
        yield from map(_stream_row, device["streams"])


def _is_well(device: dict[str, Any]) -> bool:
    return bool(device["connected"]) and device["clock"]["state"] == "locked"


def _device_row(device: dict[str, Any], sums: list[Text]) -> list[Text]:
    clock = device["clock"]
    recording = bool(device.get("recording"))
    name = _name(("REC " if recording else "") + device["name"], "bold")  # the mark first: a name may be cut
    if recording:
        name.stylize("bold red", 0, 3)
    return [
        name,
        sums[0] if device["connected"] else Text("away", style="red"),
        *sums[1:],
        Text(printable(clock["state"]), style=STATE_STYLE.get(clock["state"], "")),
        Text(_number(clock["offset_s"], 3, OFFSET_WIDTH)),
        Text(_number(clock["bound_s"], 3, 7, 1e3)),
        Text(_number(clock["drift_ppm"], 1, 6, sign="+")),
    ]


def _stream_row(stream: dict[str, Any]) -> list[Text]:
    return [
        _name(f"  {stream['name']}", ""),
        _rate(stream["recent_rate_in_hz"], stream["expected_rate_hz"]),
        Text(_number(stream["recent_rate_out_hz"], 1, 7)),
        Text(_age(stream["age_s"])),
        _drop_count(sum(stream["dropped"].values())),
    ]


def _sums(streams: list[dict[str, Any]]) -> list[Text]:
    """All streams of a device in one row: their rates and drops together, the age of the youngest."""
    ages_s = [stream["age_s"] for stream in streams if stream["age_s"] is not None]
    return [
        Text(_number(sum(stream["recent_rate_in_hz"] for stream in streams), 1, 7)),
        Text(_number(sum(stream["recent_rate_out_hz"] for stream in streams), 1, 7)),
        Text(_age(min(ages_s, default=None))),
        _drop_count(sum(sum(stream["dropped"].values()) for stream in streams)),
    ]


def _name(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _rate(rate_hz: float, expected_hz: float | None) -> Text:
    low = expected_hz is not None and rate_hz < LOW_RATE_SHARE * expected_hz
    return Text(_number(rate_hz, 1, 7), style="yellow" if low else "")


def _drop_count(count: int) -> Text:
    text = f"{count}" if count < 100_000 else f"{count / 1e3:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"
    return Text(text, style="red" if count else "")


def _number(value: float | None, decimals: int, width: int, factor: float = 1.0, *, sign: str = "-") -> str:
    """The value with as many decimals as the width leaves room for, in powers of ten beyond that; "-" for None."""
    if value is None:
        return "-"
    for places in range(decimals, -1, -1):
        text = format(value * factor, f"{sign}.{places}f")
        if cell_len(text) <= width:
            return text
    return format(value * factor, f"{sign}.0e")


def _age(age_s: float | None) -> str:
    """Milliseconds; beyond a hundred seconds a person wants minutes, hours or days."""
    return "-" if age_s is None else f"{age_s * 1e3:.0f}" if age_s < 100 else _duration(age_s)


def _duration(seconds: float) -> str:
    for unit_s, unit, enough in ((1, "s", 120), (60, "min", 120), (3600, "h", 72)):
        if seconds < unit_s * enough:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
