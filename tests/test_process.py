"""What the process around the daemon does for other programs."""

from __future__ import annotations

import sys

import pytest

from bridge import process


def test_other_programs_do_not_get_the_libraries_of_the_ros_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{sys.prefix}/lib:/opt/own:{sys.prefix}/lib/python3/ros.libs")
    monkeypatch.setenv(process.WHEELS_MARK, "1")
    environ = process.environment_for_others()
    assert environ["LD_LIBRARY_PATH"] == "/opt/own"
    assert process.WHEELS_MARK not in environ
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{sys.prefix}/lib")
    assert "LD_LIBRARY_PATH" not in process.environment_for_others()


def test_without_the_wheels_the_environment_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(process.WHEELS_MARK, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{sys.prefix}/lib")
    assert process.environment_for_others()["LD_LIBRARY_PATH"] == f"{sys.prefix}/lib"
