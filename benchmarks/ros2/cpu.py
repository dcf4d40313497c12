"""CPU time of this process by thread, in ns, user and system."""

from __future__ import annotations

import threading
import time

THREADS = {"MainThread": "loop", "ros2 publisher": "publisher", "ros2 node": "node"}
REST = "dds"  # and every other thread of a library


def by_part() -> dict[str, int]:
    """CPU time so far of the threads above that there are, of the rest, and of the ``total``."""
    parts = {}
    for thread in threading.enumerate():
        if (part := THREADS.get(thread.name)) is not None and thread.ident is not None:
            parts[part] = time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
    total = time.process_time_ns()
    return {**parts, REST: total - sum(parts.values()), "total": total}


def since(before: dict[str, int]) -> dict[str, int]:
    """What has been spent since ``before``, which `by_part` has returned."""
    return {part: spent - before.get(part, 0) for part, spent in by_part().items()}
