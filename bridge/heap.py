"""The C library's heap. What comes and goes with devices leaves holes in it, which glibc keeps.

In soaks with a fault every few seconds the process grew by 15 to 20 MB an hour, while what was left after ``trim``
stayed the same. Without glibc nothing is done.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
ARENAS = 2  # as many as there are threads that allocate much; glibc would take eight for each core
LARGE_BYTES = 128 << 10  # glibc's own, which it would raise with each larger block that is freed


def bound() -> None:
    """To be called before there are threads: they share a few heaps, where they would have had one each, and large
    blocks stay out of these, so that they leave no holes."""
    if (mallopt := _function("mallopt")) is not None:
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)


def trim() -> None:
    """Gives back what is free, in 1 or 2 ms."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    return found
