"""Log lines: one JSON object each for a machine, one short line each for a person."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.service import journal
from bridge.service.logs import JsonFormatter, set_up


@contextmanager
def logging_as(level: str, form: str) -> Iterator[io.StringIO]:
    """Standard error after ``set_up``, with logging put back as it was afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "bridge", "pyre")]
    handlers, levels = logging.getLogger().handlers[:], [logger.level for logger in loggers]
    with redirect_stderr(io.StringIO()) as stderr:
        try:
            set_up(level, form)
            yield stderr
        finally:
            logging.getLogger().handlers[:] = handlers
            for logger, before in zip(loggers, levels, strict=True):
                logger.setLevel(before)


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("bridge.x", logging.INFO, "x.py", 1, message, args, None)


@given(st.text(), st.text())
def test_whatever_the_message_a_record_is_one_line_that_parses(message: str, argument: str) -> None:
    line = JsonFormatter().format(record("%s and %r", message, argument))
    assert "\n" not in line
    assert json.loads(line)["message"] == f"{message} and {argument!r}"


def test_a_json_line_has_time_level_logger_and_message() -> None:
    before = time.time()
    with logging_as("info", "json") as stderr:
        logging.getLogger("bridge.daemon").info("running: %d sources", 2)
    entry = json.loads(stderr.getvalue())
    assert before - 0.001 <= entry.pop("time") <= time.time() + 0.001
    assert entry == {"level": "info", "logger": "bridge.daemon", "message": "running: 2 sources"}


def test_a_json_line_carries_the_exception_and_stays_one_line() -> None:
    with logging_as("info", "json") as stderr:
        try:
            raise ValueError("what\na mess")
        except ValueError:
            logging.getLogger("bridge.daemon").exception("it failed")
    (line,) = stderr.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("error", "it failed")
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("ValueError: what\na mess")


def test_a_json_line_has_the_fields_of_its_log_call_in_lower_case() -> None:
    with logging_as("info", "json") as stderr:
        extra = {"DEVICE": "core", "EPOCH": 2, "STREAM": None, "MESSAGE": "another", "lower": "case"}
        logging.getLogger("bridge.daemon").info("hello", extra=extra)
    entry = json.loads(stderr.getvalue())
    assert (entry["device"], entry["epoch"], entry["message"]) == ("core", 2, "hello")
    assert set(entry) == {"time", "level", "logger", "message", "device", "epoch"}


def test_a_text_line_has_no_fields_as_messages_name_the_device_themselves() -> None:
    with logging_as("info", "text") as stderr:
        logging.getLogger("bridge.daemon").info("core is back", extra={"DEVICE": "core"})
    assert stderr.getvalue()[8:] == " INFO    core is back\n"


def test_auto_is_text_where_no_journal_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")  # inherited from a service, with standard error sent elsewhere
    with logging_as("info", "auto") as stderr:
        logging.getLogger("bridge.daemon").info("hello")
    assert stderr.getvalue()[8:] == " INFO    hello\n"


def test_auto_is_the_journal_where_standard_error_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
    with logging_as("info", "auto"):
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler.sender, journal.JournalSender)


def test_a_text_line_has_the_time_of_day_the_level_and_the_message() -> None:
    with logging_as("info", "text") as stderr:
        logging.getLogger("bridge.daemon").warning("%s is gone", "phone")
    assert stderr.getvalue()[8:] == " WARNING phone is gone\n"
    time.strptime(stderr.getvalue()[:8], "%H:%M:%S")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_level_is_the_bridges_and_other_libraries_only_warn(form: str) -> None:
    with logging_as("debug", form) as stderr:
        logging.getLogger("bridge.clock").debug("from the bridge")
        logging.getLogger("somebody").info("chatter")
        logging.getLogger("somebody").warning("trouble")
        logging.getLogger("pyre.node").error("a stranger's packet")
    assert "from the bridge" in stderr.getvalue()
    assert "trouble" in stderr.getvalue()
    assert "chatter" not in stderr.getvalue()
    assert "stranger" not in stderr.getvalue()


def test_setting_up_twice_does_not_say_everything_twice() -> None:
    with logging_as("info", "json") as stderr:
        set_up("warning", "text")
        logging.getLogger("bridge.daemon").info("too quiet")
        logging.getLogger("bridge.daemon").warning("once")
    assert stderr.getvalue().count("\n") == 1
