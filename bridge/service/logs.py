"""Log lines for a terminal, JSON lines for a machine, or entries with fields for systemd's journal."""

from __future__ import annotations

import json
import logging
import os
import sys

from bridge.service import journal


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (s since 1970), level, logger, message, and the traceback if there is one.

    Fields that the log call gave (``extra={"DEVICE": ...}``) follow in lower case.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        for name, value in journal.fields_of(record).items():
            entry.setdefault(name.lower(), value if isinstance(value, int | float) else str(value))
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """Lines for a terminal, which what strangers call themselves must not steer."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in super().format(record))


def set_up(level: str, form: str = "auto") -> None:
    """Logs of the bridge to standard error or to the journal; other libraries' from WARNING on.

    ``form``: "text", "json", "journal", or "auto": the journal where standard error is connected to it, else text.
    """
    if form == "auto":
        form = "journal" if journal.is_stderr_connected(os.environ.get("JOURNAL_STREAM")) else "text"
    handler: logging.Handler
    if form == "journal":
        handler = journal.handler()
    elif form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], [handler]
    for old in before:
        journal.release(old)
    root.setLevel(logging.WARNING)
    logging.getLogger("bridge").setLevel(level.upper())
    # pyre warns of everything a stranger sends; the bridge counts that itself.
    logging.getLogger("pyre").setLevel(logging.CRITICAL)
