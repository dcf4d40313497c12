"""What the C library keeps is given back; on a system without glibc, nothing happens."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from bridge import heap

GROWN_MB = 80
SCRIPT = f"""
import ctypes, psutil
from bridge import heap
heap.bound()
rss_mb = lambda: psutil.Process().memory_info().rss / 1e6
blocks = [bytes(50_000) for _ in range({GROWN_MB} * 20)]  # below the size that is mapped by itself
kept = blocks[-1]  # at the end of the heap, which therefore cannot shrink by itself
del blocks
before = rss_mb()
heap.trim()
print(before, rss_mb())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc"
)
def test_memory_with_holes_is_given_back() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before_mb, after_mb = map(float, printed.split())
    assert before_mb > GROWN_MB > after_mb


def test_a_c_library_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    heap.bound()
    heap.trim()
