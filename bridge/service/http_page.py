"""The page at ``/``: the status as a table that renews itself. No other file, no other server, no inline handler.

Whatever comes from ``/status`` is put in as text (``textContent``): names of devices come from strangers.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #1a7f37; --fair: #9a6700; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --fair: #d29922; --bad: #f85149; } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
#head { opacity: .75; margin: 0 0 1rem; }
ul { padding: 0; list-style: none; margin: 0 0 1rem; }
#problems li { border-left: 4px solid var(--bad); padding: .2rem .6rem; margin: .3rem 0; background: #cf222e1a; }
#drops { margin-top: .8rem; }
#drops li { color: var(--fair); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .45rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child {
  text-align: left; max-width: 15rem; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate;
}
tr.device td { font-weight: 600; border-top: 2px solid var(--line); }
tr.stream td:first-child { padding-left: 1.8rem; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); }
.stale { opacity: .4; }
"""

_SCRIPT = """
"use strict";
const STATES = {locked: "good", holdover: "fair", bridging: "fair", unlocked: "bad"};
const get = (id) => document.getElementById(id);
// Control characters, and those that turn the direction of the text around.
const clean = (text) => String(text).replace(/[\\p{C}\\p{Zl}\\p{Zp}]/gu, "\\ufffd");
const number = (value, digits, factor = 1) => value === null ? "-" : (value * factor).toFixed(digits);
const signed = (value, digits) => value === null ? "-" : (value < 0 ? "" : "+") + value.toFixed(digits);

function duration(s) {
  for (const [unit_s, unit, enough] of [[1, "s", 120], [60, "min", 120], [3600, "h", 72]])
    if (s < unit_s * enough) return `${Math.round(s / unit_s)} ${unit}`;
  return `${Math.round(s / 86400)} d`;
}

function add(parent, tag, text, style) {
  const made = document.createElement(tag);
  made.textContent = clean(text);
  if (style) made.className = style;
  parent.appendChild(made);
  return made;
}

function list(id, sentences) {
  get(id).replaceChildren();
  for (const sentence of sentences) add(get(id), "li", sentence);
}

function row(style, cells) {
  const made = document.createElement("tr");
  made.className = style;
  for (const [text, look] of cells) add(made, "td", text, look);
  made.firstChild.title = made.firstChild.textContent;
  get("rows").appendChild(made);
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);
const reasons = (counts) => Object.entries(counts).filter(([, n]) => n).map(([why, n]) => `${why} ${n}`).join(", ");

function show(status) {
  const sinks = (status.sink_status || status.sinks.map((name) => ({name}))).map((sink) =>
    sink.queue_size ? `${sink.name} (${sink.queued}/${sink.queue_size} queued)` :
    sink.queued ? `${sink.name} (${sink.queued} queued)` : sink.name);
  const loop = status.loop || {};
  const late = loop.lag_s >= 0.1 ? `, loop ${loop.lag_s.toFixed(2)} s late` : "";
  get("head").textContent =
    clean(`${status.version}, running for ${duration(status.duration_s)}, out: ${sinks.join(", ")}${late}`);
  list("problems", status.problems || []);
  const drops = [];
  get("rows").replaceChildren();
  for (const device of status.devices) {
    const clock = device.clock;
    row("device", [
      [device.name], [device.connected ? "" : "away", "bad"], [device.recording ? "REC" : "", "bad"], [""], [""],
      [clock.state, STATES[clock.state]], [number(clock.offset_s, 3)], [number(clock.bound_s, 3, 1e3)],
      [signed(clock.drift_ppm, 1)],
    ]);
    for (const stream of device.streams) {
      const dropped = sum(stream.dropped), expected = stream.expected_rate_hz;
      const low = expected !== null && stream.recent_rate_in_hz < 0.8 * expected;
      const age = stream.age_s;
      row("stream", [
        [stream.name], [number(stream.recent_rate_in_hz, 1), low ? "fair" : ""],
        [number(stream.recent_rate_out_hz, 1)],
        [age === null ? "-" : age < 100 ? number(age, 0, 1e3) : duration(age)],
        [dropped, dropped ? "bad" : ""], [""], [""], [""], [""],
      ]);
      if (dropped) drops.push(`${device.name} ${stream.name} dropped: ${reasons(stream.dropped)}`);
    }
    if (sum(device.malformed)) drops.push(`${device.name} malformed: ${reasons(device.malformed)}`);
  }
  list("drops", drops);
}

async function renew() {
  if (!document.hidden) {
    try {
      const answer = await fetch("status", {cache: "no-store", signal: AbortSignal.timeout(5000)});
      if (!answer.ok) throw new Error((await answer.json()).error);
      show(await answer.json());
      get("shown").className = "";
    } catch (error) {
      list("problems", [`pupil-bridge does not answer; what is shown is old (${error.message})`]);
      get("shown").className = "stale";
    }
  }
  setTimeout(renew, 1000);
}
renew();
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>pupil-bridge</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>pupil-bridge</h1>
<p id="head"></p>
<ul id="problems" role="alert"></ul>
<div id="shown">
<div class="scroll">
<table>
<thead><tr><th>device, stream</th><th>in Hz</th><th>out Hz</th><th>age ms</th><th>drops</th><th>clock</th>
<th>offset s</th><th>± ms</th><th>ppm</th></tr></thead>
<tbody id="rows"></tbody>
</table>
</div>
<ul id="drops"></ul>
</div>
<noscript>This page needs JavaScript; /status has the same as JSON.</noscript>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
